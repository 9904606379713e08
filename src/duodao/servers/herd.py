"""Several processes that serve one address, kept alive.

    Server ── Herd ── one thread ══ control sockets ══► entry.py in each process, forked by the guard
                 └─ listening sockets: one per process (SO_REUSEPORT), all kept open here

A process that dies is replaced on its own socket: connections the kernel had queued there are served by the next one.

Invariants:
  1. The thread waits for nobody but in `select`: what a process doesn't read is kept, up to CROWDED bytes; one that
     still doesn't read is killed and replaced.
  2. State belongs to the thread. Other threads post a callable, ring the bell and wait for an Event.
  3. A process ends in one place, `_gone`, which hears of it from the guard; an end of file says nothing, a grandchild
     may hold the socket.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from duodao.children import guard
from duodao.errors import Broken, NotPicklable
from duodao.lanes import forward, wire
from duodao.lanes.base import Work
from duodao.lanes.eventloop import launch as launch_thread
from duodao.lanes.launch import Launch
from duodao.servers import entry, listening
from duodao.servers.figures import Figures
from duodao.servers.options import Options
from duodao.servers.reference import reference

if TYPE_CHECKING:
    from duodao.children.child import Child

IN_A_ROW = 5
"""Processes that may die one after the other, each within YOUNG seconds of its start, before the server gives up."""
YOUNG = 5.0
"""Seconds."""
MERCY = 2.0
"""Seconds over `grace` until a process that should have drained is killed, and that one has to tell its figures."""
CROWDED = 64 << 20
"""Bytes of broadcasts that a process may leave unread."""
_CHUNK = 1 << 20


class _Member:
    """One process, and its end of the control socket."""

    def __init__(self, child: Child, control: socket.socket, buffer: bytearray) -> None:
        self.child = child
        self.control = control
        self.reader = wire.Reader(control.fileno(), buffer)
        self.unsent: deque[memoryview] = deque()
        self.size = 0
        self.born = time.monotonic()
        self.ready = False
        self.figures = Figures(pid=child.pid)
        self.failure: BaseException | None = None


class Herd:
    """Serves `sockets`, one process each. What Server does for processes > 1; every method from any thread.

    error: why it has ended by itself, or None. It closes the sockets when it ends.
    """

    def __init__(self, work: Any, options: Options, sockets: Sequence[socket.socket]) -> None:
        self.error: BaseException | None = None
        self._options = options
        self._sockets = sockets
        self._work = work
        self._posted: deque[Callable[[], None]] = deque()
        self._bell, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._buffer = bytearray(_CHUNK)
        self._members: list[_Member | None] = [None] * len(sockets)
        self._before = [Figures() for _ in sockets]
        self._asked: list[tuple[set[_Member], threading.Event]] = []
        self._deaths = 0
        self._deadline: float | None = None
        self._ending = False
        self._up = threading.Event()
        self._over = threading.Event()
        self._bells = threading.Lock()
        self._select = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._main, name="duodao-herd", daemon=True)

    def start(self) -> None:
        """Returns when every process accepts; raises what kept one of them from it."""
        work = Work(reference(self._work), getattr(self._work, "__name__", "the handler"))
        try:
            self._launch = Launch(work, len(self._sockets))
        except NotPicklable as error:
            self._release()  # there is no thread yet that would
            raise NotPicklable(
                f"{error}; with processes={len(self._sockets)} what is served must be a function, or an object that "
                "a module holds under a name", error.what,
            ) from error  # fmt: skip
        self._select.register(self._bell, selectors.EVENT_READ)
        try:
            launch_thread(self._thread)
            self._up.wait()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if self.error is not None:
            self.wait()
            raise self.error

    @property
    def accepting(self) -> bool:
        """All processes have been ready."""
        return self._up.is_set() and self.error is None

    def pids(self) -> list[int]:
        """The numbers of the processes that serve now."""
        return [member.child.pid for member in list(self._members) if member is not None and member.ready]

    def figures(self) -> list[Figures]:
        """One per socket; a process that took another's place counts on from that one's last figures.

        One that is too busy to answer within a second has those of the last time.
        """
        told = threading.Event()
        if not self._over.is_set() and threading.current_thread() is not self._thread:
            self._post(lambda: self._ask(told))
            told.wait(1.0)
        return [
            (member.figures + before) if member is not None else before
            for member, before in zip(list(self._members), self._before, strict=True)
        ]

    def drain(self) -> None:
        """Stop accepting, let calls in flight end within options.grace; returns when all processes have ended."""
        self._post(self._begin_draining)
        self.wait()

    def close(self) -> None:
        """End all processes now."""
        self._post(self._kill)
        self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all processes have ended: after drain, close, or by `error`."""
        if not self._over.wait(timeout):
            return False
        if self._thread.ident is not None:
            self._thread.join()
        return True

    # -- any thread ----------------------------------------------------------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        with self._bells:
            if self._over.is_set():
                return
            self._posted.append(call)
            try:
                os.write(self._ring, b"!")
            except BlockingIOError:
                return  # it has been rung often enough

    # -- the herd's thread ---------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            for slot in range(len(self._sockets)):
                self._fork(slot)
            while any(self._members) or not self._ending:
                self._turn()
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._release()

    def _turn(self) -> None:
        rest = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        for key, events in self._select.select(rest):
            if key.data is None:
                os.read(self._bell, 4096)
            else:
                self._attend(key.data, events)
        while self._posted:
            self._posted.popleft()()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._kill()

    def _attend(self, member: _Member, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(member)
        if events & selectors.EVENT_READ and not self._read(member):
            self._select.unregister(member.control)

    def _read(self, member: _Member) -> bool:
        """Take what has come; False at the end."""
        try:
            for frame in member.reader.read():
                self._take(member, frame)
        except BlockingIOError:
            return True
        except (EOFError, ConnectionError):
            return False
        return True

    def _take(self, member: _Member, frame: wire.Frame) -> None:
        if frame.kind == wire.OUTPUT:
            forward.emit_output(frame.seq, str(frame.body, "utf-8", "surrogatepass"))
        elif frame.kind == wire.LOG:
            forward.emit_record(pickle.loads(frame.body))
        elif frame.kind == wire.READY:
            member.ready = True
            if all(other is not None and other.ready for other in self._members):
                self._up.set()
        elif frame.kind == entry.FIGURES:
            member.figures = pickle.loads(frame.body)
            self._heard_from(member)
        elif frame.kind == entry.BROADCAST:
            for other in self._members:
                if other is not None and other is not member and other.ready:
                    self._send(other, entry.BROADCAST, meta=frame.meta, body=bytes(frame.body))
        elif frame.kind in (wire.UNLOADED, wire.FATAL):
            member.failure = wire.load_error(bytes(frame.body))
            again = frame.kind == wire.UNLOADED and not self._up.is_set() and self._launch.by_value(member.failure)
            if not again and not self._up.is_set():
                self._give_up(member.failure)

    # -- processes -----------------------------------------------------------------------------------------------------

    def _fork(self, slot: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            fds = [theirs.fileno(), self._sockets[slot].fileno()]
            child = guard.fork("duodao.servers.entry:main", arg=pickle.dumps(self._options), fds=fds)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        member = self._members[slot] = _Member(child, ours, self._buffer)
        self._select.register(ours, selectors.EVENT_READ, member)
        for piece in self._launch.frame:
            self._queue(member, piece)
        self._write(member)
        if self._ending:
            self._send(member, entry.DRAIN)
        child.on_exit(lambda _: self._post(lambda: self._gone(slot, member)))

    def _gone(self, slot: int, member: _Member) -> None:
        if member.control in self._select.get_map():
            while self._read_rest(member):
                pass
            self._select.unregister(member.control)
        member.control.close()
        self._heard_from(member)
        self._members[slot] = None
        self._before[slot] = dataclasses.replace(member.figures + self._before[slot], connections=0)
        if self._ending:
            return
        code = member.child.exitcode
        if code == 0:  # it was asked to drain, by its own SIGTERM
            self._fork(slot)
            return
        young = time.monotonic() - member.born < YOUNG
        self._deaths = self._deaths + 1 if young else 1
        if self._deaths >= IN_A_ROW:
            self._give_up(_too_many(member))
            return
        self._fork(slot)

    def _read_rest(self, member: _Member) -> bool:
        """Its last words: True while there may be more."""
        try:
            for frame in member.reader.read():
                self._take(member, frame)
        except (BlockingIOError, EOFError, ConnectionError):
            return False
        return True

    def _give_up(self, error: BaseException) -> None:
        self.error = self.error or error
        self._kill()

    def _begin_draining(self) -> None:
        if self._ending:
            return
        self._ending = True
        self._deadline = time.monotonic() + self._options.grace + MERCY
        for sock in self._sockets:
            listening.shut(sock)
        for member in self._members:
            if member is not None:
                self._send(member, entry.DRAIN)

    def _kill(self) -> None:
        self._ending = True
        self._deadline = None
        for member in self._members:
            if member is not None:
                member.child.kill()

    def _release(self) -> None:
        """The end: of everything, if the thread itself failed."""
        for slot, member in enumerate(self._members):
            if member is not None:
                member.child.kill()
                member.control.close()
                self._members[slot] = None
        for sock in self._sockets:
            sock.close()
        with self._bells:
            self._over.set()
            for fd in (self._bell, self._ring):
                os.close(fd)
        self._select.close()
        for _, told in self._asked:
            told.set()
        launched = getattr(self, "_launch", None)
        if launched is not None:
            launched.release()
        self._up.set()

    # -- what is said to them ------------------------------------------------------------------------------------------

    def _ask(self, told: threading.Event) -> None:
        asked = {member for member in self._members if member is not None and member.ready}
        if not asked:
            told.set()
            return
        self._asked.append((asked, told))
        for member in asked:
            self._send(member, entry.ASK)

    def _heard_from(self, member: _Member) -> None:
        for asked, told in self._asked:
            asked.discard(member)
            if not asked:
                told.set()
        self._asked = [(asked, told) for asked, told in self._asked if asked]

    def _send(self, member: _Member, kind: int, **fields: Any) -> None:
        for piece in wire.parts(kind, **fields):
            self._queue(member, piece)
        if member.size > CROWDED:
            member.child.kill()
            return
        self._write(member)

    @staticmethod
    def _queue(member: _Member, piece: bytes) -> None:
        member.unsent.append(memoryview(piece))
        member.size += len(piece)

    def _write(self, member: _Member) -> None:
        """Send what it takes now; the rest when it has room."""
        try:
            while member.unsent:
                sent = member.control.send(member.unsent[0])
                member.size -= sent
                if sent < len(member.unsent[0]):
                    member.unsent[0] = member.unsent[0][sent:]
                else:
                    member.unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it has ended: `_gone` follows
            member.unsent.clear()
        if member.control in self._select.get_map():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.unsent else 0)
            self._select.modify(member.control, wanted, member)


def _too_many(member: _Member) -> Broken:
    code = member.child.exitcode
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    error = Broken(
        f"{IN_A_ROW} processes of the server died one after the other, each within {YOUNG:.0f} s of its start; the "
        f"last with {ended}. The server has ended; what they printed stands above"
    )
    error.__cause__ = member.failure
    return error
