"""Where units park: how anything of ours blocks, for threads and for coroutines alike.

    releaser ── wake(parked) ──► ticket ──► its thread or task looks again: `ready()`

A lot is a deque of tickets, first come first served. A waiter parks, looks, and blocks only then; a releaser frees
first and looks into the deque second: so no wake-up is missed. Whoever comes by in between may take what was freed
(barging, as the locks of `threading`): the woken one parks again in front.

Invariant: a wake-up is never lost. A waiter that leaves without having used the one it got (time-out, Ctrl-C, a
cancelled task, a circle) passes it on.
Source: trio's ParkingLot; Amanieu d'Antras, parking_lot.
"""

from __future__ import annotations

import _thread
import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from duodao.sync import graph

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Statistics:
    """A primitive as it is now. owner: who holds it, None for nobody. value: permits left, parties waiting, ..."""

    name: str
    locked: bool
    owner: str | None
    waiters: tuple[str, ...]
    value: int | None = None


class ThreadTicket:
    """A parked thread."""

    __slots__ = ("_bell", "unit")

    def __init__(self) -> None:
        self.unit: graph.Unit = _thread.get_ident()
        self._bell = _thread.allocate_lock()
        self._bell.acquire()

    def signal(self) -> bool:
        """Wake it, from any thread; once is as good as twice. True: somebody hears it."""
        try:
            self._bell.release()
        except RuntimeError:  # it was signalled before
            return True
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until it is signalled; False after `timeout` seconds."""
        return self._bell.acquire(True, -1 if timeout is None else min(timeout, _thread.TIMEOUT_MAX))


class TaskTicket:
    """A parked task."""

    __slots__ = ("_future", "_loop", "_rung", "unit")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.unit: graph.Unit = task
        self._loop = task.get_loop()
        self._future: asyncio.Future[bool] | None = None
        self._rung = False

    def signal(self) -> bool:
        """Wake it, from any thread; once is as good as twice. False: its loop has been closed."""
        if asyncio._get_running_loop() is self._loop:
            self._ring()
            return True
        try:
            self._loop.call_soon_threadsafe(self._ring)
        except RuntimeError:
            return False
        return True

    def _ring(self, heard: bool = True) -> None:
        self._rung = self._rung or heard
        if self._future is not None and not self._future.done():
            self._future.set_result(heard)

    async def wait(self, timeout: float | None) -> bool:
        """Suspend until it is signalled; False after `timeout` seconds."""
        if not self._rung:
            self._future = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(timeout, self._ring, False)
            try:
                await self._future
            finally:
                self._future = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung


Ticket: TypeAlias = ThreadTicket | TaskTicket
Parked: TypeAlias = "deque[Ticket]"


def wait(on: graph.On, parked: Parked, ready: Callable[[], T], timeout: float | None = None) -> T | bool:
    """Block this thread until `ready()` gives something true, and return that; False after `timeout` seconds.

    ready: takes what is waited for, without blocking, or gives something false. timeout: None waits for ever.
    Raises Deadlock when the wait closes a circle, and what `graph.doom` gave it.
    """
    got = ready()
    if got or (timeout is not None and timeout <= 0):
        return got
    ticket = ThreadTicket()
    deadline = None if timeout is None else monotonic() + timeout
    stay = _Stay(parked, ticket)
    try:
        parked.append(ticket)
        got = ready()
        if got:
            return got
        edge = stay.edge = graph.begin(ticket.unit, on, timed=deadline is not None, ticket=ticket)
        while True:
            stay.woken = _block(edge, ticket, deadline)
            if edge.doom is not None:
                raise edge.doom
            got = ready()
            if got or not stay.woken:
                stay.used = bool(got)
                return got
            stay.woken = False
            parked.appendleft(ticket)
            got = ready()  # what was freed since then woke nobody
            if got:
                return got
            if deadline is None:
                graph.check(edge)  # another holds it now
    finally:
        stay.leave()


def _block(edge: graph.Wait, ticket: ThreadTicket, deadline: float | None) -> bool:
    if deadline is not None:
        return ticket.wait(max(deadline - monotonic(), 0.0))
    far = graph.FAR
    if far is not None and isinstance(edge.unit, int) and far.holds(edge.unit):
        return far.wait(edge, ticket)
    return ticket.wait(None)


async def await_(on: graph.On, parked: Parked, ready: Callable[[], T], timeout: float | None = None) -> T | bool:
    """`wait` for the running task: it suspends, its loop goes on."""
    got = ready()
    if got or (timeout is not None and timeout <= 0):
        return got
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError(f"{on.describe()} can only be awaited inside a task")
    ticket = TaskTicket(task)
    deadline = None if timeout is None else monotonic() + timeout
    stay = _Stay(parked, ticket)
    try:
        parked.append(ticket)
        got = ready()
        if got:
            return got
        edge = stay.edge = graph.begin(task, on, timed=deadline is not None, ticket=ticket)
        while True:
            stay.woken = await ticket.wait(None if deadline is None else max(deadline - monotonic(), 0.0))
            if edge.doom is not None:
                raise edge.doom
            got = ready()
            if got or not stay.woken:
                stay.used = bool(got)
                return got
            stay.woken = False
            parked.appendleft(ticket)
            got = ready()
            if got:
                return got
            if deadline is None:
                graph.check(edge)
    finally:
        stay.leave()


class _Stay:
    """What has to be put right when a waiter leaves, however it leaves."""

    __slots__ = ("edge", "parked", "ticket", "used", "woken")

    def __init__(self, parked: Parked, ticket: Ticket) -> None:
        self.parked = parked
        self.ticket = ticket
        self.edge: graph.Wait | None = None
        self.woken = False
        self.used = False  # the wake-up, for what it was meant

    def leave(self) -> None:
        if self.edge is not None:
            graph.end(self.edge)
        try:
            self.parked.remove(self.ticket)
        except ValueError:  # it was taken out to be woken
            if not (self.used and self.woken):
                wake(self.parked)


def wake(parked: Parked, count: int = 1) -> None:
    """Wake the first `count` that are parked."""
    while count > 0 and parked:
        try:
            ticket = parked.popleft()
        except IndexError:  # another was quicker
            return
        count -= ticket.signal()


def wake_all(parked: Parked) -> None:
    """Wake all that are parked now."""
    wake(parked, len(parked))


def names(parked: Parked) -> tuple[str, ...]:
    """Who is parked, the next first."""
    return tuple(graph.name_of(ticket.unit) for ticket in list(parked))
