"""What a server calls, checked, and where its calls run.

    connection ──submit──► waiting ──► lane.start(batch, deliver) ──► collect (on the loop) ──► connection.settle
               └─ inline: the function itself, on the loop, while measuring says that its calls are tiny

Invariants:
  1. At most `most` calls are waiting or running; a connection with more is held back and read on when there is room.
  2. Every submitted call is settled once: with a reply or an error. Those of a connection that is gone aren't started.
  3. All of it belongs to the loop's thread, but for `_deliver`, which only enqueues.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from duodao.lanes.base import Batch, Failure, Lane, Result
from duodao.lanes.choose import make
from duodao.lanes.eventloop import post
from duodao.servers.handler import Handler as Handler  # noqa: PLC0414 - who makes a Dispatch makes one

if TYPE_CHECKING:
    from duodao.servers.connection import Connection

TINY = 100e-6
"""Seconds per call under which a hand-over to another thread or process costs more than it gains."""
SEEN = 5
"""Calls that must have been measured before they are found tiny."""
HELD = 0.020
"""Seconds an inline call may hold the loop."""
STALLED, SHARE = 0.25, 0.05
"""Seconds, and part of the time, that longer calls may take: on a busy machine the quickest is interrupted for long."""
CHANCES = 3
"""So often may inline calls hold the loop until they are kept off it for good: once may be the machine's doing."""
_log = logging.getLogger("duodao.servers")


class Call:
    """One message on its way to a reply, or an error."""

    __slots__ = ("connection", "done", "error", "message", "reply")

    def __init__(self, connection: Connection, message: Any) -> None:
        self.connection = connection
        self.message = message
        self.reply: Any = None
        self.error: BaseException | None = None
        self.done = False


