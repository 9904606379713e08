"""The time limits of all connections of a process, by one timer; none while there is no connection.

Everything that waits for the same limit has the same length of time, so the order of arrival is the order of deadlines,
and taking part costs one entry in a dict. Nothing is done per message: a connection is looked at when its time is over,
and its counters say whether something has happened since.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from duodao.servers.connection import Connection

    Look = Callable[[Connection], None]


class Limit:
    """Connections that are looked at `seconds` after they were added; None: never."""

    __slots__ = ("_look", "_timeouts", "due", "seconds")

    def __init__(self, timeouts: Timeouts, seconds: float | None, look: Look) -> None:
        self._timeouts = timeouts
        self._look = look
        self.seconds = seconds
        self.due: dict[Connection, float] = {}

    def add(self, connection: Connection) -> None:
        """Look at it after `seconds`, counted from now."""
        if self.seconds is not None:
            self.due.pop(connection, None)  # a dict keeps an old key's place
            self.due[connection] = when = self._timeouts.loop.time() + self.seconds
            self._timeouts.arm(when)

    def drop(self, connection: Connection) -> None:
        """Don't look at it."""
        self.due.pop(connection, None)

    def head(self) -> float:
        """When the next one is due."""
        return next(iter(self.due.values()), inf)

    def look(self, now: float) -> None:
        """At all that are due."""
        while self.head() <= now:
            connection = next(iter(self.due))
            del self.due[connection]
            self._look(connection)


class Timeouts:
    """All limits, and their timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._limits: list[Limit] = []
        self._timer: asyncio.TimerHandle | None = None
        self._when = inf

    def limit(self, seconds: float | None, look: Look) -> Limit:
        """A limit of that many seconds; `look` says what is done with a connection when they are over."""
        made = Limit(self, seconds, look)
        self._limits.append(made)
        return made

    def arm(self, when: float) -> None:
        """Ring at `when`, if not before."""
        if when < self._when:
            if self._timer is not None:
                self._timer.cancel()
            self._when = when
            self._timer = self.loop.call_at(when, self._ring)

    def stop(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer, self._when = None, inf
        now = self.loop.time() + 0.001  # loops keep time in whole milliseconds
        for limit in self._limits:
            limit.look(now)
        soonest = min(limit.head() for limit in self._limits)
        if soonest < inf:
            self.arm(soonest)
