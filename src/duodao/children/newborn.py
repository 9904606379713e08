"""From the fork to the entry: what a worker does first.

Order matters: it is armed before anything that may block, and it answers signals only when their meaning is set, since
what was sent before would else be lost (the guard has them blocked, so they wait).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from duodao import arena
from duodao.children import lifeline
from duodao.children.boot import GUARD_BLOCKS

LINE_FD = 10  # high enough that no program expects something else there
_ARENA_FD = 11
_OOM_SCORE = 500  # of 1000: when memory ends the kernel picks a child before the program that can start another


def live(rest: list[Any], line: int, fds: list[int], memory: int) -> NoReturn:
    """Be the child: its own group, armed, with its own descriptors and no others; then run what it is for."""
    try:
        os.setpgid(0, 0)
        lifeline.arm(line)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kept = _renumber(line, memory, fds)
        raise_oom_score()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to interpret
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GUARD_BLOCKS)
        work(kept, *rest)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor that is not in `kept`. By the list in /proc: a limit of a million is too many to try."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that read the list
                os.close(int(name))


def _renumber(line: int, memory: int, fds: list[int]) -> list[int]:
    """Move our descriptors to their numbers and close all others: those of siblings, the supervisor's socket."""
    sources = [line, memory, *fds]
    targets = range(LINE_FD, LINE_FD + len(sources))
    free = max(*sources, targets[-1]) + 1
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in sources]
    for source, target in zip(lifted, targets, strict=True):
        os.dup2(source, target, inheritable=target == LINE_FD)  # what it execs holds its lifeline, too
    close_all_but({0, 1, 2, *targets})
    arena.get().fd = _ARENA_FD
    return list(targets[2:])


def raise_oom_score(pid: int | str = "self") -> None:
    """When memory runs out, this process is ended before the program that can start another."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.seek(0)
            file.write(str(_OOM_SCORE))


def work(fds: list[int], entry: str, arg: bytes) -> NoReturn:
    """Call the entry, and end with what it returns."""
    code = 1
    try:
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write("duodao-worker")
        module, _, name = entry.partition(":")
        result = getattr(importlib.import_module(module), name)(arg, fds)
        code = result if isinstance(result, int) else 0
    except SystemExit as leaving:
        code = _exit_code(leaving.code)
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _leave(code: int) -> NoReturn:
    """End without unwinding into the guard's loop. Exit functions run: they remove temporary files."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end_like(code: int) -> NoReturn:
    """End as a child of ours did: with its exit code, or by the signal that a negative one stands for."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)
