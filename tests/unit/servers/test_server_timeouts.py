"""One timer for the time limits of all connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duodao.servers.timeouts import Timeouts


class Timer:
    """What call_at gives back."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        """Not to ring."""
        self.cancelled = True


class Loop:
    """A loop whose time the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        """The test's time."""
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Remember it."""
        self.timers.append(Timer(when, call))
        return self.timers[-1]

    def pending(self) -> list[Timer]:
        """Timers that are to ring."""
        return [timer for timer in self.timers if not timer.cancelled]

    def go(self, until: float) -> None:
        """Let time pass."""
        while due := [timer for timer in self.pending() if timer.when <= until]:
            timer = min(due, key=lambda t: t.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.call()
        self.now = until


def test_each_is_looked_at_when_its_time_is_over() -> None:
    """Entries of limits of different length are looked at in the order of their deadlines, each once."""
    loop, seen = Loop(), []
    timeouts = Timeouts(loop)  # type: ignore[arg-type]
    slow = timeouts.limit(10.0, lambda c: seen.append((loop.now, c)))
    quick = timeouts.limit(1.0, lambda c: seen.append((loop.now, c)))
    connections: list[Any] = ["a", "b", "c"]
    slow.add(connections[0])
    loop.go(0.5)
    quick.add(connections[1])
    loop.go(9.5)
    quick.add(connections[2])
    loop.go(30.0)
    assert seen == [(1.5, "b"), (10.0, "a"), (10.5, "c")]


def test_one_timer_and_none_without_connections() -> None:
    """A hundred entries need one timer; when the last is dropped and its time is over there is none."""
    loop = Loop()
    timeouts = Timeouts(loop)  # type: ignore[arg-type]
    limit = timeouts.limit(5.0, lambda _: None)
    for number in range(100):
        limit.add(number)
    assert len(loop.pending()) == 1
    for number in range(100):
        limit.drop(number)
    loop.go(6.0)
    assert loop.pending() == []


def test_a_look_may_add_it_again() -> None:
    """What is added while it is looked at is looked at once per period."""
    loop, seen = Loop(), []
    timeouts = Timeouts(loop)  # type: ignore[arg-type]

    def look(connection: Any) -> None:
        seen.append(loop.now)
        if len(seen) < 3:
            limit.add(connection)

    limit = timeouts.limit(2.0, look)
    limit.add("a")
    loop.go(20.0)
    assert seen == [2.0, 4.0, 6.0]


def test_no_limit_is_no_entry() -> None:
    """With None for a limit nothing is kept and no timer is set."""
    loop = Loop()
    limit = Timeouts(loop).limit(None, lambda _: None)  # type: ignore[arg-type]
    limit.add("a")
    assert (limit.due, loop.pending()) == ({}, [])
