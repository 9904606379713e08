"""A pool's processes: queued calls go out in batches, their outcomes come back one by one.

    submit ─► queue ── calls known to be short together, others alone ─► process lane ─► worker
    future ◄─────────────── outcome by outcome ◄──────────────────────────────┘

The lane is used `apart`: no call runs twice, and what waits in a batch behind a call of 20 ms comes back, to go to
another worker. Two batches per worker are out: one runs, one waits in its pipe, from where an idle worker may have it.

Invariants:
  1. A future is claimed (running, no longer cancelled) when it leaves the queue, and ends exactly once.
  2. What comes back as lost had not begun: it goes out again, alone, so that a death in it is its own.
  3. No user code runs in the lane's thread: callbacks have a thread of their own, unpickling excepted.
"""

from __future__ import annotations

import contextlib
import functools
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any

from duodao import pickling
from duodao.errors import RemoteTraceback, SetupFailed, WorkerDied
from duodao.lanes.base import Batch, Failure, Lane, Result, Work
from duodao.lanes.choose import make
from duodao.lanes.foreign import set_cause
from duodao.pipeline.apply import Left, apply
from duodao.pipeline.callbacks import Callbacks
from duodao.pipeline.freezer import Freezer
from duodao.pipeline.future import Call, Future, call_back
from duodao.pipeline.pace import MOST, SHORT, TOGETHER, Pace
from duodao.pipeline.roster import Roster
from duodao.sync import graph

DEPTH = 2
"""Batches per worker that are out."""


class _Out:
    """What is out with a batch."""

    __slots__ = ("calls", "futures", "left")

    def __init__(self, futures: list[Future], calls: list[Call]) -> None:
        self.futures = futures
        self.calls = calls
        self.left = len(futures)


