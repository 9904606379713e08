"""Where units park: how anything of ours blocks, for threads and for coroutines alike.

    releaser ── wake(parked) ──► ticket ──► its thread or task looks again: `ready()`

A lot is a deque of tickets, first come first served. A waiter parks, looks, and blocks only then; a releaser frees
first and looks into the deque second: so no wake-up is missed. Whoever comes by in between may take what was freed
(barging, as the locks of `threading`): the woken one parks again in front.

Invariant: a wake-up is never lost. A waiter that leaves without having used the one it got (time-out, Ctrl-C, a
cancelled task, a circle) passes it on; a releaser that is interrupted by Ctrl-C wakes all.
Source: trio's ParkingLot; Amanieu d'Antras, parking_lot.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from duodao.sync import ends, graph

T = TypeVar("T")
_LOOK = 0.05
_VAIN = 4
"""So often a waiter may be woken in vain before those that release wait a moment for it to have its look."""
_MOMENT = 0.005
"""Seconds that they wait at most: a thread that is woken has to get the GIL first."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A primitive as it is now. owner: who holds it, None for nobody. value: permits left, parties waiting, ..."""

    name: str
    locked: bool
    owner: str | None
    waiters: tuple[str, ...]
    value: int | None = None


def lose(error: BaseException, lock: object) -> None:
    """Note on an error that ended the wait of a Condition before it had its lock again: who unwinds doesn't hold it."""
    error.__dict__.setdefault("_lost", []).append(lock)


def is_lost(error: BaseException | None, lock: object) -> bool:
    """Is this, or what it came from, the error with which the holder lost the lock?"""
    while error is not None:
        if any(each is lock for each in error.__dict__.get("_lost", ())):
            return True
        error = error.__context__
    return False


class Ticket:
    """One stay in a lot. It is rung once; who parks again takes a new one.

    vain: how often its waiter, if a fair one, was woken and found that another had been quicker. Whoever parks other
    than by `wait` and `await_` subclasses this, says in `_ring` how it is told, and goes out by `close`, then `remove`.
    """

    unit: graph.Unit

    __slots__ = ("_born", "_looked", "_unrung", "unit", "vain")

    def __init__(self, vain: int = 0) -> None:
        self._born = graph.era()
        self._unrung = [True]
        self.vain = vain
        self._looked: Any = None
        if vain > _VAIN:
            self._looked = _thread.allocate_lock()
            self._looked.acquire()

    def signal(self) -> bool:
        """Wake it, from any thread. False: it was rung before or is closed, or its thread is not here any more."""
        if self._born != graph.era():  # parked before a fork
            return False
        try:
            self._unrung.pop()
            return self._ring()
        except IndexError:
            return False
        except BaseException:  # Ctrl-C between the two
            self._ring()
            raise

    @property
    def rung(self) -> bool:
        """Has it been rung, or closed?"""
        return not self._unrung

    @property
    def dead(self) -> bool:
        """Will its waiter never look, since it was left behind by a fork or in a closed loop?"""
        return self._born != graph.era()

    def close(self) -> bool:
        """Let nobody ring it from now on. False: it was rung before."""
        try:
            self._unrung.pop()
        except IndexError:
            return False
        return True

    def looked(self) -> None:
        """Its waiter has had its look."""
        if self._looked is not None and self._looked.locked():
            self._looked.release()

    def let_look(self) -> None:
        """Wait a moment until it has, for the sake of one that was woken in vain again and again."""
        if self._looked is not None and self._elsewhere():
            self._looked.acquire(True, _MOMENT)

    def _ring(self) -> bool:
        raise NotImplementedError

    def _elsewhere(self) -> bool:
        return True


