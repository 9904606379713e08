"""Condition and Barrier between processes: who waits has a turn, and is told when it has come (`turns.py`)."""

from __future__ import annotations

import _thread
import operator
from collections.abc import Callable
from threading import BrokenBarrierError
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from duodao import arena
from duodao.errors import UsageError
from duodao.sync import cells, graph, lines, lot, table, turns
from duodao.sync.robust import SLICE, InC, end_of
from duodao.sync.shared import Exclusive, Handle, RLock

T = TypeVar("T")
_GO, _BROKEN = 1, 2
"""What a waiter is told."""
# The 4-byte words of a Barrier, from `cells.FREE_AT` on. _OPENING: its round is over, perhaps not all were told so yet
_ROUND, _PARTIES, _IS_BROKEN, _OPENING = range(4)


class Turned(Handle):
    """What is waited for by turns."""

    __slots__ = ()
    _busy_for = SLICE

    def resolvers(self) -> None:
        """Anybody."""
        return

    def _sleep(self, line: lines.Line, wait: graph.Wait, until: float | None) -> int:
        """Until told, or the time is over: then 0. Every slice it looks after those that were killed."""
        while True:
            silence = line.signal.value  # first: what is told after the next line changes it
            told = line.told()
            if told:
                return told
            pause = SLICE if until is None else min(SLICE, until - monotonic())
            if pause <= 0:
                return 0
            if line.signal.wait(silence, pause):
                continue
            if wait.doom is not None:
                raise wait.doom
            self._check_open()
            self._look_after()

    def _look_after(self) -> None:
        raise NotImplementedError

    def _no_await(self, *_arguments: object, **_options: object) -> NoReturn:
        self._no_async()

    await_ = await_for = __await__ = _no_await


class Condition(Turned):
    """A condition variable between processes, as `threading.Condition`.

    lock: a Lock or RLock with shared=True; by default a new RLock. `notify(n)` wakes exactly n of those that wait and
    live; one that is killed between being told and having the lock again hands it on. UsageError for another lock.
    """

    __slots__ = ("_acquire_restore", "_is_owned", "_lock", "_release_save", "acquire", "release")
    _kind = "Condition"

    def __init__(self, lock: Any = None, *, name: str | None = None) -> None:
        if lock is not None and not isinstance(lock, Exclusive):
            raise UsageError(
                f"a Condition with shared=True needs a Lock or RLock with shared=True, not {type(lock).__name__}"
            )
        super().__init__(name=name)
        self._use(RLock(name=self._name) if lock is None else lock)

    def _use(self, lock: Exclusive) -> None:
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release
        self._is_owned = lock._is_owned
        self._release_save = lock._release_save
        self._acquire_restore = lock._acquire_restore

    if TYPE_CHECKING:

        def __exit__(self, *error: object) -> None: ...

    else:
        __exit__ = InC("_lock.__exit__")

    def __reduce__(self) -> tuple[Any, ...]:
        return _condition, (self._cell, self._name, self._lock)

    def __repr__(self) -> str:
        return f"<sync.Condition at {self.offset} of the arena, ({self._lock!r}, {len(self._waiting())})>"

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def locked(self) -> bool:
        """Does anybody hold its lock now?"""
        return self._lock.locked()

    def statistics(self) -> lot.Statistics:
        """Who holds its lock, and who waits to be notified, now. value: how many wait."""
        self._check_open()
        held, waiters = self._lock.statistics(), self._waiters()
        return lot.Statistics(self._name, held.locked, held.owner, waiters, len(waiters))

    def _waiting(self) -> list[turns.Turn]:
        return turns.waiting(self.offset, self._round())

    def _round(self) -> int:
        """Tells those that wait here from those that waited for what had the cell before."""
        return self._cell.stamp & 0xFFFFFFFF

    def _must_own(self, what: str) -> None:
        self._check_open()
        if not self._lock._is_owned():
            raise RuntimeError(f"cannot {what} {self.describe()}: this thread does not hold its lock (un-acquired)")

    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock back, block until notified, take it again: True; False after `timeout` seconds.

        RuntimeError when this thread doesn't hold the lock. Deadlock when taking it again would close a circle: then,
        as after a Ctrl-C there, the caller goes on without the lock, and its `with` releases nothing.
        """
        self._must_own("wait for")
        until = end_of(timeout)
        shared = table.get()
        line = shared.claim()
        wait: graph.Wait | None = None
        used = False
        try:
            line.write(lines.TURN, self.offset, self.describe(), timed=until is not None, round=self._round())
            wait = shared.begin(line, _thread.get_ident(), self, timed=until is not None)
            state = self._lock._release_save()
            try:
                self._sleep(line, wait, until)
            finally:
                graph.end(wait)  # before the next: a thread waits for one thing at a time
                self._lock._acquire_restore(state)
            told = line.told()
            self._check_open()
            used = True
            return told != 0
        finally:
            hand_on = not used and line.told() == _GO
            shared.leave(line, wait)
            if hand_on:
                self._tell(1)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true, and return its value; after `timeout` seconds return it as it is."""
        until = end_of(timeout)
        result = predicate()
        while not result:
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake n of those that wait, the first first. RuntimeError when this thread doesn't hold the lock."""
        self._must_own("notify")
        self._tell(n)

    def notify_all(self) -> None:
        """Wake all that wait. RuntimeError as above."""
        self._must_own("notify")
        self._tell(lines.LINES)

    notifyAll = notify_all  # noqa: N815  # threading's

    def _tell(self, n: int) -> None:
        mutex = self._cell.mutex
        with mutex.held():
            mutex.done()
            for turn in self._waiting()[:n]:
                turns.tell(turn, _GO)

    def _look_after(self) -> None:
        """Those that were told and killed hand on what they were told."""
        lost = sum(told == _GO for _, told in turns.killed(self.offset))
        if lost:
            self._tell(lost)


