"""Ending what is left: the guard's own descendants, and those of a guard that is dead."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MARKER = "DUODAO_GUARD"
"""The environment variable that all descendants of a guard carry: `<pid of its supervisor>-<random>`."""


def kill_all() -> None:
    """Kill and reap until this process, a subreaper, has no child left.

    Those that called setsid or forked twice become children of ours when their parents die, so all are reached in the
    end, whatever they did to their group, session or environment. Each round waits for a death, so nothing spins; a
    child that we may not signal (setuid) is waited for.
    """
    while True:
        pids = _children()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            # The kernel's list may miss one while others exit: only a list with entries allows a wait for a death.
            os.waitpid(-1, 0 if pids else os.WNOHANG)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/self/task/{me}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in _pids() if _parent(pid) == me]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kill_marked(marker: str) -> None:
    """Kill every process whose environment at its exec carried `marker`: the descendants of a guard that died alone.

    Repeated while a pass finds some, for one may fork while the list is read; ten passes at most, each of them waits up
    to a second for those it killed.
    """
    wanted = marker.encode()
    for _ in range(10):
        found = [pid for pid in _pids() if _carries(pid, wanted)]
        if not found:
            return
        watches = watch(found)
        for fd in watches:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        await_deaths(watches, 1.0)


def _carries(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return wanted in file.read().split(b"\0")
    except OSError:  # it ended, or it is another user's
        return False


def watch(pids: Iterable[int]) -> list[int]:
    """A pidfd for each of `pids` that is there: they stand for these processes even when the numbers are used again."""
    watches = []
    for pid in pids:
        with contextlib.suppress(OSError):
            watches.append(os.pidfd_open(pid))
    return watches


def await_deaths(watches: list[int], seconds: float) -> None:
    """Wait until the processes of these pidfds have ended, `seconds` at most, and close them."""
    end = time.monotonic() + seconds
    for fd in watches:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, end - time.monotonic()) * 1000)
        os.close(fd)
