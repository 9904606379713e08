"""Semaphore, BoundedSemaphore, Event, Condition and Barrier between processes: what `shared=True` makes. Linux only.

What they are stands in the words of a cell, changed under its mutex; who waits sleeps on one of these words, at most a
slice at a time, and looks again. A process that is killed at any instant thus costs the others a slice at most: a
wake-up that it took with it, or one that it did not come to, is made up for by looking.
"""

from __future__ import annotations

import _thread
import operator
import warnings
from collections.abc import Callable
from time import monotonic
from typing import NoReturn, TypeVar

from duodao import arena
from duodao.sync import cells, graph, lines, lot, table
from duodao.sync.robust import ALL, SLICE, Word, end_of
from duodao.sync.shared import PATIENCE, Handle
from duodao.sync.shared_turns import Barrier, Condition

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore"]

T = TypeVar("T")
# The 4-byte words of these, from `cells.FREE_AT` on
_STATE, _WAITERS, _MOST, _BOUNDED = range(4)


class Signal(Handle):
    """A word that is waited for. Anybody can end such a wait, so it is in no circle of waits."""

    __slots__ = ("_state", "_values")
    _busy_for = SLICE

    def _adopt(self, cell: cells.Cell, name: str) -> None:
        super()._adopt(cell, name)
        self._state = Word(cell.offset + cells.FREE_AT)
        self._values = arena.get().view(cell.offset + cells.FREE_AT, 16).cast("I")

    def close(self) -> None:
        """End it for all processes: those that wait, and all that is done with it afterwards, get Closed."""
        super().close()
        self._state.wake(ALL)

    def resolvers(self) -> None:
        """Anybody."""
        return

    def statistics(self) -> lot.Statistics:
        """Its value and who waits, in all processes, now."""
        self._check_open()
        return lot.Statistics(self._name, self._is_shut(), None, self._waiters(), self._show())

    def _is_shut(self) -> bool:
        raise NotImplementedError

    def _show(self) -> int:
        raise NotImplementedError

    def _wait_until(self, ready: Callable[[], bool], shut: int, timeout: float | None) -> bool:
        """Block until `ready()`; False after `timeout` seconds. shut: the word's value that keeps it from that."""
        until = end_of(timeout)
        if ready():
            return True
        self._state.wait(shut, PATIENCE if timeout is None else min(PATIENCE, timeout))
        if ready():
            return True
        if until is not None and monotonic() >= until:
            return False
        shared = table.get()
        line = shared.claim()
        wait: graph.Wait | None = None
        try:
            line.write(lines.ANYONE, self.offset, self.describe(), timed=until is not None)
            wait = shared.begin(line, _thread.get_ident(), self, timed=until is not None)
            while True:
                pause = SLICE if until is None else min(SLICE, until - monotonic())
                if pause <= 0:
                    return False
                self._state.wait(shut, pause)
                if ready():
                    return True
                if wait.doom is not None:
                    raise wait.doom
        finally:
            shared.leave(line, wait)

    def _no_await(self, *_arguments: object, **_options: object) -> NoReturn:
        self._no_async()

    await_ = await_for = __await__ = _no_await


