"""A clock that tests move: nothing that waits on it ever waits."""

from __future__ import annotations

import heapq
import queue
from collections.abc import Callable
from itertools import count
from typing import Any


class Stalled(AssertionError):
    """Something waits without a time-out for what no script will ever send."""


class FakeClock:
    """Fulfils clock.Clock. `get` on an empty inbox jumps the time to the next planned event, or to the deadline.

    threads: True when real threads put into the inboxes too; a `get` without a time-out then really waits for them,
    where otherwise it raises Stalled. jumps: every time the clock was moved to, to see how often somebody woke.
    """

    def __init__(self, start: float = 0.0, *, threads: bool = False) -> None:
        self.jumps: list[float] = []
        self._now = start
        self._threads = threads
        self._planned: list[tuple[float, int, Callable[[], Any]]] = []
        self._tickets = count()

    def now(self) -> float:
        """The time, in seconds; it stands still until somebody moves it."""
        return self._now

    def wall(self) -> float:
        """The same, as seconds since some epoch."""
        return 1_000_000_000.0 + self._now

    def at(self, when: float, event: Callable[[], Any]) -> None:
        """Plan an event; it happens inside the `get` or `advance` that reaches its time."""
        heapq.heappush(self._planned, (when, next(self._tickets), event))

    def after(self, seconds: float, event: Callable[[], Any]) -> None:
        """Plan an event relative to now."""
        self.at(self._now + seconds, event)

    def advance(self, seconds: float) -> None:
        """Move the time on; planned events on the way happen at their own times."""
        ends = self._now + seconds
        while self._planned and self._planned[0][0] <= ends:
            self._happen()
        self._jump(ends)

    def get(self, inbox: queue.SimpleQueue[Any], timeout: float | None) -> Any:
        """The next entry, or None once `timeout` seconds have passed on this clock."""
        ends = None if timeout is None else self._now + max(0.0, timeout)
        while True:
            try:
                return inbox.get_nowait()
            except queue.Empty:
                pass
            if self._planned and (ends is None or self._planned[0][0] <= ends):
                self._happen()
            elif ends is not None:
                self._jump(ends)
                return None
            elif self._threads:
                return inbox.get()
            else:
                raise Stalled(f"at {self._now:g} s somebody waits without end, and nothing is planned to end it")

    def _happen(self) -> None:
        when, _, event = heapq.heappop(self._planned)
        self._jump(when)
        event()

    def _jump(self, when: float) -> None:
        if when > self._now:
            self._now = when
            self.jumps.append(when)