class Barrier(Turned):
    """A place where a number of parties wait for each other, as `threading.Barrier`, between processes.

    A party that is killed while it waits breaks the barrier: the others get BrokenBarrierError. ValueError for
    parties < 1.
    """

    __slots__ = ("_action", "_timeout", "_values")
    _kind = "Barrier"

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if operator.index(parties) < 1:
            raise ValueError("parties must be > 0")
        if action is not None and not callable(action):
            raise UsageError(f"action={action!r}: a function without arguments is needed")
        super().__init__(name=name)
        self._values[_ROUND] = (
            self._cell.stamp & 0xFFFFFFFF
        )  # those that waited for what had the cell before are not ours
        self._values[_PARTIES] = parties
        self._action = action
        self._timeout = timeout

    def _adopt(self, cell: cells.Cell, name: str) -> None:
        super()._adopt(cell, name)
        self._values = arena.get().view(cell.offset + cells.FREE_AT, 16).cast("I")

    def __reduce__(self) -> tuple[Any, ...]:
        return _barrier, (self._cell, self._name, self._action, self._timeout)

    def __repr__(self) -> str:
        if not self._cell.is_open():
            state = "closed"
        else:
            state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<sync.Barrier at {self.offset} of the arena, {self._name!r}: {state}>"

    @property
    def parties(self) -> int:
        """How many it takes."""
        self._check_open()
        return self._values[_PARTIES]

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        self._check_open()
        return 0 if self._values[_OPENING] else len(self._waiting())  # being told, they are on their way

    @property
    def broken(self) -> bool:
        """Is it broken?"""
        self._check_open()
        return self._values[_IS_BROKEN] != 0

    def statistics(self) -> lot.Statistics:
        """Who waits, now. value: how many."""
        self._check_open()
        waiters = self._waiters()
        return lot.Statistics(self._name, True, None, waiters, len(waiters))

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties do; which of them this is, from 0 on.

        timeout: seconds, by default the barrier's own. BrokenBarrierError when it is or gets broken, by `abort`,
        `reset`, an action that fails, a time-out or a killed party.
        """
        if timeout is None:
            timeout = self._timeout
        until = end_of(timeout)
        shared = table.get()
        line = shared.claim()
        wait: graph.Wait | None = None
        try:
            place, told = self._arrive(line, timed=until is not None)
            if not told:
                wait = shared.begin(line, _thread.get_ident(), self, timed=until is not None)
                told = self._sleep(line, wait, until) or self._too_late(line)
            self._check_open()
            if told == _BROKEN:
                raise BrokenBarrierError
            return place
        finally:
            shared.leave(line, wait)

    def reset(self) -> None:
        """Empty and whole again; those that wait get BrokenBarrierError."""
        mutex = self._cell.mutex
        with mutex.held() as undone:
            self._enter(undone)
            self._end_round(_BROKEN)
            self._values[_IS_BROKEN] = 0
            mutex.done()

    def abort(self) -> None:
        """Break it: those that wait, and those that come, get BrokenBarrierError, until `reset`."""
        mutex = self._cell.mutex
        with mutex.held() as undone:
            self._enter(undone)
            self._break()
            mutex.done()

    def _waiting(self) -> list[turns.Turn]:
        return turns.waiting(self.offset, self._values[_ROUND])

    def _enter(self, undone: bool) -> None:
        """Inside the mutex: finish what a killed one left half done, and see whether one was killed as it waited."""
        self._check_open()
        values = self._values
        if undone and values[_OPENING]:
            self._end_round(values[_OPENING])
        if any(round == values[_ROUND] and not told for round, told in turns.killed(self.offset)):
            self._break()

    def _end_round(self, what: int) -> None:
        """Tell all that wait in this round. It is noted first, so a death in here leaves nobody untold."""
        values = self._values
        values[_OPENING] = what
        for turn in self._waiting():
            turns.tell(turn, what)
        values[_ROUND] = (values[_ROUND] + 1) & 0xFFFFFFFF
        values[_OPENING] = 0

    def _break(self) -> None:
        self._values[_IS_BROKEN] = 1
        self._end_round(_BROKEN)

    def _arrive(self, line: lines.Line, *, timed: bool) -> tuple[int, int]:
        """(which party this is, what it is told: 0 for "wait")."""
        mutex, values = self._cell.mutex, self._values
        with mutex.held() as undone:
            self._enter(undone)
            if values[_IS_BROKEN]:
                mutex.done()
                return 0, _BROKEN
            place = len(self._waiting())
            line.write(lines.TURN, self.offset, self.describe(), timed=timed, round=values[_ROUND])
            if place + 1 < values[_PARTIES]:
                mutex.done()
                return place, 0
            try:
                if self._action is not None:
                    self._action()
            except BaseException:
                self._break()
                mutex.done()
                raise
            self._end_round(_GO)
            mutex.done()
            return place, _GO

    def _too_late(self, line: lines.Line) -> int:
        """The time was over: break it, unless the round ended just then."""
        mutex = self._cell.mutex
        with mutex.held() as undone:
            self._enter(undone)
            told = line.told()
            if not told:
                self._break()
            mutex.done()
        return told or _BROKEN

    def _look_after(self) -> None:
        mutex = self._cell.mutex
        with mutex.held() as undone:
            self._enter(undone)
            mutex.done()


def _condition(cell: cells.Cell, name: str, lock: Exclusive) -> Condition:
    """A handle of what was sent."""
    handle = Condition.__new__(Condition)
    handle._adopt(cell, name)
    handle._use(lock)
    return handle


def _barrier(cell: cells.Cell, name: str, action: Any, timeout: float | None) -> Barrier:
    """A handle of what was sent."""
    handle = Barrier.__new__(Barrier)
    handle._adopt(cell, name)
    handle._action = action
    handle._timeout = timeout
    return handle