class Semaphore(Signal):
    """A number of permits, as `threading.Semaphore`. What a killed process had acquired is not given back: a permit
    has no owner; where that matters, use a Lock. ValueError for a value below 0.
    """

    __slots__ = ()
    _kind = "Semaphore"

    def __init__(self, value: int = 1, *, name: str | None = None) -> None:
        if operator.index(value) < 0:
            raise ValueError("semaphore initial value must be >= 0")
        if value > 0x7FFFFFFF:
            raise ValueError("semaphore initial value must be < 2**31 where it is shared")
        super().__init__(name=name)
        self._values[_STATE] = self._values[_MOST] = value

    def __repr__(self) -> str:
        return f"<sync.{self._kind} at {self.offset} of the arena, {self._name!r}: value={self._text()}>"

    def _text(self) -> str:
        return str(self._values[_STATE])

    def _is_shut(self) -> bool:
        return self._values[_STATE] == 0

    def _show(self) -> int:
        return self._values[_STATE]

    def locked(self) -> bool:
        """Is no permit left?"""
        self._check_open()
        return self._is_shut()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False when there was none at once (blocking=False) or within `timeout` seconds.

        ValueError for a time-out together with blocking=False; Closed; TableFull when too many wait.
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        if self._take():
            return True
        if not blocking or (timeout is not None and timeout <= 0):
            return False
        self._count_waiters(1)
        try:
            return self._wait_until(self._take, 0, timeout)
        finally:
            self._count_waiters(-1)

    def __enter__(self) -> bool:
        return self._take() or self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self, n: int = 1) -> None:
        """Give n permits back; ValueError for n < 1, and for more than there may be."""
        if operator.index(n) < 1:
            raise ValueError("n must be one or more")
        values, mutex = self._values, self._cell.mutex
        with mutex.held():
            mutex.done()
            self._check_open()
            value = values[_STATE] + n
            if value > self._most():
                raise ValueError("Semaphore released too many times")
            waiters = values[_WAITERS]
            values[_STATE] = value
        if waiters:
            self._state.wake(n)

    def _most(self) -> int:
        return 0x7FFFFFFF

    def _take(self) -> bool:
        values, mutex, taken = self._values, self._cell.mutex, False
        if not values[_STATE] and self._cell.is_open():
            return False
        try:
            with mutex.held():
                mutex.done()
                self._check_open()
                if values[_STATE]:
                    taken = True
                    values[_STATE] -= 1
        except BaseException:  # Ctrl-C after it was taken: nobody would give it back
            if taken:
                self.release()
            raise
        return taken

    def _count_waiters(self, change: int) -> None:
        """A hint, above the truth once a waiter was killed: `release` then wakes for nothing. Never below it."""
        mutex = self._cell.mutex
        with mutex.held():
            mutex.done()
            if self._cell.is_open():
                self._values[_WAITERS] += change


class BoundedSemaphore(Semaphore):
    """A semaphore that is never above its first value: ValueError for more releases than acquires."""

    __slots__ = ()
    _kind = "BoundedSemaphore"

    def _text(self) -> str:
        return f"{self._values[_STATE]}/{self._values[_MOST]}"

    def _most(self) -> int:
        return self._values[_MOST]


class Event(Signal):
    """A flag that can be waited for, as `threading.Event`.

    Its word is the number of times that it was set, doubled, plus the flag: who waits when it is set sees that it was,
    also when it has been cleared again since.
    """

    __slots__ = ()
    _kind = "Event"

    def __repr__(self) -> str:
        state = "set" if self._values[_STATE] & 1 else "unset"
        return f"<sync.Event at {self.offset} of the arena, {self._name!r}: {state}>"

    def _is_shut(self) -> bool:
        return not self._values[_STATE] & 1

    def _show(self) -> int:
        return self._values[_STATE] & 1

    def is_set(self) -> bool:
        """Is the flag set?"""
        self._check_open()
        return bool(self._values[_STATE] & 1)

    def isSet(self) -> bool:  # noqa: N802  # threading's
        """Deprecated, as in `threading`."""
        warnings.warn("isSet() is deprecated, use is_set() instead", DeprecationWarning, stacklevel=2)
        return self.is_set()

    def set(self) -> None:
        """Set the flag, and wake all that wait."""
        self._change(lambda state: state if state & 1 else (state + 2 & 0xFFFFFFFF) | 1)
        self._state.wake(ALL)

    def clear(self) -> None:
        """Take the flag down."""
        self._change(lambda state: state & ~1)

    def _change(self, change: Callable[[int], int]) -> None:
        mutex = self._cell.mutex
        with mutex.held():
            mutex.done()
            self._check_open()
            self._values[_STATE] = change(self._values[_STATE])

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set: True; False after `timeout` seconds. True also when it was cleared again since."""
        state = self._values[_STATE]
        self._check_open()
        if state & 1:
            return True

        def ready() -> bool:
            changed = self._values[_STATE] != state
            self._check_open()  # second: the word of one that was closed may be another's
            return changed

        return self._wait_until(ready, state, timeout)
