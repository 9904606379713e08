"""Lock and RLock: the names and signatures of `threading`, for threads and for coroutines, and no silent deadlock.

    with lock: ...            a thread holds it
    async with lock: ...      a task holds it; its loop goes on while it waits

The C type `_thread.RLock` underneath keeps who holds it, at the cost of a native call: an uncontended `with` has two
Python frames and no bookkeeping; where `_speed.c` was compiled it has none (speed.py). A task that holds does so in the
name of its loop's thread, and `_holder` says which task; so what matters to threads (is it free?) is one step of C.

Two deliberate differences to `threading`: a Lock is released by its holder only, and a holder that waits for its own
Lock without a time-out gets Deadlock at once, since nobody else could end that wait.
"""

from __future__ import annotations

import _thread
import asyncio
import itertools
import os
import re
import sys
import warnings
from collections import deque
from types import TracebackType
from typing import Any, NoReturn

from duodao.errors import Deadlock, OwnerDied
from duodao.sync import ends, graph, lot, speed
from duodao.sync.named import Named, checked, site
from duodao.sync.units import current_task

_OWNER = re.compile(r"owner=(\d+)")
_numbers = itertools.count(1)
_repr = speed.Base.__repr__


class _Held(Named, speed.Base):
    """What Lock and RLock share: a C lock that knows its thread, a lot, and the task that holds it, if one does."""

    __slots__ = ("_last", "_name", "_number", "_site", *speed.FIELDS)
    _take = speed.take
    _free = speed.free
    _again = False
    _kind = "Lock"

    def __init__(self, *, name: str | None = None, shared: bool = False) -> None:
        del shared
        self._parked: lot.Parked = deque()
        self._holder: asyncio.Task[Any] | None = None
        self._number = next(_numbers)
        self._site = site(sys._getframe(1))
        self._name = checked(name)

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} duodao.sync.{self._kind} object {self.name!r} at {id(self):#x}>"

    def locked(self) -> bool:
        """Does anybody hold it now?"""
        return _repr(self).startswith("<locked")

    def statistics(self) -> lot.Statistics:
        """Who holds it and who waits, now."""
        owner = self._owner()
        holder = None if owner is None else graph.name_of(owner)
        return lot.Statistics(self.name, owner is not None, holder, lot.names(self._parked))

    # As something that is waited for

    def resolvers(self) -> tuple[graph.Unit, ...]:
        """Its holder."""
        owner = self._owner()
        return () if owner is None else (owner,)

    def describe(self) -> str:
        """As messages name it."""
        return f"{self._kind} {self.name!r}"

    def _owner(self) -> graph.Unit | None:
        holder = self._holder
        found = _OWNER.search(_repr(self))  # the only place where the C type tells it
        ident = int(found[1]) if found else 0
        if holder is None:
            return ident or None
        graph.runs(holder, ident)
        return holder

    # Threads

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; False when it could not be had at once (blocking=False) or within `timeout` seconds.

        ValueError for a time-out that is negative or given with blocking=False, OverflowError for one that is too long;
        Deadlock when waiting would close a circle of waits, or is for a Lock that the caller holds. Truthy OwnerDied,
        in place of True, when the last holder ended without releasing it.
        """
        if timeout != -1:
            _check(blocking, timeout)
        if self._try():
            return True
        return self._wait(timeout if timeout >= 0 else None) if blocking else False

    def __enter__(self) -> bool:
        if not self._is_owned() and self._take(False):  # `_try`, without its call
            return True
        return self._wait(None)

    def _try(self) -> bool:
        """Take it in the name of this thread if it is free."""
        return not self._is_owned() and self._take(False)

    def _wait(self, timeout: float | None) -> bool:
        self._refuse_own(timeout)
        own = self._is_owned()
        try:
            return lot.wait(self, self._parked, self._try_hard, timeout, fair=True)
        except BaseException:
            if not own and self._is_owned():  # Ctrl-C in the instant in which it was taken
                self.release()
            raise

    def _refuse_own(self, timeout: float | None) -> None:
        """Deadlock where this thread waits for itself, or for a task that only it can run."""
        if timeout is None and self._is_owned():
            self._deadlock(graph.unit() if self._holder is not None else _thread.get_ident())

    def _try_hard(self) -> Any:
        """`_try`, also when the holder has ended: then it is free, and the next one is told."""
        if self._try():
            return True
        return self._inherit() if self._try_reclaim() else False

    def release(self) -> None:
        """Give it back. RuntimeError, naming the holder, for anyone but the one that holds it."""
        if self._holder is not None:
            self._release_task()
            return
        try:
            self._free()
            if self._parked:
                lot.wake(self._parked)
        except BaseException as failure:
            self._unfinished(failure)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._free()
            if self._parked:
                lot.wake(self._parked)
        except BaseException as failure:
            self._unfinished(failure)

    def _unfinished(self, failure: BaseException) -> None:
        """A release that failed: not the holder's, or stopped half-way by Ctrl-C: then those that wait are woken."""
        if isinstance(failure, RuntimeError):
            self._not_yours()
            return
        lot.wake_all(self._parked)
        raise failure

    # Tasks

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` for the running task: it suspends, its loop goes on. timeout: seconds, None for ever."""
        task = current_task()
        if task is None:
            raise RuntimeError(f"{self.describe()} can only be awaited inside a task")
        if (not self._parked or self._holder is task) and self._try_task(task):
            return True
        if timeout is None and self._holder is task:
            self._deadlock(task)
        ready = lambda: self._try_task(task) or self._try_hard_task(task)  # noqa: E731
        return await lot.await_(self, self._parked, ready, timeout, fair=True)

    async def __aenter__(self) -> bool:
        task = current_task()
        if not self._parked and task is not None and not self._is_owned() and self._take(False):  # `_try_task`
            self._holder = task
            return True
        return await self.aacquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not current_task() or self._holder is None:
            self._not_yours()
            return
        self._holder = None
        self._free()
        if self._parked:
            lot.wake(self._parked)

    def _try_task(self, task: asyncio.Task[Any]) -> bool:
        if self._is_owned() or not self._take(False):
            return False
        self._holder = task
        return True

    def _try_hard_task(self, task: asyncio.Task[Any]) -> Any:
        if not self._try_reclaim():
            return False
        told = self._inherit()
        self._holder = task
        return told

    def _release_task(self) -> None:
        if self._holder is None or self._holder is not current_task():
            self._not_yours()
            return
        self._let_go()

    def _let_go(self) -> None:
        self._holder = None
        self._free()
        if self._parked:
            lot.wake(self._parked)

    # A holder that ended

    def _try_reclaim(self) -> bool:
        """Free it when its holder has ended, and take it."""
        owner = self._owner()
        if owner is None or ends.lives(owner):
            return False
        last = ends.name_of(owner)
        with _reclaiming:
            if self._owner() != owner:
                return False
            self._last = last
            self._holder = None
            self._at_fork_reinit()  # makes it free, whoever held it
            return self._take(False)

    def _inherit(self) -> OwnerDied:
        message = (
            f"{self.describe()} was held by {self._last}, which ended without releasing it: check what it protects"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=5)
        return OwnerDied(message, self._last)

    # Messages

    def _deadlock(self, who: graph.Unit) -> NoReturn:
        owner = self._owner()
        holder = "itself" if owner == who else graph.name_of(owner) if owner is not None else "nobody"
        line = f"{graph.name_of(who)} waits for {self.describe()}, held by {holder}"
        why = "it holds it already" if owner == who else "only the thread that waits could let its holder go on"
        raise Deadlock(f"{line}: {why}", (line,), ((line, graph.stack_of(who)),))

    def _not_yours(self) -> None:
        """Refuse a release; not while the error unwinds with which a Condition lost the lock: that is the news."""
        if lot.is_lost(sys.exc_info()[1], self):
            return
        owner, who = self._owner(), graph.name_of(graph.unit())
        if owner is None:
            raise RuntimeError(f"{self.describe()} can't be released by {who}: nobody holds it") from None
        raise RuntimeError(f"{self.describe()} can't be released by {who}: {graph.name_of(owner)} holds it") from None

    # What a Condition needs of its lock

    def _release_save(self) -> Any:
        if not self._is_owned() or (self._holder is not None and self._holder is not graph.unit()):
            self._not_yours()
        holder, self._holder = self._holder, None
        state = super()._release_save()
        if self._parked:
            lot.wake(self._parked)
        return holder, state

    def _acquire_restore(self, state: Any) -> None:
        """Take it again, as often as before. What stops that is marked: its unwinding releases nothing."""
        try:
            self.__enter__()
        except BaseException as error:
            lot.lose(error, self)
            raise
        for _ in range(state[1][0] - 1):
            self._take(False)

    async def _aacquire_restore(self, state: Any) -> None:
        """The same for a task. A cancellation waits until it is taken, as with `asyncio.Condition`."""
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await self.__aenter__()
                break
            except asyncio.CancelledError as error:
                cancelled = error
            except BaseException as error:
                lot.lose(error, self)
                raise
        for _ in range(state[1][0] - 1):
            self._take(False)
        if cancelled is not None:
            raise cancelled

    def _owned_by(self, who: graph.Unit) -> bool:
        """Does this unit, the caller, hold it?"""
        return self._is_owned() and (self._holder is None if isinstance(who, int) else self._holder is who)


class Lock(_Held):
    """A mutex, as `threading.Lock`; with shared=True one between processes, that travels to tasks as a number.

    name: for messages; by default the place where it was made. Source: M14, M16, M17.
    """

    __slots__ = ()

    def __new__(cls, *, name: str | None = None, shared: bool = False) -> Any:
        """A lock of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared as between

            return between.Lock(name=name)
        return super().__new__(cls)


class RLock(_Held):
    """A mutex that its holder may take again, as `threading.RLock`; it is free when released as often as taken.

    name, shared: as for Lock. Source: M14, M16, M17.
    """

    _kind = "RLock"
    _again = True
    __slots__ = ()

    def __new__(cls, *, name: str | None = None, shared: bool = False) -> Any:
        """A lock of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared as between

            return between.RLock(name=name)
        return super().__new__(cls)

    def __enter__(self) -> bool:
        if self._holder is None and self._take(False):
            return True
        return self._wait(None)

    def _try(self) -> bool:
        return self._holder is None and self._take(False)

    def _refuse_own(self, timeout: float | None) -> None:
        if self._holder is not None:
            super()._refuse_own(timeout)

    def _try_task(self, task: asyncio.Task[Any]) -> bool:
        if self._holder is task:
            return self._take(False)
        return super()._try_task(task)

    async def __aenter__(self) -> bool:
        task = current_task()
        mine = self._holder is task
        if task is not None and (mine or not (self._parked or self._is_owned())) and self._take(False):
            self._holder = task
            return True
        return await self.aacquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_task()

    def _let_go(self) -> None:
        holder, self._holder = self._holder, None
        self._free()
        if self._is_owned():
            self._holder = holder
        elif self._parked:
            lot.wake(self._parked)


_reclaiming = _thread.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reclaiming._at_fork_reinit)  # type: ignore[attr-defined]


def _check(blocking: bool, timeout: float) -> None:
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if not timeout >= 0:  # nan, too
        raise ValueError("timeout value must be a non-negative number")
    if timeout > _thread.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")


speed.hasten(_Held, RLock)
if os.environ.get("DUODAO_LOCKDEP") == "1":
    from duodao.sync import order

    order.ORDER.watch(Lock)
    order.ORDER.watch(RLock)
