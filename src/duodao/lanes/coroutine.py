"""The coroutine lane: long-lived worker tasks of one event loop share one deque of items.

Per item there is no task, no future, no semaphore and no wait_for: a worker pops an entry, awaits the call, appends the
outcome. What has ended during one turn of the loop goes out together, as one Result per batch. Time-outs need one timer
for the whole lane: all calls have the same limit, so the order of their starts is the order of their deadlines.

Rejected: asyncio.timeout, a timer per call that can't give up a call which swallows its cancellation; a turn of waiting
before a worker parks (slower: the turn costs more than the future it saves).
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import deque
from contextvars import copy_context
from itertools import count, repeat
from time import perf_counter
from typing import Any

from duodao.errors import CallExited, CallTimeout, Closed, SetupFailed
from duodao.lanes.base import Batch, Deliver, Failure, Result, Work, bind
from duodao.lanes.caught import caught
from duodao.lanes.eventloop import LoopThread, post
from duodao.lanes.flights import Flight, Hand
from duodao.lanes.resources import open_all_async
from duodao.lanes.seeds import bind_pairs

BREATH = 0.010
"""Seconds a turn of the loop may last before a worker delivers by itself and lets the loop go on."""
STUCK = 0.100
"""Seconds a turn of the loop may last before the user is told."""
AFTERWARDS = 0.05  # seconds until a cancelled worker's place is taken: the end of a loop is over by then
STUBBORN = 1.0
"""Seconds a cancelled call has to end before it is given up."""
FLOOR = 0.1
"""Seconds that cancelled calls have for their `finally` blocks when the lane is closed, whatever the grace."""


class Coroutines:
    """Up to `workers` calls in flight, on a loop and thread of its own, or on the running `loop` that is given.

    Calls see the context variables as they were when the lane was made; each worker task has its own copy.
    depth: with 4 x workers items handed over, none waits for the engine's thread to get the GIL (x 1.4 for `sleep(0)`).
    """

    name = "coroutine"
    target = 0.010
    depth = 4
    singly = True

    def __init__(self, work: Work, workers: int, loop: asyncio.AbstractEventLoop | None = None, **_: Any) -> None:
        self.workers = workers
        self._work = work
        self._context = copy_context()
        self._loop = loop
        self._own: LoopThread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._arrived: deque[Flight] = deque()  # by any thread
        self._asked = False
        # From here on: touched by the loop's thread only.
        self._queue: deque[tuple[Flight, int, Any]] = deque()
        self._hands: set[Hand] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._abandoned: set[asyncio.Task[None]] = set()
        self._dirty: list[Flight] = []
        self._mark: float | None = None  # since when a flush is due
        self._told = False
        self._limits: dict[Hand, None] = {}  # in the order of their starts
        self._timer: asyncio.TimerHandle | None = None
        self._call: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._release: asyncio.Future[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._trouble: list[str] = []

    # -- any thread ---------------------------------------------------------------------------------------------------

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Hand over the batch. From the loop's own thread its calls are queued at once."""
        if not batch.items:
            deliver(Result(batch, []))
            return
        with self._lock:
            if self._closed:
                raise Closed(f"the coroutine lane of {self._work.name} is closed")
            if self._loop is None:
                self._own = LoopThread()
                self._loop = self._own.loop
        loop = self._loop
        self._arrived.append(Flight(batch, deliver))
        if asyncio._get_running_loop() is loop:
            self._admit()
        elif not self._asked:  # `_admit` clears the flag before it reads the deque: no batch is left behind
            self._asked = True
            loop.call_soon_threadsafe(self._admit)

    def cancel(self, batch: Batch) -> None:
        """Cancel its calls; those not started never start."""
        if self._loop is not None and not self._closed:
            post(self._loop, self._cancel, batch)

    def close(self, grace: float) -> None:
        """Cancel every call, give them `grace` seconds to end, close the resources, end the loop's own thread.

        On a given loop, called from that loop, it can't wait: the loop ends what it began, and `aclose` waits for it.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if self._loop is None:
            return
        if first:
            post(self._loop, self._stop, grace)
        if asyncio._get_running_loop() is self._loop or self._loop.is_closed():
            return
        # A loop that is held by a blocking call can't be stopped: its thread is a daemon and ends when the call does.
        if self._stopping.wait(max(grace, FLOOR)):
            self._ended.wait(3 * max(grace, FLOOR) + STUBBORN)
            if self._own is not None:
                self._own.join(FLOOR)
        self._complain()

    async def aclose(self, grace: float) -> None:
        """As `close`, for the given loop and on it, and waits until all of it has ended."""
        self._closed = True
        self._stop(grace)
        if self._ending is not None:
            await self._ending
        self._complain()

    def _complain(self) -> None:
        trouble, self._trouble = self._trouble, []
        for text in trouble:
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    # -- on the loop: items and workers -------------------------------------------------------------------------------

    def _admit(self) -> None:
        self._asked = False
        if self._closed:
            return
        seeded = self._work.seed is not None
        new = 0
        while self._arrived:
            flight = self._arrived.popleft()
            batch = flight.batch
            items = zip(batch.items, batch.ids, strict=True) if seeded else batch.items
            self._queue.extend(zip(repeat(flight), count(), items))
            new += len(batch.items)
        if self._call is not None:
            self._rouse(new)
        elif not self._work.setup:
            self._open({})
        elif self._keeper is None:
            loop = asyncio.get_running_loop()
            self._release = loop.create_future()
            self._keeper = loop.create_task(self._keep(self._release), context=self._context.copy())

    def _open(self, resources: dict[str, Any]) -> None:
        work = self._work
        self._call = bind(work, resources) if work.seed is None else bind_pairs(work, resources, reseeds=False)
        self._rouse(len(self._queue))

    def _rouse(self, new: int) -> None:
        while new and self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                new -= 1
        loop = asyncio.get_running_loop()
        for _ in range(min(new, self.workers - len(self._hands))):
            hand = Hand()
            self._hands.add(hand)
            hand.task = loop.create_task(self._labour(hand, loop), context=self._context.copy())

    async def _labour(self, me: Hand, loop: asyncio.AbstractEventLoop) -> None:
        queue, call, now, limit = self._queue, self._call, perf_counter, self._work.timeout
        try:
            while not self._closed:
                while queue:
                    flight, position, item = queue.popleft()
                    me.flight, me.position = flight, position
                    began = me.began = now()
                    if self._mark is None:
                        self._mark = began
                        loop.call_soon(self._flush)
                    if limit is not None:
                        self._limit(me, limit, loop)
                    failure = None
                    try:
                        value = await call(item)
                    except BaseException as error:
                        value, failure = None, self._judge(me, error)
                    ended = now()
                    if limit is not None:
                        self._limits.pop(me, None)
                    if me.mercy is not None:
                        if me.lost:
                            return
                        me.recover()
                        if me.expired:
                            value, failure, me.expired = None, self._overran(failure), False
                    me.flight = None
                    if not flight.cancelled:
                        if failure is not None:
                            failure.seconds = ended - began
                            flight.errors[len(flight.values)] = failure
                        flight.values.append(value)
                        flight.positions.append(position)
                        flight.each.append(ended - began)
                        if not flight.dirty:
                            flight.dirty = True
                            self._dirty.append(flight)
                    del value, failure, item, flight  # nothing of them is held while this worker waits
                    if self._mark is None:
                        self._mark = ended
                        loop.call_soon(self._flush)
                    elif ended - self._mark > BREATH:
                        self._flush(ended)
                        await asyncio.sleep(0)
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
        finally:
            self._hands.discard(me)
            self._limits.pop(me, None)

    def _judge(self, me: Hand, error: BaseException) -> Failure:
        """The call's failure; raises a cancellation that was meant for the worker and not for its call."""
        cancelled = isinstance(error, asyncio.CancelledError) and me.task is not None and me.task.cancelling()
        if cancelled and (me.mercy is None or self._closed):
            self._forsake(me, error)
            raise error
        return caught(error)

    def _forsake(self, me: Hand, error: BaseException) -> None:
        """The loop's end cancelled the worker, or its own call did, which is owed an outcome, and what waits a worker.
        They look the same, but a loop that has ended comes to neither."""
        flight = me.flight
        if self._closed or flight is None or flight.cancelled:
            return
        flight.deliver(Result(flight.batch, [None], positions=[me.position], errors={0: caught(error)}))
        asyncio.get_running_loop().call_later(AFTERWARDS, self._replace)

    def _replace(self) -> None:
        if not self._closed:
            self._rouse(len(self._queue))

    # -- on the loop: deliveries --------------------------------------------------------------------------------------

    def _flush(self, now: float | None = None) -> None:
        """Deliver what has ended. The loop calls it once per turn; a worker in a long turn calls it with `now`."""
        direct = now is not None
        now = perf_counter() if now is None else now
        mark, self._mark = self._mark, (now if direct else None)
        dirty, self._dirty = self._dirty, []
        notices: tuple[str, ...] = ()
        if dirty and not self._told and mark is not None and now - mark > STUCK:
            self._told = True
            held = f"{self._work.name} held its event loop for {now - mark:.1f} s, and nothing else ran there meanwhile"
            notices = (f"{held}: calls that block belong on the thread lane, or into asyncio.to_thread",)
        for flight in dirty:
            flight.deliver(flight.take(notices))
            notices = ()

    # -- on the loop: time-outs and cancellation ----------------------------------------------------------------------

    def _limit(self, me: Hand, limit: float, loop: asyncio.AbstractEventLoop) -> None:
        self._limits[me] = None
        if self._timer is None:
            self._timer = loop.call_later(limit, self._expire, limit)

    def _expire(self, limit: float) -> None:
        self._timer = None
        now = perf_counter()
        for me in list(self._limits):
            if me.began + limit > now:
                self._timer = asyncio.get_running_loop().call_later(me.began + limit - now, self._expire, limit)
                return
            del self._limits[me]
            me.expired = True
            self._interrupt(me)

    def _interrupt(self, me: Hand) -> None:
        # The worker is suspended inside its call, so the cancellation can't land anywhere else.
        if me.task is not None and me.mercy is None:
            me.mercy = asyncio.get_running_loop().call_later(STUBBORN, self._abandon, me)
            me.task.cancel()

    def _overran(self, failure: Failure | None) -> Failure:
        error = CallTimeout(f"{self._work.name} ran longer than its time-out of {self._work.timeout:g} s")
        # What the call raised on its way out, mostly the CancelledError: its traceback shows where the call was.
        cause = None if failure is None else failure.error
        error.__cause__ = cause.__cause__ if isinstance(cause, CallExited) else cause
        return Failure(error, "timeout")

    def _abandon(self, me: Hand) -> None:
        flight, task = me.flight, me.task
        if flight is None or task is None:
            return
        me.lost = True
        self._hands.discard(me)
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        if not flight.cancelled:
            failure = self._overran(None)
            failure.seconds = seconds = perf_counter() - me.began
            notice = f"a call of {self._work.name} ignored its cancellation and was given up; it may still be running"
            where, errors = [me.position], {0: failure}
            flight.deliver(
                Result(flight.batch, [None], positions=where, errors=errors, seconds=seconds, notices=(notice,))
            )
        if self._queue and not self._closed:
            self._rouse(1)

    def _cancel(self, batch: Batch) -> None:
        stay: list[tuple[Flight, int, Any]] = []
        for entry in self._queue:
            if entry[0].batch is batch:
                entry[0].cancelled = True
            else:
                stay.append(entry)
        self._queue.clear()
        self._queue.extend(stay)
        for me in self._hands:
            if me.flight is not None and me.flight.batch is batch:
                me.flight.cancelled = True
                self._interrupt(me)

    # -- on the loop: resources and the end ---------------------------------------------------------------------------

    async def _keep(self, release: asyncio.Future[None]) -> None:
        # One task opens and closes: anyio's cancel scopes, and all that is built on them, insist on it.
        try:
            resources, stack = await open_all_async(self._work.setup)
        except SetupFailed as error:
            flights = {id(entry[0]): entry[0] for entry in self._queue}
            self._queue.clear()
            self._call = self._refuse
            for flight in flights.values():
                flight.deliver(Result(flight.batch, [], fatal=error))
            return
        try:
            self._open(resources)
            await release
        finally:
            await self._settle(FLOOR)  # there are calls left when it is the loop's own end that cancelled this task
            try:
                await stack.aclose()
            except Exception as error:
                self._trouble.append(f"closing a setup resource failed: {error!r}")

    async def _refuse(self, _item: Any) -> Any:
        raise SetupFailed(f"the setup of {self._work.name} has failed; no call can run without it")

    def _stop(self, grace: float) -> None:
        self._stopping.set()
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._finish(max(grace, FLOOR)))

    async def _settle(self, grace: float) -> None:
        self._queue.clear()
        tasks = [hand.task for hand in self._hands if hand.task is not None]
        await _end([*tasks, *self._abandoned], grace)

    async def _finish(self, grace: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._timer is not None:
                self._timer.cancel()
            await self._settle(grace)
            if self._keeper is not None:
                if self._call is None:  # it is still opening
                    self._keeper.cancel()
                elif self._release is not None and not self._release.done():
                    self._release.set_result(None)
                await asyncio.wait([self._keeper], timeout=grace + STUBBORN)
            self._flush()
            if self._own is not None:
                await _end([task for task in asyncio.all_tasks() if task is not asyncio.current_task()], grace)
                rest = [loop.create_task(loop.shutdown_asyncgens()), loop.create_task(loop.shutdown_default_executor())]
                await asyncio.wait(rest, timeout=grace)
        finally:
            if self._own is not None:
                loop.stop()
            self._ended.set()


async def _end(tasks: list[asyncio.Task[None]], grace: float) -> None:
    """Cancel them and wait for them, at most `grace` seconds."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, stubborn = await asyncio.wait(tasks, timeout=grace)
        for task in stubborn:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # a notice has said so, or close() was told to