class ThreadTicket(Ticket):
    """A parked thread."""

    __slots__ = ("_bell",)

    def __init__(self, vain: int = 0) -> None:
        super().__init__(vain)
        self.unit = _thread.get_ident()
        self._bell = _thread.allocate_lock()
        self._bell.acquire()

    def _ring(self) -> bool:
        if self._bell.locked():
            self._bell.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until it is signalled; False after `timeout` seconds.

        The main thread looks up after 50, 100, 200 ms, ...: a signal that came in the instant before it blocked is
        seen by Python only then (the window is in C, where no lock of Python's closes it).
        """
        left = _thread.TIMEOUT_MAX if timeout is None else min(timeout, _thread.TIMEOUT_MAX)
        if self.unit == threading.main_thread().ident:
            span = _LOOK
            while span < left:
                if self._bell.acquire(True, span):
                    return True
                left -= span
                span *= 2
        return self._bell.acquire(True, left)


class TaskTicket(Ticket):
    """A parked task."""

    __slots__ = ("_future", "_loop", "_rang")

    def __init__(self, task: asyncio.Task[Any], vain: int = 0) -> None:
        super().__init__(vain)
        self.unit = task
        self._loop = task.get_loop()
        self._future: asyncio.Future[bool] | None = None
        self._rang = False  # as the loop knows it

    def _ring(self) -> bool:
        if not self._elsewhere():
            self._end(True)
            return True
        try:
            self._loop.call_soon_threadsafe(self._end, True)
        except RuntimeError:  # closed
            return False
        return True

    @property
    def dead(self) -> bool:
        """Will its waiter never look, since it was left behind by a fork or in a closed loop?"""
        return self._born != graph.era() or self._loop.is_closed()

    def _elsewhere(self) -> bool:
        return asyncio._get_running_loop() is not self._loop

    def _end(self, heard: bool) -> None:
        self._rang = self._rang or heard
        if self._future is not None and not self._future.done():
            self._future.set_result(heard)

    async def wait(self, timeout: float | None) -> bool:
        """Suspend until it is signalled; False after `timeout` seconds."""
        if not self._rang:
            self._future = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(timeout, self._end, False)
            try:
                await self._future
            finally:
                self._future = None
                if timer is not None:
                    timer.cancel()
        return self._rang


Parked: TypeAlias = "deque[Ticket]"


def wait(
    on: graph.On, parked: Parked, ready: Callable[[], T], timeout: float | None = None, *, fair: bool = False
) -> T | bool:
    """Block this thread until `ready()` gives something true, and return that; False after `timeout` seconds.

    ready: takes what is waited for, without blocking, or gives something false. timeout: None waits for ever. fair: who
    wakes this one after it was woken in vain a few times waits a moment for it, and so must hold nothing that `ready`
    needs.
    Raises Deadlock when the wait closes a circle, and what `graph.doom` gave it.
    """
    got = ready()
    if got or (timeout is not None and timeout <= 0):
        return got
    deadline = None if timeout is None else monotonic() + timeout
    ticket = ThreadTicket()
    stay = _Stay(parked, ticket)
    try:
        parked.append(ticket)
        got = ready()
        if got:
            return got
        edge = stay.edge = graph.begin(ticket.unit, on, timed=deadline is not None, ticket=ticket)
        while True:
            woken = _block(edge, ticket, deadline)
            if edge.doom is not None:
                raise edge.doom
            got = ready()
            if woken is None and not got:
                continue
            if got or not woken:
                stay.used = bool(woken)
                return got
            ticket = ThreadTicket(ticket.vain + fair)
            stay.park_again(ticket)
            got = ready()  # what was freed since then woke nobody
            if got:
                return got
            if edge.doom is not None:
                raise edge.doom
            if deadline is None:
                graph.check(edge)  # another holds it now
    finally:
        stay.leave()


def _span(edge: graph.Wait, deadline: float | None) -> float | None:
    """Seconds to block now: until the time is over, or until a holder whose end nobody tells is looked at again."""
    left = None if deadline is None else max(deadline - monotonic(), 0.0)
    if ends.attend(edge.on):
        return left
    return ends.SLICE if left is None else min(left, ends.SLICE)


def _block(edge: graph.Wait, ticket: ThreadTicket, deadline: float | None) -> bool | None:
    """True: woken; False: the time is over; None: look again."""
    span = _span(edge, deadline)
    if span is None:
        far = graph.FAR
        if far is not None and isinstance(edge.unit, int) and far.holds(edge.unit):
            return far.wait(edge, ticket)
        return ticket.wait(None)
    return ticket.wait(span) or (None if deadline is None or monotonic() < deadline else False)


async def await_(
    on: graph.On, parked: Parked, ready: Callable[[], T], timeout: float | None = None, *, fair: bool = False
) -> T | bool:
    """`wait` for the running task: it suspends, its loop goes on.

    fair: also, nobody is overtaken who stands there already, as asyncio's own have it; what is freed must then reach
    all that can have it, by the one that got it before.
    """
    got = False if fair and not _is_first(parked) else ready()
    if got or (timeout is not None and timeout <= 0):
        return got
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError(f"{on.describe()} can only be awaited inside a task")
    deadline = None if timeout is None else monotonic() + timeout
    ticket = TaskTicket(task)
    stay = _Stay(parked, ticket)
    try:
        parked.append(ticket)
        got = False if fair and not _is_first(parked, ticket) else ready()
        if got:
            return got
        edge = stay.edge = graph.begin(task, on, timed=deadline is not None, ticket=ticket)
        while True:
            woken = await ticket.wait(_span(edge, deadline))
            if edge.doom is not None:
                raise edge.doom
            got = ready()
            if not (got or woken) and (deadline is None or monotonic() < deadline):
                continue
            if got or not woken:
                stay.used = bool(woken)
                return got
            ticket = TaskTicket(task, ticket.vain + fair)
            stay.park_again(ticket)
            got = ready()
            if got:
                return got
            if edge.doom is not None:
                raise edge.doom
            if deadline is None:
                graph.check(edge)
    finally:
        stay.leave()


def _is_first(parked: Parked, ticket: Ticket | None = None) -> bool:
    """Does nobody who lives stand before this one, or at all?"""
    for other in list(parked):
        if other is ticket:
            return True
        if not other.dead:
            return False
        with contextlib.suppress(ValueError):
            parked.remove(other)
    return True


class _Stay:
    """What has to be put right when a waiter leaves, however it leaves."""

    __slots__ = ("edge", "parked", "ticket", "used")

    def __init__(self, parked: Parked, ticket: Ticket) -> None:
        self.parked = parked
        self.ticket = ticket
        self.edge: graph.Wait | None = None
        self.used = False  # the wake-up, for what it was meant

    def park_again(self, ticket: Ticket) -> None:
        """In front, since its turn had come. The caller looks for a doom afterwards: it may have rung the old one."""
        assert self.edge is not None
        old, self.ticket = self.ticket, ticket
        self.edge.ticket = ticket
        self.parked.appendleft(ticket)
        self._step_out(old)

    def leave(self) -> None:
        ticket = self.ticket
        edge = self.edge or graph.waiting(ticket.unit)
        if edge is not None and edge.ticket is ticket:  # published, though Ctrl-C came before it was noted here
            graph.end(edge)
        rung = not ticket.close()
        self._step_out(ticket)
        if rung and not self.used:
            wake(self.parked)

    def _step_out(self, ticket: Ticket) -> None:
        with contextlib.suppress(ValueError):
            self.parked.remove(ticket)
        ticket.looked()


def wake(parked: Parked, count: int = 1) -> None:
    """Wake the first `count` that are parked and not yet rung. They leave the lot by themselves, when they have looked.

    Until then they stand in it, so that a fair newcomer sees that somebody is before it.
    """
    try:
        for ticket in list(parked):
            if ticket.signal():
                ticket.let_look()
                count -= 1
                if count <= 0:
                    return
            elif ticket.dead:
                with contextlib.suppress(ValueError):
                    parked.remove(ticket)
    except BaseException:  # Ctrl-C in here: rather one too many than one too few
        for ticket in list(parked):
            ticket.signal()
        raise


def wake_all(parked: Parked) -> None:
    """Wake all that are parked now."""
    wake(parked, len(parked))


def names(parked: Parked) -> tuple[str, ...]:
    """Who is parked, the next first."""
    return tuple(graph.name_of(ticket.unit) for ticket in list(parked))
