"""The engine: feeds lanes and takes back what they deliver. It names no lane and waits on one queue.

It is driven by whoever wants the next result: `next_list` (or `anext_list`) returns once something can be handed on.
One turn is: handle what arrived, feed every stage from the last to the first, hand on what is due, else wait.

Invariant: inputs read - inputs passed on (or kept on disk) never exceeds the window, so every queue here is bounded.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duodao.clock import SYSTEM, Clock
from duodao.lanes.base import Lane, Result
from duodao.outcome import Report
from duodao.pipeline.gather import Gatherer
from duodao.pipeline.ledger import Ledger
from duodao.pipeline.node import Chunk, Node
from duodao.pipeline.routing import Router
from duodao.pipeline.source import Rejected, Source, Threaded, open_source
from duodao.pipeline.stages import Batched, Stage

if TYPE_CHECKING:
    import asyncio

    from duodao.channel.journal import Journal
    from duodao.pipeline.observe import Observer

WAKE = object()
READ_AHEAD = 512


@dataclass(frozen=True, slots=True)
class Committed:
    """The journal's word that these inputs are recorded."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Fatal:
    """Something the run can't go on without has failed."""

    error: BaseException


class Engine:
    """One run. steps: checked and fused. inbox: the one queue everything arrives in."""

    def __init__(
        self,
        steps: Sequence[Stage | Batched],
        inputs: Any,
        ledger: Ledger,
        make_lane: Callable[..., Lane],
        *,
        ordered: bool = True,
        window: int | None = None,
        journal: Journal | None = None,
        observer: Observer | None = None,
        clock: Clock = SYSTEM,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.clock = clock
        self.ledger = ledger
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.read = 0
        self.state = "running"
        self.started = clock.now()
        self.notices: list[str] = []
        self._loop = loop
        self._wakeup: asyncio.Future[None] | None = None
        self._deliver = self.inbox.put if loop is None else self._put_awake
        self._window = window
        self._journal = journal
        self._observer = observer
        self._hungry = False
        self.nodes: list[Node] = []
        self.parts: list[Node | Gatherer] = []
        self.source: Source | None = None
        try:
            self._build(steps, inputs, make_lane, ordered=ordered)
        except BaseException:
            self.close()
            raise

    def _build(
        self, steps: Sequence[Stage | Batched], inputs: Any, make_lane: Callable[..., Lane], *, ordered: bool
    ) -> None:
        for step in steps:
            if isinstance(step, Batched):
                self.parts.append(Gatherer(step, ordered=ordered))
            else:
                lane = make_lane(step.lane, step.work, step.workers, loop=self._loop)
                node = Node(step, lane, self.started)
                self.nodes.append(node)
                self.parts.append(node)
        self.router = Router(self.parts, self.ledger, self.clock)
        for part, after in zip(self.parts, self.parts[1:], strict=False):
            part.following = after
        self.source = open_source(inputs, self._wake, self._loop)
        first = self.nodes[0].lane
        if self.source.total is not None and hasattr(first, "expected"):
            first.expected = self.source.total

    # -- waking -------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._deliver(WAKE)

    def arrive(self, entry: Any) -> None:
        """Something for the engine, from any thread."""
        self._deliver(entry)

    def _put_awake(self, entry: Any) -> None:
        self.inbox.put(entry)
        if self._wakeup is not None:
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._rouse)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._wakeup = None

    def _rouse(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    # -- the caller's side --------------------------------------------------------------------------------------------

    def next_list(self) -> list[Any] | None:
        """The next results, never an empty list; None when the run is over. Raises what the caller must see."""
        while True:
            out = self._turn()
            if out is not None:
                return out
            if self.state == "done":
                return None
            if not self._ask_source():
                continue
            self._handle(self.clock.get(self.inbox, self._until()))

    async def anext_list(self) -> list[Any] | None:
        """`next_list` for a running event loop, which it never blocks."""
        import asyncio

        assert self._loop is not None
        while True:
            out = self._turn()
            if out is not None:
                return out
            if self.state == "done":
                return None
            if not self._ask_source():
                await asyncio.sleep(0)
                continue
            self._wakeup = self._loop.create_future()
            timeout = self._until()
            try:
                if self.inbox.empty():
                    async with asyncio.timeout(timeout):
                        await self._wakeup
            except TimeoutError:
                pass  # a timer is due
            finally:
                self._wakeup = None

    def _turn(self) -> list[Any] | None:
        """One turn without waiting: results, or None when there are none (then `state` tells whether it is over)."""
        while not self.inbox.empty():
            self._handle(self.inbox.get_nowait())
        if self.state == "draining":
            self._drop_unstarted()
        self.ledger.judge()
        if self.ledger.fatal is None:
            self._feed()
        if self._observer is not None:
            self._observer.tick(self)
        out = self.ledger.emit()
        if out:
            return out
        if self.ledger.fatal is not None and not self.ledger.unsaved:
            raise self.ledger.fatal
        if self._exhausted() and self.inbox.empty():
            self.ledger.judge(final=True)
            if self.ledger.fatal is not None:
                raise self.ledger.fatal
            assert self.source is not None
            if self.source.error is not None:
                raise self.source.error
            self.state = "done"
        return None

    def drain(self) -> None:
        """Take no more inputs; finish what is in flight. May be called from any thread or a signal handler."""
        if self.state == "running":
            self.state = "draining"
            self.router.retrying = False
            self.ledger.report.stopped = "interrupted"
            self._wake()

    def _ask_source(self) -> bool:
        """Before a wait: True when waiting is right, False when an input came in the meantime."""
        return not self._hungry or self.source is None or self.source.hungry()

    def _until(self) -> float | None:
        """Seconds until something is due by itself; None: only an arrival can change anything."""
        now = self.clock.now()
        more = self.source is not None and not self.source.ended
        times = [node.wake_at(more and node is self.nodes[0]) for node in self.nodes]
        times += [part.closes_at for part in self.parts if isinstance(part, Gatherer)]
        if self._observer is not None:
            times.append(self._observer.due(now))
        known = [at for at in times if at is not None]
        return max(0.0, min(known) - now) if known else None

    def _exhausted(self) -> bool:
        source = self.source
        return (
            (source is None or source.ended)
            and all(node.idle() for node in self.nodes)
            and all(part.idle() for part in self.router.gatherers)
            and self.ledger.settled
        )

    # -- feeding ------------------------------------------------------------------------------------------------------

    def limit(self) -> int:
        """Inputs that may be read and not passed on: the user's window (but enough for one whole group), else what
        keeps every lane busy, and as much again (at least 256 and 16 per worker, at most 8,192) so that one slow call
        holds nobody up for long."""
        unit, busy = 1, 0  # unit: inputs in one item of the stage at hand
        for part in self.parts:
            if isinstance(part, Gatherer):
                unit *= part.size
                busy += unit
            else:
                busy += unit * part.appetite()
        if self._window is not None:
            return max(self._window, unit)
        return busy + max(256, 16 * max(node.lane.workers for node in self.nodes), min(busy, 8192))

    def _feed(self) -> None:
        now = self.clock.now()
        for gatherer in self.router.gatherers:
            self.router.pass_on(gatherer, gatherer.ripe(now), now)
            if self._dry_before(gatherer):
                self.router.pass_on(gatherer, gatherer.flush(), now)
        self._hungry = False
        for node in reversed(self.nodes):
            node.ripen(now)
            while True:
                room = node.room(now)
                if not room:
                    break
                chunk = self._chunk(node, room, now)
                if chunk is None:
                    break
                chunk = node.meter_cut(chunk, now)
                if chunk is None:
                    break
                node.lane.start(node.pack(chunk, now), self._deliver)

    def _chunk(self, node: Node, room: int, now: float) -> Chunk | None:
        if node is not self.nodes[0]:
            share = -(-node.waiting // node.lane.workers)
            return node.take(room if node.lane.singly else min(room, max(1, share)))
        source = self.source
        assert source is not None
        left = None if source.total is None else source.total - self.read + node.waiting
        room = node.guided(room, left)
        if not node.pending and self.state == "running":
            self._read(node, room, now)
        return node.take(room)

    def _read(self, node: Node, room: int, now: float) -> None:
        """Read up to `room` inputs (more with a journal, which is asked about many at once) into the first stage."""
        source, ledger = self.source, self.ledger
        assert source is not None
        while not source.ended and not node.pending:
            limit = self.limit()
            free = limit - (self.read - ledger.passed)
            if free <= 0:
                return
            source.allow(min(free, max(2 * node.appetite(), 2 if self._journal is None else READ_AHEAD)))
            want = min(free, room if self._journal is None else max(room, READ_AHEAD))
            items = source.take(want)
            if len(items) < want and not source.ended:
                self._hungry = True
            if not items:
                return
            ids = range(self.read, self.read + len(items))
            self.read += len(items)
            ledger.report.total = self.read
            self._enter(node, ids, items, now)

    def _enter(self, node: Node, ids: range, items: list[Any], now: float) -> None:
        out: set[int] = set()
        if isinstance(self.source, Threaded) and Rejected in set(map(type, items)):
            for number, item in zip(ids, items, strict=True):
                if type(item) is Rejected:
                    out.add(number)
                    items[number - ids.start] = item.input
                    self.router.leave(node, number, now)
                    self.router.fail(node, number, item.input, item.error, attempt=0)
        if self._journal is not None:
            known = self._journal.admit(ids, items)
            for number in known:
                if number not in out:
                    self.router.leave(node, number, now)
            self.ledger.found({number: outcome for number, outcome in known.items() if number not in out})
            out.update(known)
        if not out:
            node.accept(Chunk(ids, items, items))
        elif len(out) < len(ids):
            kept = [number for number in ids if number not in out]
            values = [items[number - ids.start] for number in kept]
            node.accept(Chunk(kept, values, values))

    def _drop_unstarted(self) -> None:
        """A drain: what no lane has begun is left out; what has, goes through all its stages."""
        source, node = self.source, self.nodes[0]
        assert source is not None
        if not source.ended:
            source.stop()
        now = self.clock.now()
        dropped = [chunk for _, _, chunk in node.timed] + list(node.pending)
        node.timed.clear()
        node.pending.clear()
        node.waiting = 0
        for chunk in dropped:
            for number in chunk.ids:
                self.ledger.report.unstarted += 1
                self.router.leave(node, number, now)
                self.ledger.gap(number)

    # -- what arrives -------------------------------------------------------------------------------------------------

    def _handle(self, entry: Any) -> None:
        if type(entry) is Result:
            self.notices += entry.notices
            self.router.landed(entry)
        elif type(entry) is Committed:
            self.ledger.committed(entry.ids, self.limit() // 2)
        elif type(entry) is Fatal:
            raise entry.error

    def _dry_before(self, gatherer: Gatherer) -> bool:
        """Nothing more can come to this gatherer."""
        if self.source is not None and not self.source.ended:
            return False
        return all(part.idle() for part in self.parts[: self.parts.index(gatherer)])

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish_report(self) -> Report:
        """The report, brought up to date."""
        report = self.ledger.report
        report.seconds = self.clock.now() - self.started
        for node in self.nodes:
            node.report.lane, node.report.workers = node.lane.name, node.lane.workers
            node.report.why = getattr(node.lane, "why", "")
        report.stages = [node.report for node in self.nodes]
        return report

    def close(self, grace: float = 0.0) -> None:
        """Stop everything: source, batches in flight, lanes. Idempotent."""
        self.state = "done"
        if self.source is not None:
            self.source.stop()
        for node in self.nodes:
            for batch in list(node.flying):
                node.lane.cancel(batch)
            node.flying.clear()
        for node in self.nodes:
            node.lane.close(grace)

    async def unwind(self) -> None:
        """After `close` on a running loop: wait until the calls that were cancelled there have ended."""
        for node in self.nodes:
            aclose = getattr(node.lane, "aclose", None)
            if aclose is not None:
                await aclose(0.0)