class _Open:
    """A lane, and what is out with it."""

    __slots__ = ("batches", "items", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane: Any = lane  # Auto's `why` is not every lane's
        self.batches = self.items = 0


class Dispatch:
    """Where the calls of one process run. inline: the function when its calls run on the loop, else None.

    quick: inline, when a line may go to it straight from the loop. lane, why: as figures show them. changed: is called
    when inline or quick has changed.
    """

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._handler = handler
        self._loop = loop
        self._changed = changed
        self.inline: Callable[[Any], Any] | None = None
        self.quick: Callable[[Any], Any] | None = None
        self.lane, self.why = handler.lane, "it was asked for"
        self._open: _Open | None = None
        self._retired: list[_Open] = []  # they get no more, and are closed when all has come back
        self._measuring = False
        self._costs: list[float] = []  # seconds per call, of what was measured
        self._mean = 0.0
        self._held = 0
        self._stalled, self._since = 0.0, 0.0  # what is left of stalls, at which time
        self._deadly = False  # a call has ended its process: this one must never make it
        self._waiting: deque[Call] = deque()
        self._again: deque[Call] = deque()  # lost calls, run one by one
        self._items = 0  # calls out, with all lanes
        self._ids = itertools.count()
        self._asked = self._closed = False
        self._arrived: deque[Result] = deque()
        self._rung = False
        self._blocked: dict[Connection, None] = {}
        self.most = 4 * max(256, handler.workers or 0)
        self._begin()

    # -- which lane ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        handler = self._handler
        if handler.kind == "session":
            self.lane, self.why = "coroutine", "a session is a coroutine of the server's own loop"
        elif handler.lane == "inline":
            self._call_inline()
        elif handler.work.is_async:
            self.lane, self.why = "coroutine", "it is an async function"
            self._become(make("coroutine", handler.work, handler.workers, loop=self._loop))
        elif handler.lane == "auto":
            self._measure()
        else:
            self._become(make(handler.lane, handler.work, handler.workers))

    def _become(self, lane: Lane) -> None:
        self._open = _Open(lane)
        self.most = 4 * max(256, lane.workers)

    def _measure(self) -> None:
        self._measuring, self._costs = True, []
        self.lane, self.why = "auto", "measuring the first calls"
        self._become(make("auto", self._handler.work, self._handler.workers))

    def _judge(self, result: Result) -> None:
        """After each measured result: has `auto` chosen, and is it what a server needs?"""
        if result.values and not result.errors:
            self._costs.append(result.seconds / len(result.values))
        assert self._open is not None
        lane = self._open.lane
        if lane.name == "auto":
            return
        self._measuring = False
        self.lane, self.why = lane.name, lane.why
        # Of a few calls beside other work the quicker half says what a call costs, the slower what else went on.
        usual = sorted(self._costs)[len(self._costs) // 2 - 1] if len(self._costs) >= SEEN else inf
        if self._held < CHANCES and not self._deadly and (usual < TINY or lane.name == "inline"):
            self._go_inline(lane, usual)
        elif lane.name == "inline":
            self.why = f"it held the event loop {self._held} times"
            self._retire()
            self.lane = "thread"
            self._become(make("thread", self._handler.work, self._handler.workers))
        self.most = 4 * max(256, lane.workers)

    def _go_inline(self, lane: Any, usual: float) -> None:
        from duodao.cost.advise import duration

        if lane.name != "inline":
            self.why = f"{duration(usual)} per call is less than handing it over would cost"
        self.lane = "inline"
        self._call_inline()

    def _call_inline(self) -> None:
        self.inline = self._handler.work.function
        if self._handler.framing == "line" and not self._handler.text:
            self.quick = self.inline
        self._changed()

    def held(self, seconds: float) -> None:
        """An inline call has held the loop so long. If that adds up, say so, and measure where its calls should run."""
        now = self._loop.time()
        self._stalled = max(0.0, self._stalled - SHARE * (now - self._since)) + seconds
        self._since = now
        if self._stalled < STALLED:
            return
        self._stalled = 0.0
        self._held += 1
        name = self._handler.work.name
        if self._handler.lane == "inline":
            if self._held == 1:
                _log.warning("%s held the event loop for %.0f ms: nobody else was served; "
                             "lane='auto' would run it elsewhere", name, seconds * 1e3)  # fmt: skip
            return
        _log.warning("%s held the event loop for %.0f ms: its calls leave the loop and are measured again",
                     name, seconds * 1e3)  # fmt: skip
        self.inline = self.quick = None
        self._changed()
        self._retire()
        self._measure()

    def _retire(self) -> None:
        """The lane gets no more calls."""
        if self._open is not None:
            entry, self._open = self._open, None
            self._retired.append(entry)
            self._close_idle(entry)

    def _close_idle(self, entry: _Open) -> None:
        if entry in self._retired and not entry.items:
            self._retired.remove(entry)
            self._loop.run_in_executor(None, entry.lane.close, 0.0)  # it may wait for its threads

    async def close(self, grace: float) -> None:
        """End the lane; what has not come back by then never does."""
        self._closed = True
        self._retire()
        self._waiting.clear()
        self._again.clear()
        lanes, self._retired = [entry.lane for entry in self._retired], []
        for lane in lanes:
            if self._handler.work.is_async:
                await lane.aclose(grace)
            else:
                await self._loop.run_in_executor(None, lane.close, grace)

    # -- calls --------------------------------------------------------------------------------------------------------

    def room(self) -> bool:
        """Whether calls are taken now; else `block` and be called back."""
        return len(self._waiting) + self._items < self.most

    def block(self, connection: Connection) -> None:
        """Call its `go_on` when there is room."""
        self._blocked[connection] = None

    def submit(self, calls: Sequence[Call]) -> None:
        """Run them; each one's connection gets it back by `settle`."""
        if self._open is None and not self._closed:
            self._measure()
        self._waiting += calls
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Hand over what the lane has room for: once per turn of the loop, for all connections together."""
        self._asked = False
        if self._open is None:
            return
        entry, lane = self._open, self._open.lane
        while self._again and entry.items < lane.workers:
            self._hand_over(entry, [self._again.popleft()], careful=True)
        while self._waiting:
            if lane.singly:
                size = lane.depth * lane.workers - entry.items
            elif entry.batches < lane.depth * lane.workers:
                size = self._size(lane)
            else:
                return
            if size <= 0:
                return
            calls: list[Call] = []
            while self._waiting and len(calls) < size:
                call = self._waiting.popleft()
                if not call.connection.lost:
                    calls.append(call)
            if calls:
                self._hand_over(entry, calls)

    def _size(self, lane: Lane) -> int:
        """Calls for the next batch: `target` seconds of work, and no more than each worker's share."""
        mean = max(self._mean, 1e-6) if self._mean else lane.target
        return max(1, min(int(lane.target / mean), -(-len(self._waiting) // lane.workers)))

    def _hand_over(self, entry: _Open, calls: list[Call], *, careful: bool = False) -> None:
        entry.batches += 1
        entry.items += len(calls)
        self._items += len(calls)
        ids = [next(self._ids) for _ in calls]
        batch = Batch(ids, [call.message for call in calls], careful=careful, attempt=1 + careful, note=(calls, entry))
        entry.lane.start(batch, self._deliver)

    def _deliver(self, result: Result) -> None:
        self._arrived.append(result)
        if not self._rung:  # `_collect` clears the flag before it reads the deque: nothing is left behind
            self._rung = True
            post(self._loop, self._loop.call_soon, self._collect)

    def _collect(self) -> None:
        self._rung = False
        touched: dict[Connection, None] = {}
        while self._arrived:
            self._take(self._arrived.popleft(), touched)
        for connection in touched:
            connection.settle()
        if self.inline is not None and not self._items and not self._waiting and not self._again:
            self._retire()  # inline calls need none
        if self._waiting or self._again:
            self._feed()
        while self._blocked and self.room():
            connection = next(iter(self._blocked))
            del self._blocked[connection]
            connection.go_on()

    def _take(self, result: Result, touched: dict[Connection, None]) -> None:
        for text in result.notices:
            _log.warning("%s", text)
        entry: _Open
        calls: list[Call | None]
        calls, entry = result.batch.note
        if result.fatal is not None:
            positions: Sequence[int] = range(len(calls))
            outcomes: list[Any] = []
            errors = dict.fromkeys(positions, Failure(result.fatal))
        else:
            positions = range(len(calls)) if result.positions is None else result.positions
            outcomes, errors = result.values, result.errors or {}
            self._deadly = self._deadly or any(failure.kind == "died" for failure in errors.values())
            if self._measuring and entry is self._open:
                self._judge(result)
            elif result.values:
                self._mean += (result.seconds / len(result.values) - self._mean) / 8
        settled = False
        for at, position in enumerate(positions):
            call, calls[position] = calls[position], None
            if call is None:
                continue
            settled = True
            self._items -= 1
            entry.items -= 1
            failure = errors.get(at)
            if failure is not None and failure.kind == "lost":
                self._again.append(call)
                continue
            if failure is None:
                call.reply = outcomes[at]
            else:
                call.error = failure.error
            call.done = True
            touched[call.connection] = None
        if settled and not any(calls):
            entry.batches -= 1
        self._close_idle(entry)
