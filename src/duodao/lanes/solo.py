"""What runs in the process of one task: the call, then the end of its threads, then the exit that Python would make.

It is forked from the guard with one pipe, on which it sends what the call prints and logs, how it ended, and, while
the main thread is blocked in one of our primitives for longer than MOMENT, on what.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import marshal
import os
import pickle
import queue
import signal
import sys
import threading
from time import monotonic
from typing import Any

from duodao import descriptors
from duodao.clock import SYSTEM
from duodao.cost import proc
from duodao.lanes import wire
from duodao.lanes.forward import LineStream, LogHandler, apply_levels
from duodao.lanes.single import users
from duodao.lanes.wire import Raised, dump_error, dumps
from duodao.lanes.worker import adopt
from duodao.sync import graph
from duodao.sync.units import reach

RESULT, RAISED, LEFT, BLOCKED = 30, 31, 32, 33
"""Kinds of frames, besides wire.OUTPUT, wire.LOG and wire.UNLOADED. How it ended: a value, an error, sys.exit."""
_CTRL_C = "duodao.dropin.multiprocessing.interrupt"
"""Its handler passes Ctrl-C on and raises KeyboardInterrupt, as the default one does."""
MOMENT = 0.05
"""Seconds. Waits that end sooner are not told: each of them would cost both sides a system call."""


def main(arg: bytes, fds: list[int]) -> int:
    """The entry that the guard calls. arg: what `apart.Packed` made; fds: the pipe's write end, what travels along."""
    faulthandler.enable(2)
    cwd, path, argv, environ, levels, name, body = marshal.loads(arg)  # noqa: S302 - our own supervisor wrote it
    solo = _Solo(fds[0], levels)
    try:
        adopt(cwd, path, argv, environ)
        with descriptors.arrived(fds[1:]):
            function, args, kwargs = pickle.loads(body)
    except Raised as error:
        solo.send(wire.UNLOADED, body=dump_error(error))
        return 0
    del body, arg
    threading.current_thread().name = name
    herald = _Herald(solo)
    graph.watch(threading.get_ident(), herald.seen)
    try:
        return solo.run(lambda: function(*args, **kwargs))
    finally:
        graph.unwatch(threading.get_ident())


class _Solo:
    def __init__(self, pipe: int, levels: dict[str, int]) -> None:
        self._pipe = pipe
        self._writing = threading.RLock()
        self._outbox: list[list[Any]] = []  # the frame that is being written, and those that came meanwhile
        self._torn = False  # what follows could not be read: the exit code has to say how it ended
        self._streams = (LineStream(1, self._print), LineStream(2, self._print))
        self._logs = LogHandler(self._log)
        sys.stdout, sys.stderr = self._streams
        apply_levels(levels, self._logs)
        for stream in self._streams:
            atexit.register(stream.finish)  # first registered, so last called
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A child of ours must not write frames of its own into our pipe."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.root.removeHandler(self._logs)
        with contextlib.suppress(OSError):
            os.close(self._pipe)

    def run(self, call: Any) -> int:
        """Call it, tell how it ended, and wait for the threads it has started, as Python does at its end."""
        code = 0
        try:
            value = call()
        except SystemExit as leaving:
            code = self._exit(leaving.code)
        except BaseException as error:
            code = 1
            self.send(RAISED, body=dump_error(error))
        else:
            code = self._result(value)
            del value
        _join_threads()
        return code

    def _result(self, value: Any) -> int:
        try:
            body = dumps(value)
        except Raised as error:
            self.send(RAISED, body=dump_error(wire.not_picklable(value, "result", error)))
            return 1
        self.send(RESULT, body=body)
        return 0

    def _exit(self, code: object) -> int:
        """As Python does: a number is the exit code, a text goes to stderr."""
        said: int | str | None
        if code is None or isinstance(code, int):
            said = None if code is None else int(code)  # an IntEnum, say, can't travel like that
            number = (said or 0) & 0xFF
        else:
            said, number = code[:] if isinstance(code, str) else wire.shown(code), 1
            with contextlib.suppress(Exception):  # stderr may be closed
                print(code, file=sys.stderr)
        self.send(LEFT, meta=(number, said))
        return number

    def send(self, kind: int, seq: int = 0, **fields: Any) -> None:
        """Write one frame."""
        pieces: list[Any] = list(wire.parts(kind, seq, **fields))
        with self._writing:
            self._outbox.append(pieces)
            if len(self._outbox) > 1:  # a signal handler that prints, in the middle of a frame: afterwards
                return
            try:
                while self._outbox and not self._torn:
                    wire.write_all(self._pipe, self._outbox[0])
                    self._outbox.pop(0)
            except BaseException:  # a signal handler that raises: how much was written is unknown
                self._torn = True
                raise

    def _print(self, number: int, text: str) -> None:
        self.send(wire.OUTPUT, number, body=text.encode("utf-8", "surrogatepass"))

    def _log(self, record: bytes) -> None:
        self.send(wire.LOG, body=record)


