"""What one call costs: wall time, CPU, switches, waiting for a core, and for how long it held the GIL.

`Metered(function)` is the function with a meter around it; it pickles, so a call is measured where it runs. What a call
that still runs has cost so far stands on a `Board`: 64 bytes that the measuring process shares with the one that asks.

The GIL probe: a second thread that asks for the GIL when the call begins and again at every tick, and adds up how late
it gets it. Only what is late beyond a thread's usual waking and its own waiting for a core counts.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from duodao.cost import proc

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # macOS has no figures per thread
    getrusage = None  # type: ignore[assignment]

SIZE = 64
LONG = 1_000_000
"""Nanoseconds. Only a call this long is asked how long it waited for a core: reading that takes 6 microseconds."""
NOISE = 100_000
"""Nanoseconds a thread needs to wake up when nobody is in its way: timer slack of 50, and waking."""
FIRST_TICK, LAST_TICK = 200_000, 1_000_000
_PID, _TID, _BEGAN, _CPU, _WANTED, _HELD, _HELD_BEFORE, _QUEUED = range(8)


class Cost(NamedTuple):
    """One call. Seconds; `waited` for a core; `held`: the GIL; switches as getrusage(2) counts them. Source: M2, M19.

    `held` may be below 0: what the call before was charged too much, because the probe was late for want of a core.
    """

    wall: float
    cpu: float
    held: float
    waited: float
    voluntary: int
    involuntary: int


class Sampled:
    """What a metered call returns: the value and its cost."""

    __slots__ = ("cost", "value")

    def __init__(self, value: Any, cost: Cost) -> None:
        self.value = value
        self.cost = cost

    def __reduce__(self) -> tuple[Any, ...]:
        return Sampled, (self.value, self.cost)


class Board:
    """64 bytes where a meter writes what its call has cost so far. offset: in the arena; None: in this process."""

    def __init__(self, offset: int | None = None) -> None:
        self.offset = offset
        self.words = _private() if offset is None else _in_arena(offset)

    @classmethod
    def shared(cls) -> Board:
        """A board that workers see too; `release` it. Without room in the arena only this process sees it."""
        with _taking:
            if _free:
                return cls(_free.pop())
        from duodao import arena

        try:
            return cls(arena.get().slot())
        except (MemoryError, OSError):
            return cls()

    def release(self) -> None:
        """Keep the place for the next board. It never goes back to the arena: a probe may still write there for a
        millisecond after its worker has got other work, which must not hit what a lane notes about its items."""
        offset, self.offset = self.offset, None
        if offset is not None:
            self.words[:] = _BLANK
            self.words = _private()
            with _taking:
                _free.append(offset)

    def running(self) -> Cost | None:
        """What the call that is in work has cost until now; None when there is none."""
        words = self.words
        pid, tid, began, cpu = words[_PID], words[_TID], words[_BEGAN], words[_CPU]
        if not began:
            return None
        now = time.perf_counter_ns()
        try:
            used, queued = proc.thread_cpu(pid, tid), proc.queued(pid, tid)
        except (OSError, ValueError):
            return None
        wanted = words[_WANTED]
        held = words[_HELD] - words[_HELD_BEFORE] + (max(0, now - wanted - NOISE) if wanted else 0)
        wall = now - began
        waited = max(0.0, min(queued - words[_QUEUED] / 1e9, wall / 1e9))
        return Cost(wall / 1e9, max(0.0, used - cpu / 1e9), min(held, wall) / 1e9, waited, 0, 0)


_free: list[int] = []
_taking = threading.Lock()
_BLANK = memoryview(bytes(SIZE)).cast("q")


def _private() -> memoryview[int]:
    return memoryview(bytearray(SIZE)).cast("q")


def _in_arena(offset: int) -> memoryview[int]:
    from duodao import arena  # only where another process looks on: it is not there on every lane

    return arena.get().view(offset, SIZE).cast("q")


class Metered:
    """A function with a meter around it: returns Sampled. Its exceptions pass; what such a call cost is not known."""

    def __init__(self, function: Callable[..., Any], board: Board) -> None:
        self.function = function
        self.board = board
        self._meters: dict[int, Meter] = {}
        # What a worker can't import is found by the function's module, not by ours.
        self.__module__ = getattr(function, "__module__", None) or __name__

    def __repr__(self) -> str:
        return repr(self.function)

    def __reduce__(self) -> tuple[Any, ...]:
        return _metered, (self.function, self.board.offset)

    def __call__(self, *args: Any, **kwargs: Any) -> Sampled:
        ident = _thread.get_ident()
        meter = self._meters.get(ident)
        if meter is None:
            meter = self._meters[ident] = Meter(self.board.words)
        try:
            return meter.call(self.function, args, kwargs)
        except BaseException as error:
            BaseException.with_traceback(error, _without_us(error.__traceback__))  # its class may be frozen
            raise

    def close(self) -> None:
        """End the probes. A worker that gets other work drops its Metered instead."""
        meters, self._meters = self._meters, {}
        for meter in meters.values():
            meter.probe.stop()

    def __del__(self) -> None:
        self.close()


def _without_us(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the user's own frame on: the meter is nobody's business."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _metered(function: Callable[..., Any], offset: int | None) -> Metered:
    return Metered(function, Board(offset))


class Meter:
    """Measures the calls of one thread."""

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words
        self.tid = threading.get_native_id()
        self.probe = Probe(words)
        self.queued = proc.queued(os.getpid(), self.tid)
        self.long = True
        self.floor = (0, 0)
        empty = [self._timed(_nothing, (), {})[1:] for _ in range(9)]
        self.floor = (min(wall for wall, _ in empty), min(cpu for _, cpu in empty))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sampled:
        """Run it and measure it."""
        words = self.words
        if self.long:  # what it waited between two calls is not this call's; after short ones nobody waited for long
            self.queued = proc.queued(os.getpid(), self.tid)
        voluntary, involuntary = _switches()
        held = self.probe.enter()
        words[_PID], words[_TID], words[_HELD_BEFORE] = os.getpid(), self.tid, held
        words[_QUEUED] = int(self.queued * 1e9)
        words[_CPU] = time.thread_time_ns()
        words[_BEGAN] = time.perf_counter_ns()
        try:
            value, wall, cpu = self._timed(function, args, kwargs)
        finally:
            held = self.probe.leave() - held
            if words[_TID] == self.tid:  # a given-up call must not erase the one that came after it
                words[_BEGAN] = 0
        waited = 0.0
        self.long = wall >= LONG
        if self.long:
            queued = proc.queued(os.getpid(), self.tid)
            waited, self.queued = queued - self.queued, queued
        after = _switches()
        return Sampled(
            value, Cost(wall / 1e9, cpu / 1e9, held / 1e9, waited, after[0] - voluntary, after[1] - involuntary)
        )

    def _timed(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int, int]:
        """(value, wall, CPU) in nanoseconds, less what measuring them takes."""
        cpu = time.thread_time_ns()
        began = time.perf_counter_ns()
        value = function(*args, **kwargs)
        wall = time.perf_counter_ns() - began
        cpu = time.thread_time_ns() - cpu
        return value, max(0, wall - self.floor[0]), max(0, cpu - self.floor[1])


def _nothing() -> None:
    pass


def _switches() -> tuple[int, int]:
    if getrusage is None:
        return 0, 0
    usage = getrusage(RUSAGE_THREAD)
    return usage.ru_nvcsw, usage.ru_nivcsw


class Probe:
    """The thread that measures how late it gets the GIL while a call is inside.

    Between calls it waits for its bell and costs nothing. Race: the call leaves, or the next one enters, just as the
    thread decides to wait; `gate` makes both see the same, or the next call would be taken for one that holds no GIL.
    """

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words
        self._gate = _thread.allocate_lock()
        self._bell = _thread.allocate_lock()
        self._bell.acquire()
        self._never = _thread.allocate_lock()
        self._never.acquire()
        self._inside = self._ended = False
        self._parked = True
        self._wanted = 0
        self._held = 0
        self._thread: threading.Thread | None = None

    def enter(self) -> int:
        """A call begins. Returns the nanoseconds that all calls have held the GIL so far."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="duodao-gil-probe", daemon=True)
            self._thread.start()
        with self._gate:
            self._inside = True
            parked, self._parked = self._parked, False
            now = time.perf_counter_ns()
            if parked:
                self._wanted = self._words[_WANTED] = now
                self._bell.release()
            return self._total(now)

    def leave(self) -> int:
        """The call ends. Returns the same as `enter`."""
        now = time.perf_counter_ns()
        with self._gate:
            self._inside = False
            return self._total(now)

    def stop(self) -> None:
        """End the thread."""
        with self._gate:
            if self._ended:
                return
            self._ended = True
            if self._parked:
                self._parked = False
                self._bell.release()
        if self._thread is not None and self._thread.ident != _thread.get_ident():
            self._thread.join(1.0)

    def _total(self, now: int) -> int:
        return self._held if self._parked else self._held + max(0, now - self._wanted - NOISE)

    def _run(self) -> None:
        tid = threading.get_native_id()
        queued = proc.queued(os.getpid(), tid)
        while True:
            self._bell.acquire()
            tick = FIRST_TICK
            while True:
                now = time.perf_counter_ns()
                before, queued = queued, proc.queued(os.getpid(), tid)
                with self._gate:
                    self._held += max(0, now - self._wanted - NOISE - int((queued - before) * 1e9))
                    self._words[_HELD] = self._held
                    if self._ended:
                        return
                    if not self._inside:
                        self._parked = True
                        self._words[_WANTED] = 0
                        break
                    self._wanted = self._words[_WANTED] = now + tick
                self._never.acquire(timeout=tick / 1e9)
                tick = min(2 * tick, LAST_TICK)
