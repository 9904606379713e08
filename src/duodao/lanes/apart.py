"""One call in a process of its own, as its supervisor holds it; `solo.py` is what runs there.

    Process ── guard.fork(call as bytes) ──► solo
       ▲                                      │ output, log records, what it is blocked on, how it ended
       └── Exchange: one thread that reads ◄──┘

The end of a process is what the guard reports, not the end of its pipe: a grandchild may hold that open. What is in the
pipe by then is read first, since it may be the result.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import marshal
import os
import pickle
import select
import sys
import termios
import threading
from collections import deque
from typing import TYPE_CHECKING

from duodao import descriptors, pickling
from duodao.children import guard
from duodao.children.lifeline import lift
from duodao.errors import RemoteError, WorkerDied
from duodao.lanes import forward, solo, wire
from duodao.lanes.base import Work
from duodao.lanes.eventloop import launch
from duodao.lanes.foreign import said
from duodao.lanes.launch import culprit
from duodao.lanes.single import Blocked, Call, Ending, Noted, Over, exited
from duodao.sync import graph

if TYPE_CHECKING:
    from duodao.children.child import Child

_BUFFER = 1 << 18
_PRELOADED = (
    "duodao.lanes.solo", "duodao.sync.lock", "duodao.sync.signal", "duodao.sync.shared", "duodao.channel.shared",
    "duodao.channel.memory",
)  # fmt: skip
"""What a task is likely to be sent, if it is loaded here: the guard imports it once, and the processes need not."""
_LOG = logging.getLogger("duodao")


class Packed:
    """A call as bytes, with where the caller is: directory, environment, import path, log levels.

    NotPicklable when the function, the object or an argument can't travel.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._valued = False
        self.fds: list[int] = []  # those that travel with it: the caller's, open until it has started
        try:
            with descriptors.travelling() as self.fds:
                body = wire.dumps((call.function, call.args, dict(call.kwargs)))
        except wire.Raised as error:
            raise wire.not_picklable(call.function, "task", error) from error
        argv = [str(word) for word in sys.argv]
        path = [str(entry) for entry in sys.path]
        self._about = (os.getcwd(), path, argv, dict(os.environ), forward.log_levels(), call.name)
        self.arg = marshal.dumps((*self._about, body))

    def by_value(self, error: BaseException) -> bool:
        """Pack again, with the module that the process could not import in it; False when that was tried."""
        module = culprit(error, Work(self.call.function, self.call.name))
        if self._valued or module is None:
            return False
        self._valued = True
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)
        try:
            with descriptors.travelling() as self.fds:
                body = pickling.by_value((self.call.function, self.call.args, dict(self.call.kwargs)))
        except wire.Raised:
            return False
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        self.arg = marshal.dumps((*self._about, body))
        return True


class Process:
    """The call in a process of its own, which can't outlive this one and doesn't get its Ctrl-C."""

    def __init__(self, packed: Packed, over: Over, noted: Noted, exchange: Exchange) -> None:
        self.unit: graph.Unit | None = None
        self.pid: int | None = None
        self.fd = -1
        self.child: Child | None = None
        self._packed = packed
        self._over = over
        self._noted = noted
        self._exchange = exchange
        self._asked = False
        self._reader: wire.Reader | None = None
        self._blocked: Blocked | None = None
        self._ending: Ending | None = None
        self._unloaded: BaseException | None = None

    @property
    def native_id(self) -> int | None:
        """That of its main thread."""
        return self.pid

    def start(self) -> None:
        reader, writer = (lift(end) for end in os.pipe())
        try:
            os.set_blocking(reader, False)
            for name in _PRELOADED:
                if name in sys.modules:
                    guard.preload(name)
            child = guard.fork("duodao.lanes.solo:main", arg=self._packed.arg, fds=[writer, *self._packed.fds])
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self.fd = reader
        self._reader = wire.Reader(reader, self._exchange.buffer)
        self.pid = child.pid
        self.unit = graph.Far(child.pid)
        self.child = child
        try:
            self._exchange.add(self)
            child.on_exit(self._exited)
        except BaseException:  # Ctrl-C: it is ended, and that is told
            child.kill()
            self._exchange.add(self)
            child.on_exit(self._exited)
            raise
        if self._asked:
            child.kill()

    def begun(self) -> bool:
        return self.child is not None

    def _exited(self, _: Child) -> None:
        self._exchange.ended(self)

    def cancel(self) -> None:
        self._asked = True
        if self.child is not None:
            self.child.terminate()

    def interrupt(self) -> None:
        """Let it have Ctrl-C."""
        if self.child is not None:
            self.child.interrupt()

    def kill(self) -> None:
        self._asked = True
        if self.child is not None:
            self.child.kill()

    def blocked(self) -> Blocked | None:
        return self._blocked

    def unread(self) -> bool:
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self.fd, termios.FIONREAD, count)
        except OSError:  # closed: it has ended
            return True
        return count[0] > 0 or not self._exchange.idle

    def join(self, seconds: float) -> None:
        """Its end was the process's."""

    # On the exchange's thread

    def read(self) -> bool | None:
        """Take a buffer of what has come; None when that is nothing, False when there will be no more."""
        assert self._reader is not None
        try:
            for frame in self._reader.read():
                self._take(frame)
        except BlockingIOError:
            return None
        except EOFError:
            return False
        except Exception as error:
            self._unreadable(error)
            return False
        return True

    def _unreadable(self, error: Exception) -> None:
        """No memory for it, or the call wrote into a descriptor that is not its own: nothing more comes from it."""
        wrapped = RemoteError(f"what task {self._packed.call.name!r} sent can't be read ({said(error)}); it was killed")
        wrapped.__cause__ = error
        self._ending = Ending(error=wrapped, code=1)
        if self.child is not None:
            self.child.kill()

    def _take(self, frame: wire.Frame) -> None:
        kind = frame.kind
        if kind == wire.OUTPUT:
            forward.emit_output(frame.seq, str(frame.body, "utf-8", "surrogatepass"))
        elif kind == wire.LOG:
            with contextlib.suppress(Exception):  # an attribute that can't be had here: the record is the smaller loss
                forward.emit_record(pickle.loads(frame.body))
        elif kind == solo.BLOCKED:
            self._blocked = None if frame.meta is None else Blocked(*frame.meta)
            if self._blocked is not None:
                self._noted(self)
        elif kind == solo.RESULT:
            self._ending = _loaded(frame.body)
        elif kind == solo.RAISED:
            self._ending = Ending(error=wire.load_error(bytes(frame.body)), code=1)
        elif kind == solo.LEFT:
            if not self._asked:  # else it left because of our SIGTERM
                number, code = frame.meta
                self._ending = exited(code, self._packed.call.name)
                self._ending.code = number
        elif kind == wire.UNLOADED:
            self._unloaded = wire.load_error(bytes(frame.body))

    def finish(self) -> None:
        """The process has ended, and all it had sent was taken."""
        assert self.child is not None
        code = self.child.exitcode or 0
        self._blocked = None
        os.close(self.fd)
        self.fd = -1
        error, self._unloaded = self._unloaded, None
        if error is not None and not self._asked and self._packed.by_value(error):
            try:
                self.start()
            except Exception as failed:
                self._over(self, Ending(error=failed, code=1))
            return
        if error is not None:
            self._ending, code = Ending(error=error, code=1), 1
        self._over(self, self._judged(code))

    def _judged(self, code: int) -> Ending:
        """What it said, or what its exit code says."""
        told = self._ending
        if told is not None and told.error is not None:
            told.code = code
            return told
        if told is not None and code == 0:
            return told
        if self._asked:
            return Ending(stopped=True, code=code)
        if code == 0:  # os._exit(0), as multiprocessing takes it
            return Ending()
        return Ending(error=WorkerDied.at(f"task {self._packed.call.name!r}", code), code=code)


