"""What runs in the guard process: one thread that forks children, reaps them, and outlives nobody.

    supervisor ── requests, descriptors ──► guard ── fork ──► worker, or exec'd program (own group, armed lifeline)
               ◄── started, ended ────────        ◄─ SIGCHLD ── its children, and adopted grandchildren

It waits in one poll on the supervisor's socket and on the pipe that SIGCHLD writes to. It is a subreaper, so whatever its
children leave behind becomes its own child. At the end of the socket (the supervisor ended, or wants it so) it kills until
it has no child left. It has no lifeline itself: it must live longer than the supervisor, for 2 ms.

Invariants:
  1. One thread, always: a fork of it is a clean process. Modules that start threads are not preloaded.
  2. A child is reaped at once; before its number is given back, the rest of its process group is killed.
  3. `started` of a child is sent before its `ended`, and `ended` before the `started` of one with the same number.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from typing import Any, NoReturn

from duodao import arena
from duodao.children import lifeline, reap, wire

SOCKET_FD = 3
ARENA_FD = 4
_CHILD_LINE_FD = 10  # in a child: high enough that no program expects something else there
_CHILD_ARENA_FD = 11
_PR_SET_CHILD_SUBREAPER = 36
_DEAF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that reach a whole terminal or service: the supervisor decides what they mean, the guard only serves it."""
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
_OOM_SCORE = 500  # of 1000: the kernel picks a child before the program that can start another


def main() -> NoReturn:
    """Serve the supervisor at SOCKET_FD until it is gone, then leave nothing behind."""
    os.closerange(ARENA_FD + 1, os.sysconf("SC_OPEN_MAX"))
    for fd in range(3):
        _fill(fd)
    sock = socket.socket(fileno=SOCKET_FD)
    for fd in (SOCKET_FD, ARENA_FD):
        os.set_inheritable(fd, False)
    zygote = _Zygote(sock)
    try:
        zygote.prepare()
    except Exception:
        with contextlib.suppress(OSError):
            wire.send(sock, wire.encode(("broken", traceback.format_exc())))
        os._exit(1)
    zygote.serve()
    reap.kill_all()
    os._exit(0)


