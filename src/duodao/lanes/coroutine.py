"""The coroutine lane."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from duodao.lanes.base import Batch, Deliver, Failure, Result, Work, bind, contain


class Coroutines:
    """Calls run as coroutines of one event loop."""

    name = "coroutine"
    target = 0.010
    depth = 2
    singly = True

    def __init__(self, work: Work, workers: int, loop: asyncio.AbstractEventLoop | None = None, **_: Any) -> None:
        self._work = work
        self.workers = workers
        self._own = loop is None
        self._loop = loop or asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(workers)
        self._call = bind(work)

    def start(self, batch: Batch, deliver: Deliver) -> None:
        if self._own and self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._feed, batch, deliver)

    def _feed(self, batch: Batch, deliver: Deliver) -> None:
        for position, item in enumerate(batch.items):
            task = self._loop.create_task(self._one(batch, deliver, position, item))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, batch: Batch, deliver: Deliver, position: int, item: Any) -> None:
        async with self._gate:
            value, errors = None, None
            try:
                value = await self._call(item)
            except Exception as error:
                errors = {0: Failure(contain(error))}
            deliver(Result(batch, [value], positions=[position], errors=errors))

    def cancel(self, batch: Batch) -> None:
        pass

    def close(self, grace: float) -> None:
        if not self._own:
            for task in self._tasks:
                task.cancel()
            return
        thread, self._thread = self._thread, None
        if thread is not None:

            async def finish() -> None:
                others = [t for t in self._tasks if not t.done()]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                self._loop.stop()

            asyncio.run_coroutine_threadsafe(finish(), self._loop)
            thread.join(grace)
        if not self._loop.is_closed() and not self._loop.is_running():
            self._loop.close()
