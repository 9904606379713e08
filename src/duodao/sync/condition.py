"""Condition: wait, with a lock given back meanwhile, until somebody notifies; for threads and for coroutines.

Each waiter has a turn of its own, so `notify(n)` wakes exactly n of those that wait now, the first first, and nobody
wakes for nothing. A turn that was told, and whose waiter leaves by an error instead (Ctrl-C, a cancelled task), is
handed on to the next.
"""

from __future__ import annotations

import _thread
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from duodao.errors import UsageError
from duodao.sync import graph, lot
from duodao.sync.lock import Lock, RLock
from duodao.sync.named import Named, checked, site

T = TypeVar("T")


class _Turn:
    """One waiter."""

    __slots__ = ("parked", "told")

    def __init__(self) -> None:
        self.parked: lot.Parked = deque()
        self.told = False

    def ready(self) -> bool:
        return self.told


class Condition(Named):
    """A condition variable, as `threading.Condition`.

    lock: a Lock or RLock, of `duodao.sync` or of `threading`; by default a new RLock. name: for messages. shared:
    between processes. Coroutines need a lock of `duodao.sync`: `async with c: await c.await_for(predicate)`.
    Source: M14.
    """

    def __new__(cls, lock: Any = None, *, name: str | None = None, shared: bool = False) -> Any:
        """A condition of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared_signal as between

            return between.Condition(lock, name=name)
        return super().__new__(cls)

    def __init__(self, lock: Any = None, *, name: str | None = None, shared: bool = False) -> None:
        del shared
        self._site = site(sys._getframe(1))
        self._name = checked(name)
        if lock is not None and not (hasattr(lock, "acquire") and hasattr(lock, "release")):
            raise UsageError(f"Condition(lock={lock!r}): a Lock or RLock is needed, or None for a new RLock")
        self._lock = RLock(name=self.name) if lock is None else lock
        self._ours = isinstance(self._lock, (Lock, RLock))
        self._waiters: deque[_Turn] = deque()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        for method in ("_release_save", "_acquire_restore", "_is_owned"):
            if hasattr(self._lock, method):
                setattr(self, method, getattr(self._lock, method))

    def __repr__(self) -> str:
        return f"<Condition({self._lock!r}, {len(self._waiters)})>"

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        return await self._own().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._own().__aexit__(kind, error, trace)

    async def aacquire(self, timeout: float | None = None) -> Any:
        """`acquire` for the running task; timeout: seconds, None for ever."""
        return await self._own().aacquire(timeout)

    def locked(self) -> bool:
        """Does anybody hold its lock now?"""
        return bool(self._lock.locked())

    def statistics(self) -> lot.Statistics:
        """Who holds its lock, and who waits to be notified, now. value: how many wait."""
        waiters = tuple(name for turn in list(self._waiters) for name in lot.names(turn.parked))
        held = self._lock.statistics() if self._ours else lot.Statistics(self.name, not self._free(), None, ())
        return lot.Statistics(self.name, held.locked, held.owner, waiters, len(waiters))

    def resolvers(self) -> None:
        """Anybody may notify."""
        return

    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock back, block until notified, take it again: True; False after `timeout` seconds.

        RuntimeError when this thread doesn't hold the lock. Deadlock when taking it again would close a circle: then,
        as after a Ctrl-C there, the caller goes on without the lock, and its `with` releases nothing.
        """
        self._must_own(_thread.get_ident(), "wait for")
        turn = _Turn()
        self._waiters.append(turn)
        state = self._release_save()
        try:
            try:
                lot.wait(self, turn.parked, turn.ready, timeout)
            finally:
                self._acquire_restore(state)
        except BaseException:
            self._hand_on(turn)
            raise
        finally:
            if not turn.told:
                self._drop(turn)
        return turn.told  # known for good only now: notifying takes the lock

    async def await_(self, timeout: float | None = None) -> bool:
        """`wait` for the running task, which holds the lock by `async with`; also a cancelled one has it again."""
        lock, task = self._own(), graph.unit()
        self._must_own(task, "wait for")
        turn = _Turn()
        self._waiters.append(turn)
        state = lock._release_save()
        try:
            try:
                await lot.await_(self, turn.parked, turn.ready, timeout)
            finally:
                await lock._aacquire_restore(state)
        except BaseException:
            self._hand_on(turn)
            raise
        finally:
            if not turn.told:
                self._drop(turn)
        return turn.told  # known for good only now: notifying takes the lock

    def __await__(self) -> Generator[Any, None, bool]:
        return self.await_().__await__()

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true, and return what it gave; what is false after `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        result = predicate()
        while not result:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    async def await_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """`wait_for` for the running task; `predicate` is a plain function."""
        deadline = None if timeout is None else monotonic() + timeout
        result = predicate()
        while not result:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            await self.await_(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake the first n that wait. RuntimeError when the caller doesn't hold the lock."""
        self._must_own(graph.unit(), "notify")
        self._notify(n)

    def notify_all(self) -> None:
        """Wake all that wait. RuntimeError when the caller doesn't hold the lock."""
        self.notify(len(self._waiters))

    def notifyAll(self) -> None:  # noqa: N802  # threading's
        """Deprecated, as in `threading`."""
        warnings.warn("notifyAll() is deprecated, use notify_all() instead", DeprecationWarning, stacklevel=2)
        self.notify_all()

    def _notify(self, n: int) -> None:
        while n > 0 and self._waiters:
            turn = self._waiters[0]
            n -= not turn.told  # one that was told by a `notify` that Ctrl-C stopped has had its turn
            turn.told = True
            lot.wake(turn.parked)
            self._drop(turn)

    def _hand_on(self, turn: _Turn) -> None:
        if turn.told:
            self._notify(1)

    def _drop(self, turn: _Turn) -> None:
        try:
            self._waiters.remove(turn)
        except ValueError:
            return

    def _own(self) -> Any:
        if not self._ours:
            raise TypeError(f"{self.describe()} has a {type(self._lock).__name__}: coroutines need one of duodao.sync")
        return self._lock

    def _must_own(self, who: graph.Unit, what: str) -> None:
        if self._lock._owned_by(who) if self._ours else self._is_owned():
            return
        if self._ours and not isinstance(who, int):  # a task that is in a plain `with`
            if what == "notify" and self._lock._owned_by(_thread.get_ident()):
                return
            raise RuntimeError(f"{graph.name_of(who)} can't {what} {self.describe()}: it is not in its `async with`")
        raise RuntimeError(f"{graph.name_of(who)} can't {what} {self.describe()}: it does not hold its lock")

    # For a lock that is not ours; else the lock's own replace these.

    def _release_save(self) -> Any:
        self._lock.release()

    def _acquire_restore(self, state: Any) -> None:
        del state
        self._lock.acquire()

    def _is_owned(self) -> bool:
        return not self._free()

    def _free(self) -> bool:
        if self._lock.acquire(False):
            self._lock.release()
            return True
        return False

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()
        self._waiters.clear()