def _fill(fd: int) -> None:
    """Open /dev/null as standard descriptor `fd` if it is closed: else the next pipe would become it."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, True)


class _Zygote:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines: dict[int, int] = {}  # our child -> the read end of its lifeline: it must not close before the child
        self._outbox: deque[bytes] = deque()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._woken, False)
        self._defaults: dict[int, Any] = {}

    def prepare(self) -> None:
        """Become a subreaper, listen for deaths, load what children need. The first message says what that is."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in _DEAF:
            self._defaults[number] = signal.signal(number, signal.SIG_IGN)
        for number in _PYTHON_IGNORES:
            self._defaults[number] = signal.SIG_DFL
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)  # full: it will be read anyway
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write("duodao-guard")
        hello = wire.receive(self._sock)
        if hello is None:
            os._exit(0)
        (_, sys.path[:], preload), _ = hello
        arena.inherited(ARENA_FD)
        for name in preload:
            _preload(name)
        gc.collect()
        gc.freeze()  # a collection in a child then doesn't copy the pages of what was loaded here

    def serve(self) -> None:
        """Until the supervisor is gone."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        while True:
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            ready = dict(poll.poll())
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 65536)
                self._reap()
            events = ready.get(SOCKET_FD, 0)
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._serve_one():
                return
            self._flush()

    def _serve_one(self) -> bool:
        try:
            received = wire.receive(self._sock)
        except wire.Truncated as lost:
            self._post(("failed", lost.args[0][1], errno.EMFILE, "the guard has too many open files"))
            return True
        if received is None:
            return False
        (kind, *fields), fds = received
        if kind == "signal":
            self._signal(*fields)
        else:
            self._fork(kind, fields, fds)
        return True

    def _fork(self, kind: str, fields: list[Any], fds: list[int]) -> None:
        request, *rest = fields
        line, *others = fds
        try:
            pid = os.fork()
        except OSError as error:
            os.close(line)
            self._post(("failed", request, error.errno, f"the guard can't fork: {error.strerror}"))
        else:
            if pid == 0:
                self._become(kind, rest, line, others)
            with contextlib.suppress(OSError):  # it has done so itself, and perhaps exec'd or ended
                os.setpgid(pid, pid)
            self._lines[pid] = line
            self._post(("started", request, pid))
        for fd in others:
            os.close(fd)

    def _become(self, kind: str, rest: list[Any], line: int, fds: list[int]) -> NoReturn:
        """In the child: own group, armed, its own descriptors and no others; then the entry or the program."""
        code = 1
        try:
            os.setpgid(0, 0)
            lifeline.arm(line)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, handler in self._defaults.items():
                if kind == "exec" or number in _DEAF:
                    signal.signal(number, handler)
            self._sock.detach()
            kept = _renumber(line, fds)
            _raise_oom_score()
            if kind == "exec":
                _execute(kept, *rest)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to interpret
            code = _call(rest[0], rest[1], kept)
        except SystemExit as leaving:
            code = _exit_code(leaving.code)
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(code)

    def _signal(self, pid: int, number: int) -> None:
        if pid in self._lines:  # not reaped, so the number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _reap(self) -> None:
        ended = []
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            pid = found.si_pid
            line = self._lines.pop(pid, None)
            if line is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # while the zombie holds the number, it can be nobody else's group
                os.close(line)
            status = os.waitpid(pid, 0)[1]
            if line is not None:
                ended.append((pid, os.waitstatus_to_exitcode(status)))
        for start in range(0, len(ended), 1000):
            self._post(("ended", ended[start : start + 1000]))

    def _post(self, message: wire.Message) -> None:
        self._outbox.append(wire.encode(message))

    def _flush(self) -> None:
        """Send what fits. A supervisor that was stopped reads nothing, and must not keep us from reaping."""
        while self._outbox:
            try:
                wire.send(self._sock, self._outbox[0], flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._outbox.clear()  # the next poll says so, too
                return
            self._outbox.popleft()


def _note(number: int, frame: Any) -> None:
    """A handler must exist for the signal to be written to the wake-up pipe."""


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception:
        return  # whoever needs it in a child gets the error there, with its traceback
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"importing {name} started a thread; a process with threads can't be forked safely")


def _renumber(line: int, fds: list[int]) -> list[int]:
    """Move our descriptors to their fixed numbers and close all others: those of siblings, and the supervisor's socket."""
    sources = [line, ARENA_FD, *fds]
    targets = range(_CHILD_LINE_FD, _CHILD_LINE_FD + len(sources))
    free = max(*sources, targets[-1]) + 1
    import fcntl

    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in sources]
    for source, target in zip(lifted, targets, strict=True):
        os.dup2(source, target, inheritable=target == _CHILD_LINE_FD)
    os.closerange(3, _CHILD_LINE_FD)
    os.closerange(targets[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    arena.get().fd = _CHILD_ARENA_FD
    return list(targets[2:])


def _raise_oom_score() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.seek(0)
            file.write(str(_OOM_SCORE))


def _call(entry: str, arg: bytes, fds: list[int]) -> int:
    module, _, name = entry.partition(":")
    result = getattr(importlib.import_module(module), name)(arg, fds)
    return result if isinstance(result, int) else 0


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _leave(code: int) -> NoReturn:
    """End without unwinding into the guard's loop; exit functions run, for they remove temporary files."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _execute(
    fds: list[int], argv: list[str], env: dict[bytes, bytes], cwd: bytes | None, streams: tuple[int, int, int]
) -> NoReturn:
    """Replace this process by the program. A failure goes to the supervisor through the last descriptor."""
    report = fds[-1]
    what: Any = cwd
    try:
        for target, index in enumerate(streams):
            if index >= 0:
                os.dup2(fds[index], target)
        if cwd is not None:
            os.chdir(cwd)
        what = argv[0]
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(report, wire.encode((error.errno, error.strerror, what)))
        os._exit(127)