class Courier(Roster):
    """The process lane of a pool. max_calls: after so many a worker is replaced; idle: seconds an idle one stays."""

    def __init__(
        self, workers: int, name: str, setup: dict[str, Callable[[], Any]], idle: float, max_calls: int | None
    ) -> None:
        super().__init__(workers, name)
        self._work = Work(apply, f"the calls of {name}", setup=setup, apart=True, max_calls=max_calls)
        self._idle = idle
        self._together = MOST if max_calls is None else 1
        self._lane: Lane | None = None
        self._queue: deque[Future] = deque()
        self._again: deque[tuple[Future, Call]] = deque()
        self._batches: dict[Future, Batch] = {}
        self._out = 0
        self._number = 0
        self._killed = False
        self._pace = Pace()
        self._freeze = Freezer(pickling.dumps)
        self._inside: set[int] = set()  # threads that deliver
        self._pumping: set[int] = set()  # threads that send
        self._callbacks = Callbacks(f"{name}-callbacks", idle, self.changed)

    def submit(self, call: Call) -> Future:
        """Queue a call; it is pickled here when a worker is free for it, else when one is."""
        future = Future(self, call)
        with self._lock:
            if not self.open:
                self.refuse()
            self._queue.append(future)
            room = self._out < self.workers * DEPTH
        if room:
            self._pump()
        return future

    def _pump(self) -> None:
        """Send what there is room for. What comes back at once (it can't be pickled) finds this loop at work."""
        me = get_ident()
        if me in self._pumping:
            return
        self._pumping.add(me)
        try:
            self._send()
        finally:
            self._pumping.discard(me)

    def _send(self) -> None:
        while True:
            with self._lock:
                if self._out >= self.workers * DEPTH:
                    return
                out = self._take()
                if out is None:
                    return
                self._out += 1
                first, self._number = self._number, self._number + out.left
                lane = self._lane = self._lane or make("process", self._work, self.workers, idle=self._idle)
            batch = Batch(range(first, first + out.left), self._pack(out), careful=out.left == 1, note=out)
            for future in out.futures:
                self._batches[future] = batch
            if not out.left:
                self._came(0, out)
                continue
            try:
                lane.start(batch, functools.partial(self._deliver, lane))
            except Exception as error:
                self._deliver(lane, Result(batch, [], fatal=error))
            except BaseException:  # Ctrl-C: perhaps it was sent, perhaps not
                lane.cancel(batch)
                interrupted = CancelledError("Ctrl-C came while the call was sent; it may have run")
                for future in out.futures:
                    self._settle(future, None, interrupted)
                self._came(out.left, out)
                raise

    def _take(self) -> _Out | None:
        """The next calls that go together, claimed. Under the lock."""
        if self._again:
            future, call = self._again.popleft()
            return _Out([future], [call])
        futures: list[Future] = []
        calls: list[Call] = []
        most = min(self._together, -(-len(self._queue) // self.workers))
        total = 0.0
        while self._queue and len(futures) < most and total < TOGETHER:
            future = self._queue[0]
            waiting = future.call
            seconds = 0.0 if waiting is None else self._pace.of(waiting[0])
            if futures and seconds >= SHORT:
                break
            self._queue.popleft()
            taken = future.take()
            if taken is None or not future.set_running_or_notify_cancel():
                continue
            futures.append(future)
            calls.append(taken)
            total += seconds if seconds < SHORT else TOGETHER
        return _Out(futures, calls) if futures else None

    def _pack(self, out: _Out) -> list[Any]:
        """The items as they travel; calls whose function can't be pickled fail here."""
        items: list[Any] = []
        bad: list[int] = []
        for at, (function, args, kwargs) in enumerate(out.calls):
            try:
                items.append((self._freeze(function), args, kwargs))
            except pickling.Raised as error:
                bad.append(at)
                refused = pickling.not_picklable(function, "function", error)
                self._settle(out.futures[at], None, self.translate(refused))
        for at in reversed(bad):
            del out.futures[at], out.calls[at]
        out.left = len(items)
        return items

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _deliver(self, lane: Lane, result: Result) -> None:
        me = get_ident()
        outer = me not in self._inside
        self._inside.add(me)
        try:
            if result.fatal is not None:
                self._lost_lane(lane, result)
            else:
                self._outcomes(result)
        finally:
            if outer:
                self._inside.discard(me)

    def _outcomes(self, result: Result) -> None:
        out: _Out = result.batch.note
        values, errors = result.values, result.errors
        positions = range(len(values)) if result.positions is None else result.positions
        again = []
        for at, position in enumerate(positions):
            future, call = out.futures[position], out.calls[position]
            failure = errors.get(at) if errors is not None else None
            if failure is None:
                self._settle(future, values[at], None)
            elif failure.kind == "lost" and not self._killed:
                again.append((future, call))
            elif failure.kind == "lost":
                self._settle(future, None, self.translate(_ended(call)))
            else:
                self._settle(future, None, self.translate(_error(failure, call)))
            if result.seconds:
                self._pace.note(call[0], result.seconds / len(values))
        self._came(len(values), out, again)

    def _came(self, count: int, out: _Out, again: Sequence[tuple[Future, Call]] = ()) -> None:
        with self._lock:
            out.left -= count
            if out.left <= 0:
                self._out -= 1
                out.futures, out.calls = [], []
            self._again.extend(again)
        self._pump()
        if not self._out:
            self.changed()
            if self.closed:
                self._let_go()

    def _lost_lane(self, lane: Lane, result: Result) -> None:
        """The lane can't go on. A failed initializer is the end; after anything else another lane may do better."""
        error = result.fatal
        assert error is not None
        with self._lock:
            mine = self._lane is lane
            if mine:
                self._lane = None
        if isinstance(error, SetupFailed):
            self.fail(error)
            assert self.broken is not None
            error = self.broken
        if mine:
            self._callbacks.put(lane.close, 0.0)
        out: _Out = result.batch.note
        for future in out.futures:
            self._settle(future, None, error)
        self._came(out.left, out)

    def _settle(self, future: Future, value: Any, error: BaseException | None) -> None:
        self._batches.pop(future, None)
        with contextlib.suppress(InvalidStateError):  # the user has set it by hand
            if error is not None:
                future.set_exception(error)
            elif type(value) is Left:
                set_cause(value.error, RemoteTraceback(value.text))
                future.set_exception(value.error)
            else:
                future.set_result(value)

    # -- those that wait ----------------------------------------------------------------------------------------------

    def later(self, function: Callable[[Any], object], future: Future) -> bool:
        """Not in the lane's thread, which has others to serve; asyncio's own only rings its loop."""
        if get_ident() not in self._inside or getattr(function, "__module__", "") == "asyncio.futures":
            return False
        self._callbacks.put(call_back, function, future)
        return True

    def attend(self, future: Future, timeout: float | None) -> None:
        """Workers are other processes: here everybody just waits."""
        future.park(timeout)

    def resolvers(self, future: Future) -> Sequence[graph.Unit] | None:
        """The process that runs it; of a call that waits, any of them when all are in calls."""
        lane: Any = self._lane
        batch = self._batches.get(future)
        if lane is None or (batch is None and self._out < self.workers):
            return None
        return [graph.Far(pid) for pid in lane.at_work(batch)] or None

    def busy(self) -> Sequence[graph.Unit]:
        """The processes that are in calls."""
        lane: Any = self._lane
        return [] if lane is None else [graph.Far(pid) for pid in lane.at_work()]

    def over(self) -> bool:
        """Is nothing queued and nothing out, and have the callbacks been called?"""
        return not (self._queue or self._again or self._out) and self._callbacks.over()

    # -- the end ------------------------------------------------------------------------------------------------------

    def drop(self) -> list[Future]:
        """Take what is in no worker's pipe."""
        with self._lock:
            futures = list(self._queue)
            self._queue.clear()
        return futures

    def wind_down(self) -> None:
        """Nothing to do while calls are out: the last one's end closes the lane."""
        with self._lock:
            idle = not (self._queue or self._again or self._out)
        if idle:
            self._let_go()

    def kill(self) -> None:
        """Cancel what is queued, and kill the workers that are in calls; what they lost isn't run again."""
        with self._lock:
            self._killed = True
            again, self._again = self._again, deque()
        super().kill()
        lane = self._lane  # only now: with the queue empty no other will be made
        for future, call in again:
            self._settle(future, None, self.translate(_ended(call)))
        if lane is not None:
            lane.close(0.0)
        self.changed()

    def _let_go(self) -> None:
        with self._lock:
            lane, self._lane = self._lane, None
        if lane is None:
            pass
        elif get_ident() in self._inside:  # in the lane's own thread it doesn't wait
            lane.close(2.0)
        else:
            self._callbacks.put(lane.close, 2.0)
        self._callbacks.end(wait=False)

    def dismiss(self, seconds: float) -> None:
        """End lane and threads."""
        del seconds
        self._let_go()
        self._callbacks.end(wait=True)

    def forget(self) -> None:
        """In a forked copy: the pipes are the original's."""
        super().forget()
        lane: Any = self._lane
        for link in getattr(lane, "_links", ()):
            link.close_fds()


def _error(failure: Failure, call: Call) -> BaseException:
    error = failure.error
    assert error is not None
    if failure.kind == "died" and isinstance(error, WorkerDied):
        return WorkerDied.at(f"the call {_shown(call)}", error.exitcode)
    return error


def _ended(call: Call) -> WorkerDied:
    return WorkerDied(f"the call {_shown(call)} was ended: the workers of its pool were killed", exitcode=-9)


def _shown(call: Call) -> str:
    function, args, kwargs = call
    name = getattr(function, "__qualname__", None) or pickling.shown(function)
    given = [pickling.shown(arg, 60) for arg in args] + [
        f"{key}={pickling.shown(arg, 60)}" for key, arg in kwargs.items()
    ]
    text = f"{name}({', '.join(given)})"
    return text if len(text) <= 200 else text[:199] + "…"