def _loaded(body: memoryview | bytes) -> Ending:
    try:
        return Ending(pickle.loads(body))
    except BaseException as error:
        wrapped = RemoteError(f"the result can't be unpickled here ({said(error)})", type(error).__name__)
        wrapped.__cause__ = error
        return Ending(error=wrapped, code=1)


class Exchange:
    """Reads what an owner's processes send, in one thread that the first of them starts and `close` ends."""

    def __init__(self, name: str) -> None:
        self.buffer = bytearray(_BUFFER)
        self.idle = False  # it has taken in all that it has read
        self._inbox: deque[tuple[str, Process | None]] = deque()
        self._poll = select.poll()
        self._open: dict[int, Process] = {}
        self._woken, self._waker = (lift(end) for end in os.pipe())
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)
        self._poll.register(self._woken, select.POLLIN)
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        try:
            launch(self.thread)
        except BaseException:  # Ctrl-C: it may be running, and nobody will hold it
            if self.thread in threading.enumerate():
                self.close()
            raise

    def add(self, process: Process) -> None:
        """Read its pipe from now on."""
        self._put("add", process)

    def interrupt(self, process: Process) -> None:
        """Let it have Ctrl-C. For signal handlers: it takes no lock."""
        self._put("interrupt", process)

    def ended(self, process: Process) -> None:
        """It has ended: take what is left in its pipe, and tell."""
        self._put("ended", process)

    def close(self) -> None:
        """End the thread. All processes have ended before. Idempotent."""
        if self._woken < 0:
            return
        self._put("close", None)
        if self.thread is not threading.current_thread():
            self._over.wait()  # not `join` alone: a Ctrl-C in that marks a thread as stopped that still reads the pipe
            self.thread.join()
        woken, waker, self._woken, self._waker = self._woken, self._waker, -1, -1
        os.close(woken)
        os.close(waker)

    def _put(self, what: str, process: Process | None) -> None:
        self._inbox.append((what, process))
        with contextlib.suppress(BlockingIOError):  # full: it will be read anyway
            os.write(self._waker, b"\0")

    def _main(self) -> None:
        try:
            self._serve()
        finally:
            self._over.set()

    def _serve(self) -> None:
        while True:
            self.idle = True
            ready = self._poll.poll()
            self.idle = False
            for fd, _ in ready:
                if fd == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif self._open[fd].read() is False:
                    self._poll.unregister(fd)  # at its end poll would say so without end
                    del self._open[fd]
            while self._inbox:
                what, process = self._inbox.popleft()
                if process is None:
                    return
                try:
                    self._take(what, process)
                except Exception:  # of one process: the others still need this thread
                    _LOG.exception("the end of process %s could not be told", process.pid)

    def _take(self, what: str, process: Process) -> None:
        if process.fd < 0:  # told twice
            return
        if what == "add":
            self._open[process.fd] = process
            self._poll.register(process.fd, select.POLLIN)
        elif what == "interrupt":
            process.interrupt()
        else:
            self._end(process)

    def _end(self, process: Process) -> None:
        while process.read():
            pass
        if self._open.pop(process.fd, None) is not None:
            self._poll.unregister(process.fd)
        process.finish()
