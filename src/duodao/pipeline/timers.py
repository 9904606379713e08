"""Things to do later, by a clock that tests may move: restarts, the end of a grace, a second look."""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from duodao.clock import Clock
from duodao.lanes.eventloop import launch

_LOG = logging.getLogger("duodao")


class Timers:
    """One thread that calls functions at their times. It is started by the first of them, and ended by `close`."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[float, int, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._closed = False
        self.thread: threading.Thread | None = None

    def call(self, delay: float, function: Callable[[], Any]) -> None:
        """Call it in `delay` seconds, in the thread of the timers; never once they are closed."""
        with self._lock:
            if self._closed:
                return
            self._inbox.put((self._clock.now() + delay, next(self._numbers), function))
            if self.thread is None:
                self.thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                try:
                    launch(self.thread)
                except BaseException:
                    if self.thread not in threading.enumerate():  # else it was Ctrl-C, and `close` will end it
                        self.thread = None
                    raise

    def close(self) -> None:
        """End the thread; what was not due is dropped. Idempotent."""
        with self._lock:
            self._closed = True
            thread = self.thread
        if thread is not None:
            self._inbox.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _main(self) -> None:
        due: list[tuple[float, int, Callable[[], Any]]] = []
        clock = self._clock
        while not self._closed:
            entry = clock.get(self._inbox, max(0.0, due[0][0] - clock.now()) if due else None)
            if entry is not None:
                heapq.heappush(due, entry)
            while due and due[0][0] <= clock.now() and not self._closed:
                function = heapq.heappop(due)[2]
                try:
                    function()
                except Exception:  # it must not take the others with it
                    _LOG.exception("a timer of %s failed", self._name)
