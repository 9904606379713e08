"""One stage while it runs: what waits for its lane, what is in flight, and how much to hand over next."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from duodao.lanes.base import Batch, Lane
from duodao.outcome import StageReport
from duodao.pipeline.rate import Meter
from duodao.telemetry import StageSnapshot

if TYPE_CHECKING:
    from duodao.pipeline.stages import Stage

MAX_BATCH = 4096
WARM_UP = 0.25
MAX_OUT = 32_768
"""Items a lane may have out at once however tiny they are: more would not be faster, only larger."""
_tickets = itertools.count()


class Chunk:
    """Items on their way to a lane: parallel sequences. inputs: the run's own inputs they come from."""

    __slots__ = ("attempt", "careful", "ids", "inputs", "values")

    def __init__(
        self, ids: Sequence[int], values: list[Any], inputs: list[Any], attempt: int = 1, *, careful: bool = False
    ) -> None:
        self.ids = ids
        self.values = values
        self.inputs = inputs
        self.attempt = attempt
        self.careful = careful

    def __len__(self) -> int:
        return len(self.values)

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """(the first `count` items, the rest)."""
        parts = (
            Chunk(self.ids[part], self.values[part], self.inputs[part], self.attempt, careful=self.careful)
            for part in (slice(None, count), slice(count, None))
        )
        return next(parts), next(parts)

    def joins(self, other: Chunk) -> bool:
        """Whether the items of both may travel in one batch."""
        return self.attempt == other.attempt == 1 and not (self.careful or other.careful)

    def join(self, other: Chunk) -> Chunk:
        """Both, this one first."""
        if type(self.ids) is range and type(other.ids) is range and self.ids.stop == other.ids.start:
            ids: Sequence[int] = range(self.ids.start, other.ids.stop)
        else:
            ids = [*self.ids, *other.ids]
        values = self.values + other.values
        same = self.values is self.inputs and other.values is other.inputs
        return Chunk(ids, values, values if same else self.inputs + other.inputs)


class Parcel:
    """The engine's note on a batch in flight."""

    __slots__ = ("inputs", "left", "node", "started")

    def __init__(self, node: Node, inputs: list[Any], started: float) -> None:
        self.node = node
        self.inputs = inputs
        self.left = len(inputs)
        self.started = started


