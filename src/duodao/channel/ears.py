"""Tasks that wait on a shared queue: one thread listens for its bell, and wakes them.

    bell (futex) ──► thread: did it ring? ──► lot.wake_all(parked) ──► tasks look, and arm the thread again

The thread exists while a task waits. It sleeps on the bell only when armed: between waking tasks and their look it has
nothing to do, so it never turns round.
"""

# as the queues

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from duodao.channel.base import Awaited
from duodao.channel.index import Index
from duodao.sync import lot, robust


class Ears:
    """Of one handle, for one kind of bell. closed: says whether the handle was closed meanwhile."""

    def __init__(self, index: Index, want: int, closed: Callable[[], bool]) -> None:
        self._index = index
        self._want = want
        self._closed = closed
        self._parked: lot.Parked = deque()
        self._lock = threading.Lock()
        self._waiting = 0
        self._armed = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen = 0

    async def wait(self, on: Awaited, ready: Callable[[], Any], timeout: float | None) -> Any:
        """As lot.await_."""
        got = ready()
        if got or timeout == 0:
            return got
        self._come()
        try:
            return await lot.await_(on, self._parked, lambda: self._attempt(ready), timeout)
        finally:
            self._go()

    def _attempt(self, ready: Callable[[], Any]) -> Any:
        index = self._index
        index.words[self._want] = 1
        seen = index.bells[self._want].value
        got = ready()
        if not got:
            if not self._armed.is_set():
                self._seen = seen
            self._armed.set()
        return got

    def _come(self) -> None:
        with self._lock:
            self._waiting += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="duodao-shared-queue", daemon=True)
                self._thread.start()

    def _go(self) -> None:
        with self._lock:
            self._waiting -= 1
            last = not self._waiting
        if last:  # the thread ends; and a ring that none of us used is passed on
            self._armed.set()
            self._index.ring(self._want)

    def _listen(self) -> None:
        index, want = self._index, self._want
        bell = index.bells[want]
        while True:
            self._armed.wait()
            seen = self._seen
            self._armed.clear()
            while bell.value == seen and self._waiting and not self._closed():
                index.words[want] = 1
                if bell.value == seen and not bell.wait(seen, robust.SLICE):
                    index.mourn()
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
            lot.wake_all(self._parked)
