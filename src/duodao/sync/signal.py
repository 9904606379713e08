"""Semaphore, BoundedSemaphore and Event: `threading`'s, for threads and for coroutines. Condition and Barrier beside.

Anybody can end a wait on one of these, so they are in no circle of waits: a group whose every unit waits on them is
found by the group.
"""

from __future__ import annotations

import _thread
import operator
import sys
import warnings
from collections import deque
from collections.abc import Generator
from threading import BrokenBarrierError
from types import TracebackType
from typing import Any

from duodao.sync import lot
from duodao.sync.barrier import Barrier
from duodao.sync.condition import Condition
from duodao.sync.named import Named, checked, site

__all__ = ["Barrier", "BoundedSemaphore", "BrokenBarrierError", "Condition", "Event", "Semaphore"]


class Semaphore(Named):
    """A number of permits, as `threading.Semaphore`.

    value: how many there are; ValueError below 0. name: for messages. shared: between processes. Source: M14.
    """

    def __new__(cls, value: int = 1, *, name: str | None = None, shared: bool = False) -> Any:
        """A semaphore of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared_signal as between

            return getattr(between, cls.__name__)(value, name=name)
        return super().__new__(cls)

    def __init__(self, value: int = 1, *, name: str | None = None, shared: bool = False) -> None:
        del shared
        if operator.index(value) < 0:
            raise ValueError("semaphore initial value must be >= 0")
        self._site = site(sys._getframe(1))
        self._name = checked(name)
        self._value = value
        self._guard = _thread.allocate_lock()
        self._parked: lot.Parked = deque()

    def __repr__(self) -> str:
        return f"<sync.{type(self).__qualname__} at {id(self):#x} {self.name!r}: value={self._show()}>"

    def _show(self) -> str:
        return str(self._value)

    def locked(self) -> bool:
        """Is no permit left?"""
        return self._value == 0

    def statistics(self) -> lot.Statistics:
        """How many permits are left (`value`) and who waits, now."""
        return lot.Statistics(self.name, self.locked(), None, lot.names(self._parked), self._value)

    def resolvers(self) -> None:
        """Anybody may release."""
        return

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False when there was none at once (blocking=False) or within `timeout` seconds.

        ValueError for a time-out together with blocking=False.
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        if self._try():
            return True
        return self._wait(timeout) if blocking else False

    def _wait(self, timeout: float | None) -> bool:
        try:
            return lot.wait(self, self._parked, self._try, timeout, fair=True)
        finally:
            if self._value and self._parked:  # a task that came meanwhile stood back
                lot.wake(self._parked)

    def __enter__(self) -> bool:
        return self._try() or self._wait(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` for the running task; timeout: seconds, None for ever."""
        if not self._parked and self._try():
            return True
        try:
            return await lot.await_(self, self._parked, self._try, timeout, fair=True)
        finally:
            if self._value and self._parked:  # one that came meanwhile stood back
                lot.wake(self._parked)

    async def __aenter__(self) -> bool:
        return (not self._parked and self._try()) or await self.aacquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self, n: int = 1) -> None:
        """Give n permits back; ValueError for n < 1."""
        if operator.index(n) < 1:
            raise ValueError("n must be one or more")
        try:
            self._give(n)
            if self._parked:
                lot.wake(self._parked, n)
        except KeyboardInterrupt:  # between the two
            lot.wake_all(self._parked)
            raise

    def _give(self, n: int) -> None:
        with self._guard:
            self._value += n

    def _try(self) -> bool:
        with self._guard:
            if self._value > 0:
                self._value -= 1
                return True
        return False


class BoundedSemaphore(Semaphore):
    """A semaphore that is never above its first value: ValueError for more releases than acquires."""

    def __init__(self, value: int = 1, *, name: str | None = None, shared: bool = False) -> None:
        super().__init__(value, name=name, shared=shared)
        self._initial_value = value

    def _show(self) -> str:
        return f"{self._value}/{self._initial_value}"

    def _give(self, n: int) -> None:
        with self._guard:
            if self._value + n > self._initial_value:
                raise ValueError("Semaphore released too many times")
            self._value += n


class Event(Named):
    """A flag that can be waited for, as `threading.Event`; `await event` in coroutines.

    name: for messages. shared: between processes. Source: M14, M26.
    """

    def __new__(cls, *, name: str | None = None, shared: bool = False) -> Any:
        """An event of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared_signal as between

            return between.Event(name=name)
        return super().__new__(cls)

    def __init__(self, *, name: str | None = None, shared: bool = False) -> None:
        del shared
        self._site = site(sys._getframe(1))
        self._name = checked(name)
        self._flag = False
        self._last = object()  # another one after each `set`, for those that come too late to see the flag
        self._guard = _thread.allocate_lock()
        self._parked: lot.Parked = deque()

    def __repr__(self) -> str:
        state = "set" if self._flag else "unset"
        return f"<sync.{type(self).__qualname__} at {id(self):#x} {self.name!r}: {state}>"

    def is_set(self) -> bool:
        """Is the flag set?"""
        return self._flag

    def isSet(self) -> bool:  # noqa: N802  # threading's
        """Deprecated, as in `threading`."""
        warnings.warn("isSet() is deprecated, use is_set() instead", DeprecationWarning, stacklevel=2)
        return self.is_set()

    def statistics(self) -> lot.Statistics:
        """Who waits, now. value: 1 when it is set."""
        return lot.Statistics(self.name, not self._flag, None, lot.names(self._parked), int(self._flag))

    def resolvers(self) -> None:
        """Anybody may set it."""
        return

    def set(self) -> None:
        """Set the flag, and wake all that wait."""
        try:
            with self._guard:
                self._flag = True
                self._last = object()
            if self._parked:
                lot.wake_all(self._parked)
        except KeyboardInterrupt:  # between the two
            lot.wake_all(self._parked)
            raise

    def clear(self) -> None:
        """Take the flag down."""
        with self._guard:
            self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set: True; False after `timeout` seconds. True also when it was cleared again since."""
        if self._flag:
            return True
        return lot.wait(self, self._parked, self._seen(), timeout)

    async def await_(self, timeout: float | None = None) -> bool:
        """`wait` for the running task."""
        if self._flag:
            return True
        return await lot.await_(self, self._parked, self._seen(), timeout)

    def __await__(self) -> Generator[Any, None, bool]:
        return self.await_().__await__()

    def _seen(self) -> Any:
        last = self._last
        return lambda: self._flag or self._last is not last

    @property
    def _cond(self) -> Condition:
        """What guards the flag, as programs that look into a `threading.Event` know it."""
        return Condition(self._guard)

    def _at_fork_reinit(self) -> None:
        self._guard._at_fork_reinit()  # type: ignore[attr-defined]
        self._parked.clear()
