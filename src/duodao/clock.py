"""The one place that knows time and the only one that waits for it, so that tests can put a clock of their own here."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Protocol


class Clock(Protocol):
    """Monotonic seconds, and a wait on a queue that ends at a time."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def get(self, inbox: queue.SimpleQueue[Any], timeout: float | None) -> Any:
        """The next entry of `inbox`, or None after `timeout` seconds (None: wait without end)."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, for records only."""
        ...


class SystemClock:
    """The machine's own."""

    now = staticmethod(time.perf_counter)
    wall = staticmethod(time.time)

    @staticmethod
    def get(inbox: queue.SimpleQueue[Any], timeout: float | None) -> Any:
        """The next entry of `inbox`, or None after `timeout` seconds, 292 years at most."""
        if timeout is not None and timeout <= 0:
            try:
                return inbox.get_nowait()
            except queue.Empty:
                return None
        try:
            return inbox.get(timeout=None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None


SYSTEM = SystemClock()
