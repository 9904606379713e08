"""Where what came back goes: to the next stage, into a list, to the caller, or to another attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duodao.clock import Clock
from duodao.errors import WorkerDied
from duodao.lanes.base import Batch, Failure, Result
from duodao.lanes.foreign import add_note, said
from duodao.outcome import Attempt, Outcome
from duodao.pipeline.gather import Gatherer
from duodao.pipeline.ledger import Ledger
from duodao.pipeline.node import Chunk, Node, Parcel
from duodao.pipeline.retry import Pause

DEATHS = 2
"""Workers that one input may cost. The first may be another's fault (a full machine): it runs once more, alone."""


class Router:
    """Moves outcomes between the parts of one run, a line of Nodes and Gatherers that know what follows them.

    Invariant: every input that was read ends in the ledger exactly once: succeeded, failed, or a gap.
    """

    def __init__(self, parts: list[Node | Gatherer], ledger: Ledger, clock: Clock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.retrying = True
        self.nodes = [part for part in parts if isinstance(part, Node)]
        self.gatherers = [part for part in parts if isinstance(part, Gatherer)]

    def landed(self, result: Result) -> None:
        """Take in one delivery of a lane. Raises what ends the run."""
        if result.fatal is not None:
            raise result.fatal
        batch, values = result.batch, result.values
        if not values:  # the lane only asks for more
            return
        parcel: Parcel = batch.note
        node = parcel.node
        ids, inputs, positions = batch.ids, parcel.inputs, result.positions
        if positions is not None:
            if type(positions) is range and positions.step == 1:
                part = slice(positions.start, positions.stop)
                ids, inputs = ids[part], inputs[part]
            else:
                ids, inputs = [ids[at] for at in positions], [inputs[at] for at in positions]
        node.landed(batch, len(values), result.seconds)
        now = self.clock.now()
        if node.deaths and not result.errors:
            for number in ids:
                node.deaths.pop(number, None)
        times = result.each
        if result.errors:
            good = self._sort_out(node, batch, result, ids, inputs, now)
            if not good:
                return
            ids, values, inputs = [ids[at] for at in good], [values[at] for at in good], [inputs[at] for at in good]
            times = None if times is None else [times[at] for at in good]
        if times is None and self.ledger.whole:
            times = [result.seconds / len(result.values)] * len(values)
        self._forward(node, Chunk(ids, values, inputs, batch.attempt), times, now)

    def _forward(self, node: Node, chunk: Chunk, times: Sequence[float] | None, now: float) -> None:
        following = node.following
        if following is None:
            self._finish(node, chunk, times)
            return
        if self.ledger.whole and times is not None:
            for number, seconds in zip(chunk.ids, times, strict=True):
                self.ledger.spend(number, seconds)
        if isinstance(following, Node):
            following.accept(Chunk(chunk.ids, chunk.values, chunk.inputs))
        else:
            self.pass_on(following, following.accept(chunk, now), now)

    def pass_on(self, gatherer: Gatherer, groups: list[Chunk], now: float) -> None:
        """Send closed lists on; their first member speaks for all from here on."""
        following = gatherer.following
        for group in groups:
            for number in gatherer.members[group.ids[0]][1:]:
                self.leave(gatherer, number, now)
                self.ledger.gap(number)
            if following is None:
                self._finish(self.nodes[-1], group, [0.0])
            elif isinstance(following, Node):
                following.accept(group)
            else:
                self.pass_on(following, following.accept(group, now), now)

    def _finish(self, node: Node, chunk: Chunk, times: Sequence[float] | None) -> None:
        ledger = self.ledger
        joined = self._joined(chunk.ids) if self.gatherers else None
        if not ledger.whole:
            ledger.succeeded(chunk.ids, chunk.values)
            return
        lane, attempt = node.ran(), max(1, chunk.attempt)
        outcomes = [
            Outcome(number, item, value, None, attempt, seconds, lane)
            for number, value, item, seconds in zip(chunk.ids, chunk.values, chunk.inputs, times or (), strict=True)
        ]
        ledger.settle(outcomes, joined)

    def _joined(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """The other inputs that each of `ids` speaks for; they are forgotten with this."""
        joined: dict[int, list[int]] = {}
        for leader in ids:
            members = {leader}
            for gatherer in reversed(self.gatherers):
                for member in sorted(members):
                    members.update(gatherer.members.pop(member, ()))
            joined[leader] = sorted(members - {leader})
        return joined

    # -- what failed ---------------------------------------------------------------------------------------------------

    def _sort_out(
        self, node: Node, batch: Batch, result: Result, ids: Sequence[int], inputs: list[Any], now: float
    ) -> list[int]:
        """Deal with the failures of a delivery; returns the places of what succeeded in it."""
        errors, positions = result.errors, result.positions
        assert errors is not None
        lost: list[int] = []
        for at, failure in errors.items():
            where = at if positions is None else positions[at]
            chunk = Chunk([ids[at]], [batch.items[where]], [inputs[at]], batch.attempt)
            if failure.kind == "lost":
                lost.append(at)
            else:
                self._failed(node, chunk, failure, now)
        if lost:
            places = lost if positions is None else [positions[at] for at in lost]
            items = [batch.items[where] for where in places]
            again = Chunk([ids[at] for at in lost], items, [inputs[at] for at in lost], batch.attempt, careful=True)
            node.again(again)
        return [at for at in range(len(result.values)) if at not in errors]

    def _failed(self, node: Node, chunk: Chunk, failure: Failure, now: float) -> None:
        number, error, kind = chunk.ids[0], failure.error, failure.kind
        assert error is not None
        node.report.failed += 1
        if kind == "died":
            node.report.deaths += 1
            node.deaths[number] = deaths = node.deaths.get(number, 0) + 1
            if deaths < DEATHS:
                self._again(node, chunk, failure)
                chunk.careful = True
                node.again(chunk)
                return
            if isinstance(error, WorkerDied):
                error.deaths = deaths
                error.add_note(f"duodao: it has ended {deaths} workers and is not run again")
        elif kind == "timeout":
            node.report.timeouts += 1
        _annotate(error, number, chunk.inputs[0], node, chunk.attempt)
        counted = chunk.attempt - node.deaths.get(number, 0)
        wait = node.retry.wait(error, counted) if kind != "died" and self.retrying else None
        if wait is not None:
            node.report.retried += 1
            self._again(node, chunk, failure)
            if type(wait) is Pause:
                node.paused_until = max(node.paused_until, now + wait)
            node.later(chunk, now + wait)
            return
        if chunk.attempt > 1 or number in self.ledger.tries:
            self._record_try(node, chunk, failure)
        node.deaths.pop(number, None)
        self.leave(node, number, now)
        self.fail(node, number, chunk.inputs[0], error, attempt=chunk.attempt, seconds=failure.seconds)

    def _again(self, node: Node, chunk: Chunk, failure: Failure) -> None:
        """Note a failed attempt; the chunk becomes the next one."""
        self._record_try(node, chunk, failure)
        if self.ledger.whole:
            self.ledger.spend(chunk.ids[0], failure.seconds)
        chunk.attempt += 1

    def _record_try(self, node: Node, chunk: Chunk, failure: Failure) -> None:
        if self.ledger.whole:
            assert failure.error is not None
            attempt = Attempt(chunk.attempt, node.report.name, node.ran(), failure.seconds, said(failure.error))
            self.ledger.note(chunk.ids[0], attempt)

    def leave(self, part: Node | Gatherer, number: int, now: float) -> None:
        """`number` goes no further: whoever orders behind `part` must not wait for it."""
        following = part.following
        while following is not None:
            if isinstance(following, Gatherer):
                self.pass_on(following, following.gap(number, now), now)
            following = following.following

    def fail(
        self, node: Node, number: int, item: Any, error: BaseException, *, attempt: int, seconds: float = 0.0
    ) -> None:
        """An input has failed for good."""
        joined = self._joined([number]) if self.gatherers else None
        if self.ledger.whole:
            outcome: Outcome[Any] = Outcome(number, item, None, error, attempt, seconds, node.ran())
            self.ledger.settle([outcome], joined)
        else:
            self.ledger.failed(number, error)


def _shown(item: object) -> str:
    """The repr of a user's object, which may raise, cut to 200 characters."""
    try:
        text = repr(item)
    except Exception as broken:
        return f"<{type(item).__name__} whose repr raises {type(broken).__name__}>"
    return text if len(text) <= 200 else text[:200] + "..."


def _annotate(error: BaseException, number: int, item: Any, node: Node, attempt: int) -> None:
    """Say on the exception which input it was; once, however often the same object is raised."""
    text = _shown(item)
    note = f"duodao: input {number} ({text}), stage {node.report.name}, lane {node.ran()}, attempt {attempt}"
    try:
        if note not in getattr(error, "__notes__", ()):
            add_note(error, note)
    except Exception:  # noqa: S110 - a class that refuses notes, or keeps something else there: it goes without
        pass