def _join_threads() -> None:
    """Wait for all threads that are no daemons; also those of executors are told to end, where Python has the means."""
    shutdown = getattr(threading, "_shutdown", None)
    if shutdown is not None:
        shutdown()
        return
    while True:
        rest = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
        if not rest:
            return
        rest[0].join()


class _Herald:
    """Tells the supervisor of waits that last. Its thread is made by the first wait, and sleeps while there is none.

    Armed, it looks at the main thread's wait within MOMENT, so many short waits ring it once. A wait that somebody else
    here may end is looked at again each time its age has doubled: who could end it may have gone in silence.
    """

    def __init__(self, solo: _Solo) -> None:
        self._solo = solo
        self._lock = threading.Lock()
        self._wait: graph.Wait | None = None
        self._told: graph.Wait | None = None
        self._stuck = False
        self._armed = False
        self._thread: threading.Thread | None = None
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._owner = os.getpid()

    def seen(self, wait: graph.Wait | None) -> None:
        """The main thread begins a wait, or ends one."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._wait = wait
            if wait is None:
                if self._told is not None:
                    self._told = None
                    self._solo.send(BLOCKED)
                return
            if self._armed:
                return
            self._armed = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="duodao-herald", daemon=True)
                self._thread.start()
            self._bell.put(True)

    def _main(self) -> None:
        delay = None
        while True:
            SYSTEM.get(self._bell, delay)
            delay = self._look()

    def _look(self) -> float | None:
        """Tell of the present wait if it lasts; seconds until the next look, None: when the next wait begins."""
        with self._lock:
            wait = self._wait
            self._armed = False
            if wait is None:
                return None
            age = monotonic() - wait.since
            if wait is not self._told and age < MOMENT:
                self._armed = True
                return MOMENT - age
            stuck, stacks, reaches = _all_stuck(wait, threading.current_thread())
            if wait is not self._told or stuck != self._stuck:
                self._told, self._stuck = wait, stuck
                self._solo.send(BLOCKED, meta=(wait.on.describe(), stuck, wait.number, stacks, reaches))
            return None if stuck or wait.timed else age


def _all_stuck(
    wait: graph.Wait, own: threading.Thread
) -> tuple[bool, tuple[tuple[str, graph.Stack], ...], tuple[str, ...]]:
    """Can only another process end what this one waits for? And where its threads stand, and which others that are.

    No: a thread that runs, a child process, a signal handler or a time-out may.
    """
    stuck = not wait.timed and not handlers() and not offspring() and not native()
    stacks = []
    reaches = {reach(wait.on)}
    for thread in threading.enumerate():
        if thread is own or thread.ident is None:
            continue
        other = graph.waiting(thread.ident)
        stuck = stuck and other is not None and not other.timed and other.doom is None
        on = "runs" if other is None else f"waits for {other.on.describe()}"
        if other is not None:
            reaches.add(reach(other.on))
        stacks.append((f"thread {thread.name!r} of process {os.getpid()} {on}", users(graph.stack_of(thread.ident))))
    return stuck, tuple(stacks), tuple(sorted(reaches))


def native() -> bool:
    """Has this process threads that are not Python's and that could call into it (audio, a window system)?

    One that sleeps in a futex, as idle threads of a numerical library do, waits for another thread like ours.
    """
    known = {thread.native_id for thread in threading.enumerate()}
    try:
        for tid in set(proc.threads(os.getpid())) - known:
            times = proc.times(os.getpid(), tid)
            if times.letter != "S" or not times.wchan.startswith("futex"):
                return True
    except (OSError, ValueError):  # one has just ended: the next look will tell; or there is no /proc
        return sys.platform == "linux"
    return False


def handlers() -> bool:
    """Has this program signal handlers of its own? Each of them could end a wait.

    Ctrl-C's default one, and that of asyncio.run, end the program instead.
    """
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler and not _of_asyncio(handler):
            if getattr(handler, "__module__", "") == _CTRL_C:
                continue
            return True
    return False


def _of_asyncio(handler: Any) -> bool:
    method = getattr(handler, "func", handler)  # a partial of Runner._on_sigint
    return type(getattr(method, "__self__", None)).__module__ == "asyncio.runners"


def offspring(pid: int | str = "self") -> set[int]:
    """The direct children of a process, whichever of its threads made them."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found.update(int(each) for each in file.read().split())
    return found
