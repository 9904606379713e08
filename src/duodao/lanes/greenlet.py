"""The greenlet lane inside its worker: blocking calls, thousands at once, in a process that gevent has patched.

Long-lived greenlets share one deque of items, as the tasks of coroutine.py do: per item there is no greenlet, no event
and no timer. What has ended during one turn of the hub goes out together. One timer serves all time-outs: with one
limit for all, the order of starts is the order of deadlines.

All of it runs in the hub's thread and takes no lock. Only `vigil.Vigil` has a thread of its own, a native one: it sees
who holds the hub, and ends the process when that one's time is over.

Rejected: gevent.pool (a greenlet per item); gevent.Timeout (a timer per call).
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from contextvars import copy_context
from itertools import count, repeat
from time import perf_counter
from typing import Any

import gevent
from gevent.event import Event
from greenlet import GreenletExit

from duodao.errors import CallTimeout, Closed, SetupFailed
from duodao.lanes.base import Batch, Deliver, Failure, Result, Work, bind
from duodao.lanes.caught import caught
from duodao.lanes.flights import Flight
from duodao.lanes.foreign import set_cause
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs
from duodao.lanes.vigil import Held, Vigil

BREATH = 0.010
"""Seconds a turn of the hub may last before a worker lets the others go on."""
STUBBORN = 1.0
"""Seconds a call has to end, once its wait was ended, before it is given up."""
FLOOR = 0.1
"""Seconds that ended calls have for their `finally` blocks when the lane is closed, whatever the grace."""
HANDSHAKE = 2.0
"""Seconds to close what `setup=` opened."""


class Overrun(GreenletExit):  # type: ignore[misc]  # untyped
    """Raised by the wait of a call whose time is over. Like a GreenletExit no `except Exception` stops it."""


class _Hand:
    """One worker greenlet. flight: of the call it is in, None for none. struck: its call was ended, by time-out where
    `expired`. lost: the call ignored that and was given up."""

    __slots__ = ("began", "expired", "flight", "greenlet", "lost", "mercy", "position", "struck")

    def __init__(self) -> None:
        self.greenlet: Any = None
        self.flight: Flight | None = None
        self.position = 0
        self.began = 0.0
        self.struck = self.expired = self.lost = False
        self.mercy: Any = None  # the timer after which the call is given up


class Greenlets:
    """Up to `workers` calls in flight, as greenlets of the thread that makes it; its process is patched already.

    `start`, `cancel` and `close` belong to that thread, and `deliver` is called there, in a greenlet that may block. A
    call that holds the hub beyond its time-out is delivered by the vigil's thread, and then the process is killed.
    """

    name = "greenlet"
    target = 0.010
    depth = 4
    singly = True

    def __init__(self, work: Work, workers: int, **_: Any) -> None:
        self.workers = workers
        self._work = work
        self._context = copy_context()
        self._hub = gevent.get_hub()
        self._closed = False
        self._queue: deque[tuple[Flight, int, Any]] = deque()
        self._hands: set[_Hand] = set()
        self._idle: list[_Hand] = []
        self._dirty: list[Flight] = []
        self._flusher: Any = None
        self._due = False  # the flusher runs, or will in this turn
        self._mark: float | None = None  # when the first call of this turn began
        self._limits: dict[_Hand, None] = {}  # in the order of their starts
        self._timer: Any = None
        self._call: Any = None
        self._keeper: Any = None
        self._release = Event()
        self._notices: list[str] = []
        self._told = False
        self._trouble: list[str] = []
        self._vigil = Vigil(work, self._hub, self._busy, self._was_held, self._last_words)

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Queue the batch; idle workers, or new ones, begin in the next turn of the hub."""
        if self._closed:
            raise Closed(f"the greenlet lane of {self._work.name} is closed")
        if not batch.items:
            deliver(Result(batch, []))
            return
        flight = Flight(batch, deliver)
        items = batch.items if self._work.seed is None else zip(batch.items, batch.ids, strict=True)
        self._queue.extend(zip(repeat(flight), count(), items))
        if self._flusher is None:
            self._flusher = gevent.spawn(self._flush)
        if self._call is not None:
            self._rouse(len(batch.items))
        elif not self._work.setup:
            self._open({})
        elif self._keeper is None:
            self._keeper = gevent.spawn(self._keep)

    def cancel(self, batch: Batch) -> None:
        """End its calls' waits; those not started never start."""
        stay = deque(entry for entry in self._queue if entry[0].batch is not batch)
        self._queue.clear()
        self._queue.extend(stay)
        for hand in list(self._hands):
            if hand.flight is not None and hand.flight.batch is batch:
                hand.flight.cancelled = True
                self._hub.loop.run_callback(self._strike, hand, hand.flight, hand.position)

    def close(self, grace: float) -> None:
        """End every call's wait, give the calls `grace` seconds to end, close the resources. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        for hand in list(self._hands):
            if hand.flight is not None:
                hand.flight.cancelled = True
                self._hub.loop.run_callback(self._strike, hand, hand.flight, hand.position)
        self._rouse_all()
        gevent.joinall([hand.greenlet for hand in self._hands if hand.greenlet is not None], max(grace, FLOOR))
        self._release.set()
        if self._keeper is not None:
            self._keeper.join(max(grace, HANDSHAKE))
        for timer in (self._timer, *(hand.mercy for hand in self._hands)):
            if timer is not None:
                timer.close()
        if self._flusher is not None:
            self._flusher.kill(block=False)
        self._vigil.end()
        trouble, self._trouble = self._trouble, []
        for text in trouble:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    # Workers

    def _open(self, resources: dict[str, Any]) -> None:
        work = self._work
        self._call = bind(work, resources) if work.seed is None else bind_pairs(work, resources, reseeds=False)
        self._rouse(len(self._queue))

    def _rouse(self, new: int) -> None:
        loop = self._hub.loop
        self._vigil.begin()
        while new and self._idle:
            loop.run_callback(self._idle.pop().greenlet.switch)
            new -= 1
        for _ in range(min(new, self.workers - len(self._hands))):
            hand = _Hand()
            self._hands.add(hand)
            hand.greenlet = gevent.Greenlet(self._labour, hand)
            hand.greenlet.gr_context = self._context.copy()
            hand.greenlet.start()

    def _rouse_all(self) -> None:
        idle, self._idle = self._idle, []
        for hand in idle:
            self._hub.loop.run_callback(hand.greenlet.switch)

    def _busy(self) -> bool:
        """Is a call in flight? Asked by the vigil's thread."""
        return bool(self._queue) or len(self._hands) > len(self._idle)

    def _labour(self, me: _Hand) -> None:
        queue, call, now, limit = self._queue, self._call, perf_counter, self._work.timeout
        hub, process = self._hub, os.getpid()
        try:
            while not self._closed:
                while queue:
                    flight, position, item = queue.popleft()
                    me.position, me.flight = position, flight
                    began = me.began = now()
                    if self._mark is None:
                        self._mark = began
                        self._flush_soon()
                    if limit is not None:
                        self._limit(me, limit)
                    failure = None
                    try:
                        value = call(item)
                    except BaseException as error:
                        value, failure = None, caught(error)
                    if os.getpid() != process:  # a forked copy that came back from the call: nobody asked it
                        os._exit(1)
                    ended = now()
                    me.flight = None
                    if limit is not None:
                        self._limits.pop(me, None)
                    if me.struck:
                        if me.lost:
                            return
                        if me.expired:
                            value, failure = None, self._overran(failure)
                        self._recover(me)
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
                            self._flush_soon()
                    del value, failure, item, flight  # nothing of them is held while this worker waits
                    if self._mark is not None and ended - self._mark > BREATH:
                        gevent.sleep(0)
                if self._closed:
                    return
                self._idle.append(me)
                hub.switch()
        finally:
            self._hands.discard(me)
            self._limits.pop(me, None)

    # Deliveries

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            self._hub.loop.run_callback(self._flusher.switch)

    def _flush(self) -> None:
        """Deliver what has ended, once per turn of the hub."""
        while True:
            self._mark = None
            while self._dirty:
                dirty, self._dirty = self._dirty, []
                notices, self._notices = tuple(self._notices), []
                for flight in dirty:
                    flight.deliver(flight.take(notices))
                    notices = ()
                del flight, dirty
            self._due = False
            self._hub.switch()

    # Time-outs and cancellation

    def _limit(self, me: _Hand, limit: float) -> None:
        self._limits[me] = None
        if self._timer is None:
            self._timer = self._hub.loop.timer(limit)
            self._timer.start(self._expire, limit)

    def _expire(self, limit: float) -> None:
        """In the hub: end the waits of calls whose time is over."""
        self._timer.close()
        self._timer = None
        for me in list(self._limits):
            left = me.began + limit - perf_counter()
            if left > 0:
                if self._timer is None:
                    self._timer = self._hub.loop.timer(left)
                    self._timer.start(self._expire, limit)
                return
            if me in self._limits and me.flight is not None:
                del self._limits[me]
                me.expired = True
                self._strike(me, me.flight, me.position)

    def _strike(self, me: _Hand, flight: Flight, position: int) -> None:
        """In the hub, where every worker is suspended, inside its call if it is in one: raise there."""
        if me.flight is not flight or me.position != position or me.struck:
            return
        me.struck = True
        me.mercy = self._hub.loop.timer(STUBBORN)
        me.mercy.start(self._abandon, me)
        why = f"the time-out of {self._work.timeout:g} s is over" if me.expired else "the call was cancelled"
        me.greenlet.throw(Overrun(why))

    def _recover(self, me: _Hand) -> None:
        """The call that was ended has ended."""
        me.mercy.close()
        me.mercy = None
        me.struck = me.expired = False

    def _overran(self, failure: Failure | None) -> Failure:
        error = CallTimeout(f"{self._work.name} ran longer than its time-out of {self._work.timeout:g} s")
        cause = None if failure is None else failure.error
        if cause is not None:  # mostly the Overrun, as a CallExited's cause: its traceback shows where the call was
            set_cause(error, cause.__cause__ if isinstance(cause.__cause__, Overrun) else cause)
        return Failure(error, "timeout")

    def _abandon(self, me: _Hand) -> None:
        """In the hub: the call goes on in spite of all. Another worker takes its place."""
        me.mercy.close()
        me.mercy = None
        flight = me.flight
        if flight is None:
            return
        me.lost = True
        self._hands.discard(me)
        if not flight.cancelled:
            failure = self._overran(None)
            failure.seconds = perf_counter() - me.began
            flight.errors[len(flight.values)] = failure
            flight.values.append(None)
            flight.positions.append(me.position)
            flight.each.append(failure.seconds)
            name = self._work.name
            self._notices.append(f"a call of {name} ignored the end of its wait and was given up; it may still run")
            if not flight.dirty:
                flight.dirty = True
                self._dirty.append(flight)
            self._flush_soon()
        if self._queue and not self._closed:
            self._rouse(1)

    def _was_held(self, held: Held) -> None:
        """In the hub: somebody held it, and lets it go on now. Said once as it happens, and as a warning of `close`."""
        if not self._told:
            self._told = True
            text = held.text(self._work.name)
            self._notices.append(text)
            self._trouble.append(text)

    def _last_words(self, me: _Hand, held: Held) -> None:
        """In the vigil's thread: the call in which this process will be killed; what else is in flight is lost.

        Whoever has the hub is in the call, so nobody holds what `deliver` needs.
        """
        flight = me.flight
        if flight is None or flight.cancelled:
            return
        failure = self._overran(None)
        assert failure.error is not None
        set_cause(failure.error, Overrun(f"it held the hub, and its worker was killed\n{held.where()}".rstrip()))
        failure.seconds = held.seconds
        flight.deliver(
            Result(
                flight.batch,
                [None],
                positions=[me.position],
                errors={0: failure},
                seconds=held.seconds,
                notices=(held.text(self._work.name),),
            )
        )

    # Resources

    def _keep(self) -> None:
        """Open and close in one greenlet: a lock that a resource holds belongs to it."""
        try:
            resources, stack = open_all(self._work.setup)
        except SetupFailed as error:
            flights = {id(entry[0]): entry[0] for entry in self._queue}
            self._queue.clear()
            self._call = self._refuse
            for flight in flights.values():
                flight.deliver(Result(flight.batch, [], fatal=error))
            return
        try:
            if not self._closed:
                self._open(resources)
                self._release.wait()
        finally:
            try:
                stack.close()
            except Exception as error:
                self._trouble.append(f"closing a setup resource failed: {error!r}")

    def _refuse(self, _item: Any) -> Any:
        raise SetupFailed(f"the setup of {self._work.name} has failed; no call can run without it")
