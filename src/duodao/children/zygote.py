"""What runs in the guard process: one thread that forks children, reaps them, and lets none of them outlive us.

    supervisor ── requests, descriptors ──► guard ── fork, spawn ──► worker or program (own group, armed lifeline)
               ◄── started, stopped, ended         ◄──── SIGCHLD ─── its children, and grandchildren it adopted

It waits in one poll: on the supervisor's socket and on the pipe that SIGCHLD writes to. It is a subreaper: whatever its
children leave behind becomes its own child. At the end of the socket (the supervisor ended, or wants it so) it kills
until it has no child left. It has no lifeline itself: it must live longer than the supervisor, if only for 2 ms.

Invariants:
  1. One thread, always: a fork of it is a clean process. A module that starts a thread is not preloaded.
  2. A child is reaped at once; before its number is given back, the rest of its process group is killed.
  3. `started` of a child goes out before its `ended`, and `ended` before the `started` of one with the same number.
  4. `stopped` is told of every stop of a child but those the supervisor asked for, and never after its `ended`.
"""

from __future__ import annotations

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
from duodao.children import newborn, reap, spawning, wire
from duodao.children.boot import ARENA_FD, SOCKET_FD

_PR_SET_CHILD_SUBREAPER = 36
_ENDS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


def main() -> NoReturn:
    """Serve the supervisor at SOCKET_FD until it is gone, then leave nothing behind."""
    newborn.close_all_but({0, 1, 2, SOCKET_FD, ARENA_FD})
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
    zygote.sweep()
    reap.kill_all()
    os._exit(0)


def _fill(fd: int) -> None:
    """Open /dev/null as standard descriptor `fd` if that is closed, before the next pipe becomes it."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, True)


class _Zygote:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines: dict[int, int] = {}  # child -> read end of its lifeline, which so outlasts the child's own copy
        self._held: set[int] = set()  # those that were stopped because the supervisor said so
        self._outbox: deque[bytes] = deque()
        self._files: set[tuple[bytes, int, int]] = set()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)

    def prepare(self) -> None:
        """Become a subreaper, listen for deaths, load what children need: the first message says what that is."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)  # a full one will be read anyway
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write("duodao-guard")
        hello = wire.receive(self._sock)
        if hello is None:
            os._exit(0)
        (_, path, preload), _ = hello
        own = sys.path[:]  # first: a queue.py beside the user's program is not what our own modules import
        sys.path += [folder for folder in path if folder not in own]
        arena.inherited(ARENA_FD)
        for name in preload:
            _preload(name)
        gc.collect()
        gc.freeze()  # a collection in a child then leaves the pages shared that were filled here

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
            going_on = not ready.get(SOCKET_FD, 0) & ~select.POLLOUT or self._serve_one()
            self._flush()
            if not going_on:
                return

    def _serve_one(self) -> bool:
        try:
            received = wire.receive(self._sock)
        except wire.Truncated as lost:
            if lost.number:
                self._post(("failed", lost.number, errno.EMFILE, "the guard has too many open files"))
            return True
        if received is None:
            return False
        (kind, *fields), fds = received
        if kind == "signal":
            self._signal(*fields)
        elif kind == "file":
            (self._files.add if fields[0] else self._files.discard)(tuple(fields[1:]))
        elif kind == "preload":
            self._import(*fields)
        else:
            (self._spawn if kind == "exec" else self._fork)(fields, fds)
        return True

    def _import(self, name: str) -> None:
        """Load what children will need. If that starts a thread we may not fork any more: another guard must."""
        try:
            _preload(name)
        except RuntimeError:
            with contextlib.suppress(OSError):
                wire.send(self._sock, wire.encode(("broken", traceback.format_exc())))
            reap.kill_all()
            os._exit(1)
        gc.collect()
        gc.freeze()

    def _spawn(self, fields: list[Any], fds: list[int]) -> None:
        request, *rest = fields
        line, *others = fds
        try:
            pid = spawning.spawn(line, others, *rest)
        except OSError as error:
            os.close(line)
            self._post(("failed", request, error.errno, error.strerror, error.filename))
        else:
            self._lines[pid] = line
            self._post(("started", request, pid))
        for fd in others:
            os.close(fd)

    def _fork(self, fields: list[Any], fds: list[int]) -> None:
        request, *rest = fields
        line, *others = fds
        try:
            pid = os.fork()
        except OSError as error:
            os.close(line)
            self._post(("failed", request, error.errno, f"the guard can't fork: {error.strerror}"))
        else:
            if pid == 0:
                self._sock.detach()
                newborn.live(rest, line, others, ARENA_FD)
            with contextlib.suppress(OSError):  # the child has done so itself, and perhaps exec'd or ended since
                os.setpgid(pid, pid)
            self._lines[pid] = line
            self._post(("started", request, pid))
        for fd in others:
            os.close(fd)

    def sweep(self) -> None:
        """Remove the files that were the supervisor's own and have no meaning without it: its sockets."""
        for path, device, inode in self._files:
            with contextlib.suppress(OSError):
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (device, inode):  # else it was removed, and another has its name
                    os.unlink(path)

    def _signal(self, pid: int, number: int) -> None:
        if pid in self._lines:  # not reaped, so the number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
            if number == signal.SIGSTOP:
                self._held.add(pid)
            elif number == signal.SIGCONT:
                self._held.discard(pid)

    def _reap(self) -> None:
        ended = []
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            pid = found.si_pid
            if found.si_code not in _ENDS:
                with contextlib.suppress(ChildProcessError):  # looked at no more; it may go on, or end, meanwhile
                    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
                if pid in self._lines and pid not in self._held:
                    self._post(("stopped", pid, found.si_status))
                continue
            self._held.discard(pid)
            line = self._lines.pop(pid, None)
            if line is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # while the zombie holds the number it is nobody else's group
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
    """SIGCHLD is written to the wake-up pipe only when it has a handler."""


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception:
        return  # whoever needs it in a child gets the error there, with its traceback
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"importing {name} started a thread; a process with threads can't be forked safely")
