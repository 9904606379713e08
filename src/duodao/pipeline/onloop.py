"""A pool's coroutines, on one event loop in a thread of its own; and its calls in the caller's thread (`inline`)."""

from __future__ import annotations

import asyncio
import inspect
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from duodao.errors import Deadlock
from duodao.lanes.base import Batch, Lane, Result, Work
from duodao.lanes.choose import make
from duodao.lanes.foreign import set_traceback
from duodao.pipeline.future import Call, Future
from duodao.pipeline.roster import Roster
from duodao.sync import graph


class OnLoop(Roster):
    """The coroutine lane of a pool. idle: seconds until the loop ends when nothing runs on it.

    A task that awaits calls which have not begun lends its place: another task, its stand-in, runs them one by one
    meanwhile. So calls that await calls never starve, however few may run at a time.
    """

    lane = "coroutine"

    def __init__(self, workers: int, name: str, setup: dict[str, Callable[[], Any]], idle: float) -> None:
        super().__init__(workers, name)
        self._idle = idle
        self._work = Work(self._run, f"the calls of {name}", setup=setup, is_async=True)
        self._lane: Lane | None = None
        self._open: dict[Future, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._lent: dict[asyncio.Task[Any], deque[Future]] = {}  # who awaits -> what its stand-in is still to run
        self._stand_ins: set[asyncio.Task[None]] = set()
        self._early: set[Future] = set()  # in the hands of a stand-in

    def submit(self, call: Call) -> Future:
        """Queue a call."""
        future = Future(self, call)
        with self._lock:
            if not self.open:
                self.refuse()
            self._open[future] = None
            self._number += 1
            lane = self._lane = self._lane or make(self.lane, self._work, self.workers)
            batch = Batch(range(self._number, self._number + 1), [future])
        lane.start(batch, self._came)
        return future

    async def _run(self, future: Future, **_: Any) -> None:
        call = future.take()
        if call is None:
            return
        function, args, kwargs = call
        del call
        self._loop = asyncio.get_running_loop()
        if not future.set_running_or_notify_cancel():
            return
        future.by = asyncio.current_task()
        try:
            found = function(*args, **kwargs)
            if not inspect.isawaitable(found):
                raise TypeError(  # noqa: TRY301  # it is the call's own error
                    f"{function!r} is no async function: it has run, and blocked the loop meanwhile; "
                    "use a pool with lane='thread' or lane='process'"
                )
            value = await found
        except BaseException as error:
            trace = error.__traceback__
            set_traceback(error, None if trace is None else trace.tb_next)
            del trace, function, args, kwargs
            future.set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            del function, args, kwargs
            future.set_result(value)

    def awaited(self, future: Future) -> None:
        """A task of ours is about to await it, by `asyncio.wrap_future`."""
        loop = asyncio._get_running_loop()
        if future.call is None or loop is None or loop is not self._loop:
            return
        task = asyncio.current_task()
        if task is None:
            return
        if task in self._lent:
            self._lent[task].append(future)
            return
        self._lent[task] = deque((future,))
        stand_in = loop.create_task(self._stand_in(task))
        self._stand_ins.add(stand_in)  # the loop alone would let the collector have it
        stand_in.add_done_callback(self._stand_ins.discard)

    async def _stand_in(self, task: asyncio.Task[Any]) -> None:
        wanted = self._lent[task]
        me = asyncio.current_task()
        try:
            while wanted:
                future = wanted.popleft()
                if future.call is None:
                    continue
                self._early.add(future)
                try:
                    await self._run(future)
                except asyncio.CancelledError:
                    if me is not None and me.cancelling():  # else the call raised it
                        raise
                finally:
                    self._early.discard(future)
                    self._ended(future)
        finally:
            del self._lent[task]

    def _came(self, result: Result) -> None:
        future: Future = result.batch.items[0]
        if result.fatal is not None:
            self.fail(result.fatal)
            future.withdraw(self.broken)
        if future not in self._early:  # else its stand-in ends it
            self._ended(future)

    def _ended(self, future: Future) -> None:
        with self._lock:
            self._open.pop(future, None)
            number = None if self._open else self._number
        if number is not None:
            if self.closed:
                self._let_go()
            elif asyncio._get_running_loop() is not None:
                asyncio.get_running_loop().call_later(self._idle, self._retire, number)
        self.changed()

    def _retire(self, number: int) -> None:
        with self._lock:
            if number == self._number and not self._open:
                self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            lane, self._lane = self._lane, None
        if lane is not None:
            lane.close(0.0)

    def attend(self, future: Future, timeout: float | None) -> None:
        """Wait; but not on the loop that is to run it."""
        if timeout is None and self._loop is not None and asyncio._get_running_loop() is self._loop:
            raise self._blocks(future)
        future.park(timeout)

    def _blocks(self, future: Future) -> Deadlock:
        return Deadlock(
            f"waiting for {future!r} blocks the event loop of {self.name}, which is to run it: "
            "`await asyncio.wrap_future(future)` instead"
        )

    def installed(self, waiter: object, future: Future) -> None:
        """`concurrent.futures.wait` and `as_completed`: as `attend`."""
        del waiter
        if self._loop is not None and asyncio._get_running_loop() is self._loop:
            raise self._blocks(future)

    def resolvers(self, future: Future) -> Sequence[graph.Unit] | None:
        """Of a call that waits for its turn: any that runs, when no more may run."""
        busy = self.busy()
        return busy if future.call is not None and len(busy) >= self.workers else None

    def busy(self) -> Sequence[graph.Unit]:
        """The tasks that are in calls."""
        return [future.by for future in list(self._open) if future.by is not None]

    def drop(self) -> list[Future]:
        """What has not begun."""
        return [future for future in list(self._open) if future.call is not None]

    def over(self) -> bool:
        """Has everything ended?"""
        return not self._open

    def wind_down(self) -> None:
        """The last call's end closes the lane."""
        if not self._open:
            self._let_go()

    def dismiss(self, seconds: float) -> None:
        """End the loop."""
        del seconds
        self._let_go()
        for thread in threading.enumerate():
            if thread.name == "duodao-coroutine" and self._loop is not None and self._loop.is_closed():
                break


class Inline(OnLoop):
    """Calls run in `submit`, one inside the other where they submit themselves."""

    lane = "inline"

    def __init__(self, workers: int, name: str, setup: dict[str, Callable[[], Any]], idle: float) -> None:
        super().__init__(workers, name, setup, idle)
        self._work = Work(self._here, f"the calls of {name}", setup=setup)

    def _here(self, future: Future, **_: Any) -> None:
        future.run(get_ident())