class Node:
    """A running stage. The engine asks `room`, `take`s a chunk, and `launch`es it; results come back to the engine."""

    def __init__(self, stage: Stage, lane: Lane, now: float) -> None:
        self.stage = stage
        self.lane = lane
        self.retry = stage.retry
        self.meter = Meter(stage.rates, now) if stage.rates else None
        self.following: Node | Any = None
        self.pending: collections.deque[Chunk] = collections.deque()
        self.waiting = 0
        self.timed: list[tuple[float, int, Chunk]] = []
        self.flying: dict[Batch, Parcel] = {}
        self.out = 0
        self.per: float | None = None
        self.cap = 1
        self.deaths: dict[int, int] = {}
        self.paused_until = 0.0
        self.token_at = 0.0
        self.first_at = 0.0
        self.warm = False
        self.report = StageReport(stage.work.name, lane.name, lane.workers)

    # -- what waits --------------------------------------------------------------------------------------------------

    def accept(self, chunk: Chunk) -> None:
        """Items that came from the stage before."""
        self.pending.append(chunk)
        self.waiting += len(chunk)

    def again(self, chunk: Chunk) -> None:
        """Items to run once more at once, before all others."""
        self.pending.appendleft(chunk)
        self.waiting += len(chunk)

    def later(self, chunk: Chunk, due: float) -> None:
        """Items to run once more from the time `due` on."""
        heapq.heappush(self.timed, (due, next(_tickets), chunk))

    def ripen(self, now: float) -> None:
        """Bring timed items that are due to the front."""
        while self.timed and self.timed[0][0] <= now:
            self.again(heapq.heappop(self.timed)[2])

    def idle(self) -> bool:
        """Nothing waits, nothing is timed, nothing is in flight."""
        return not (self.pending or self.timed or self.flying)

    # -- how much next -----------------------------------------------------------------------------------------------

    def appetite(self) -> int:
        """Items that keep the lane busy: what may be out at once."""
        lane = self.lane
        if lane.singly:
            return lane.workers if self.meter else lane.depth * lane.workers
        return (1 if self.meter else lane.depth) * lane.workers * self.size()

    def size(self) -> int:
        """Items of the next batch by time: lane.target seconds of work, at most twice what came back before."""
        if self.per is None:
            return 1
        return max(1, min(self.cap, int(self.lane.target / self.per)))

    def room(self, now: float) -> int:
        """Items the lane can take now in one batch; 0 when it is busy, paused, or no token is due."""
        lane = self.lane
        self.token_at = 0.0
        if now < self.paused_until:
            self.token_at = self.paused_until
            return 0
        if lane.singly:
            limit = lane.workers if self.meter else lane.depth * lane.workers
            room = limit - self.out
            if 0 < room < limit // 4 and self.flying:  # fewer, fuller hand-overs; half of the limit still waits there
                room = 0 if not self.meter else room
        else:
            room = self.size() if len(self.flying) < (1 if self.meter else lane.depth) * lane.workers else 0
        if room > 0 and self.meter is not None:
            if self._warming(now):
                return 0
            due, wait = self.meter.due(now)
            if not due:
                self.token_at = now + wait
            room = min(room, due)
        return max(0, room)

    def _warming(self, now: float) -> bool:
        """A lane takes up to WARM_UP seconds to run its first call (workers start). Calls handed over meanwhile would
        all start in one instant, whatever their tokens: the first goes alone, until it is back or that time is over."""
        if self.warm or not (self.report.calls or self.flying):
            return False
        if not self.report.calls and now < self.first_at + WARM_UP:
            self.token_at = self.first_at + WARM_UP
            return True
        self.warm = True
        assert self.meter is not None
        self.meter.start(now)
        return False

    def guided(self, room: int, remaining: int | None) -> int:
        """Less than `room` near the end, so that all workers end together; `remaining`: items not handed over yet."""
        if remaining is None or self.lane.singly:
            return room
        return max(1, min(room, -(-remaining // (2 * self.lane.workers))))

    def take(self, count: int) -> Chunk | None:
        """Up to `count` items of one kind from what waits."""
        if not self.pending:
            return None
        chunk = self.pending.popleft()
        if len(chunk) > count:
            chunk, rest = chunk.split(count)
            self.pending.appendleft(rest)
        while len(chunk) < count and self.pending and chunk.joins(self.pending[0]):
            other = self.pending.popleft()
            if len(chunk) + len(other) > count:
                other, rest = other.split(count - len(chunk))
                self.pending.appendleft(rest)
            chunk = chunk.join(other)
        self.waiting -= len(chunk)
        return chunk

    def meter_cut(self, chunk: Chunk, now: float) -> Chunk | None:
        """The part of the chunk that has its tokens; the rest waits again."""
        if self.meter is None:
            return chunk
        count, wait = self.meter.admit(chunk.values, now)
        if count < len(chunk):
            self.token_at = now + wait
            if not count:
                self.again(chunk)
                return None
            chunk, rest = chunk.split(count)
            self.again(rest)
        return chunk

    def pack(self, chunk: Chunk, now: float) -> Batch:
        """The batch for a chunk, entered as in flight."""
        parcel = Parcel(self, chunk.inputs, now)
        self.first_at = self.first_at or now
        batch = Batch(chunk.ids, chunk.values, attempt=chunk.attempt, careful=chunk.careful, note=parcel)
        self.flying[batch] = parcel
        self.out += len(chunk)
        return batch

    # -- what came back ----------------------------------------------------------------------------------------------

    def landed(self, batch: Batch, count: int, seconds: float) -> None:
        """`count` positions of a batch have been delivered; learn what a call takes."""
        parcel = self.flying[batch]
        parcel.left -= count
        self.out -= count
        if not parcel.left:
            del self.flying[batch]
        self.report.calls += count
        self.report.seconds += seconds
        if count and seconds > 0:
            per = seconds / count
            self.per = per if self.per is None else 0.7 * self.per + 0.3 * per
        if 2 * count > self.cap:
            self.cap = max(1, min(MAX_BATCH, 2 * count, MAX_OUT // (self.lane.workers * self.lane.depth)))

    def wake_at(self, more: bool) -> float | None:
        """When something here becomes due without anything arriving; None: never. more: whether inputs are left.

        It may be past already: `room`, asked again, decides with the time of then.
        """
        times = [self.timed[0][0]] if self.timed else []
        if (self.pending or more) and self.token_at:
            times.append(self.token_at)
        return min(times) if times else None

    def ran(self) -> str:
        """The lane that calls run on now: while `auto` measures, the one its samples run on."""
        return getattr(self.lane, "ran", self.lane.name)

    def snapshot(self) -> StageSnapshot:
        """The stage now, for telemetry."""
        lane, report = self.lane, self.report
        return StageSnapshot(
            report.name, lane.name, lane.workers, self.out, self.waiting + sum(len(c) for _, _, c in self.timed),
            report.calls, report.failed, report.retried, getattr(lane, "why", ""),
        )  # fmt: skip
