"""The thread lane."""

from __future__ import annotations

import queue
import threading
from time import perf_counter
from typing import Any

from duodao.errors import SetupFailed
from duodao.lanes.base import Batch, Deliver, Failure, Result, Work, bind, contain
from duodao.lanes.resources import open_all


class Threads:
    """Calls run on up to `workers` threads."""

    name = "thread"
    target = 0.010
    depth = 2
    singly = False

    def __init__(self, work: Work, workers: int, **_: Any) -> None:
        self._work = work
        self.workers = workers
        self._inbox: queue.SimpleQueue[tuple[Batch, Deliver] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, batch: Batch, deliver: Deliver) -> None:
        self._inbox.put((batch, deliver))
        if len(self._threads) < self.workers:
            thread = threading.Thread(target=self._loop, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _loop(self) -> None:
        call: Any = None
        stack = None
        while True:
            entry = self._inbox.get()
            if entry is None:
                break
            batch, deliver = entry
            if call is None:
                try:
                    resources, stack = open_all(self._work.setup)
                except SetupFailed as error:
                    deliver(Result(batch, [], fatal=error))
                    return
                call = bind(self._work, resources)
            values: list[Any] = []
            errors: dict[int, Failure] = {}
            began = perf_counter()
            for item in batch.items:
                try:
                    values.append(call(item))
                except BaseException as error:
                    errors[len(values)] = Failure(contain(error))
                    values.append(None)
            deliver(Result(batch, values, errors=errors or None, seconds=perf_counter() - began))
            del batch, deliver, entry, values, errors
        if stack is not None:
            stack.close()

    def cancel(self, batch: Batch) -> None:
        pass

    def close(self, grace: float) -> None:
        threads, self._threads = self._threads, []
        for _ in threads:
            self._inbox.put(None)
        for thread in threads:
            thread.join(grace)
