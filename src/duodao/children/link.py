"""One guard process as its supervisor sees it: the socket, the thread that reads it, the children it has.

States: alive (forks are answered), then dead (end-of-file, or `stop`), never back; `guard.py` makes the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from duodao import arena
from duodao.children import boot, lifeline, reap, wire
from duodao.children.child import Child, Lost, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duodao.children.child import Started

PRELOAD = ("pickle", "cloudpickle", "duodao.lanes.worker")
"""What the guard imports before it forks: what a worker needs, and nothing that starts a thread (numpy does)."""
PRELOAD_IF_USED = ("duodao.dropin.multiprocessing.process",)
"""Also imported there by programs that have it themselves by then: each of their processes is 30 ms sooner ready."""
_GONE_WITHIN = 1.0  # seconds that killed children are waited for, when nobody is left who reaps them


def _preload() -> tuple[str, ...]:
    return (*PRELOAD, *(name for name in PRELOAD_IF_USED if name in sys.modules))


class _Request:
    """A start that was asked for. then: called with the child and the error, if any, in place of a wait for `done`."""

    __slots__ = ("child", "done", "error", "then")

    def __init__(self, child: Child, then: Started | None) -> None:
        self.child = child
        self.then = then
        self.done = threading.Event()
        self.error: Exception | None = None

    def answer(self, error: Exception | None = None) -> None:
        if error is not None:
            self.child.kill()  # drops its lifeline
        self.error = error
        self.done.set()
        if self.then is not None:
            self.then(self.child, error)


class Link:
    """A guard process. Made under the lock of `guard.py`, which every fork waits for: none copies it half made."""

    def __init__(self, died: Callable[[Link], None]) -> None:
        """Start the process, without waiting for it. `died(self)` is called, once, when it can't be used any more."""
        self.marker = f"{os.getpid()}-{os.urandom(8).hex()}"
        self.broken = ""
        self._died = died
        self._children: dict[int, Child] = {}
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count(1)
        self._news: deque[tuple[Child, int | None]] = deque()  # the exit code, or None: it was stopped
        self._lock = threading.Lock()  # of the fields above and below
        self._sending = threading.Lock()  # held while the socket is used or closed: else its number may be another's
        self._dead = False
        self._stopping = False
        self._preloaded: set[str] = set()
        self._sock, theirs = _socket_pair()
        self._thread = threading.Thread(target=self._read, name="duodao-guard-reader", daemon=True)
        try:
            self.pid = boot.spawn(theirs.fileno(), arena.get().fd, self.marker)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead already: the reader will find out
                wire.send(self._sock, wire.encode(("hello", boot.search_path(), _preload())))
            theirs.close()
            self._thread.start()
        except BaseException:
            theirs.close()
            self._sock.close()
            raise

    def start(self, kind: str, fields: tuple[Any, ...], fds: Sequence[int], then: Started | None = None) -> Child:
        """Have a child made and wait until it has a number, or not. Lost: see there. OSError: none could be made."""
        line = lifeline.Lifeline()
        request = _Request(Child(self, line), then)
        number = next(self._numbers)
        try:
            with self._lock:
                self._requests[number] = request
            self._send((kind, number, *fields), [line.reader, *fds], number)
            line.sent()
            if then is None:
                self._await(request)
        except BaseException:  # an interrupt, too: nobody holds this child, so it must not live
            line.sent()
            line.drop()
            with self._lock:
                self._requests.pop(number, None)
            raise
        return request.child

    def preload(self, name: str) -> None:
        """Have the guard import a module before what it forks next."""
        if name not in self._preloaded:
            self._preloaded.add(name)
            with contextlib.suppress(Lost):  # the next guard will be asked, too
                self._send(("preload", name), (), 0)

    def signal(self, pid: int, number: int) -> None:
        """Have the guard signal a child: it is the one who knows whether the number is still the child's."""
        with contextlib.suppress(Lost):  # then its children are being killed
            self._send(("signal", pid, number), (), 0)

    def own(self, path: bytes, device: int, inode: int, *, owned: bool) -> None:
        """Have the guard remove this file when the supervisor has ended, or no longer."""
        with contextlib.suppress(Lost):
            self._send(("file", owned, path, device, inode), (), 0)

    def stop(self) -> None:
        """End the guard with all that it has, and wait until it is gone."""
        self._stopping = True
        with self._sending, contextlib.suppress(OSError):
            if not self._dead:
                self._sock.shutdown(socket.SHUT_WR)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self) -> None:
        """In a forked copy: the guard is the original's. Our copy of the socket is closed, nothing else."""
        self._lock = self._sending = threading.Lock()  # a thread that exists no more may have held them
        self._dead = True
        self._sock.close()
        self._children.clear()
        self._requests.clear()

    def _send(self, message: wire.Message, fds: Sequence[int], number: int) -> None:
        body = wire.encode(message)
        with self._sending:
            if self._dead:
                raise Lost
            try:
                wire.send(self._sock, body, fds, number=number)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Lost from error

    def _await(self, request: _Request) -> None:
        if threading.current_thread() is not self._thread:
            request.done.wait()
        while not request.done.is_set():  # a callback forks: the answer is for this very thread to read
            if not self._read_one():
                self._died(self)
                raise Unanswered
        if request.error is not None:
            raise request.error

    def _read(self) -> None:
        while self._read_one():
            self._announce()
        self._bury()

    def _read_one(self) -> bool:
        received = wire.receive(self._sock)
        if received is None:
            return False
        kind, *fields = received[0]
        if kind == "started":
            number, pid = fields
            with self._lock:
                request = self._requests.pop(number, None)
                if request is not None:  # else its asker was interrupted, and it dies by its lifeline
                    request.child.pid = pid
                    self._children[pid] = request.child
                    request.answer()
        elif kind == "failed":
            number, code, text, *what = fields
            with self._lock:
                request = self._requests.pop(number, None)
            if request is not None:
                request.answer(OSError(code, text, *(os.fsdecode(name) for name in what if name is not None)))
        elif kind == "stopped":
            child = self._children.get(fields[0])
            if child is not None:
                child.stop_signal = fields[1]
                self._news.append((child, None))
        elif kind == "ended":
            with self._lock:
                known = [(self._children.pop(pid, None), code) for pid, code in fields[0]]
            self._news.extend((child, code) for child, code in known if child is not None)
        elif kind == "broken":
            self.broken = fields[0]
        return True

    def _announce(self) -> None:
        """Tell of deaths and stops, from a queue: a callback that forks reads on, and would nest without end."""
        while self._news:
            child, code = self._news.popleft()
            for callback in child.stop_callbacks if code is None else child.ended(code):
                _call(callback, child)

    def _bury(self) -> None:
        """The guard is gone: end what it had, tell everyone, and make room for the next one."""
        self._died(self)
        with self._sending:
            self._dead = True
            self._sock.close()
        with contextlib.suppress(ChildProcessError):  # the program waits for any child, or ignores SIGCHLD
            os.waitpid(self.pid, 0)
        with self._lock:
            children, self._children = self._children, {}
            requests, self._requests = self._requests, {}
        if not self._stopping:
            self._kill(children)
        self._news.extend((child, -signal.SIGKILL) for child in children.values())
        for request in requests.values():
            request.answer(Unanswered())
        self._announce()

    def _kill(self, children: dict[int, Child]) -> None:
        """What a guard that died alone has left: groups by their lifelines, those outside of them by the marker."""
        watches = reap.watch(pid for pid in children if _leads(pid))
        for child in children.values():
            child.kill()
        reap.await_deaths(watches, _GONE_WITHIN)
        reap.kill_marked(f"{reap.MARKER}={self.marker}")


def _call(callback: Callable[[Child], object], child: Child) -> None:
    """A callback that raises must not end the thread on which all the others depend."""
    try:
        callback(child)
    except Exception as error:
        where = threading.current_thread()
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, where)))


def _leads(pid: int) -> bool:
    """Is this still our child? A stranger that got its number since would rarely lead a group."""
    try:
        return os.getpgid(pid) == pid
    except OSError:
        return False


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = (socket.socket(fileno=lifeline.lift(end.detach())) for end in pair)
    return ours, theirs
