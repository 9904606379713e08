"""A lane that does what a test says: outcomes in any order, in parts, late, lost or failed.

lane = ScriptedLane(str.upper, workers=2)       # batches wait in lane.open until the test ends them
lane.open[1].finish(0)                          # position 0 of the second batch, before anything of the first
lane.open[0].fail(0, ValueError("no"))
lane.open[0].lose()                             # all that is left of it

ScriptedLane(str.upper, plan=lambda out: out.finish(after=3.0), clock=fake)      # every batch by itself, late
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duodao.clock import Clock
from duodao.errors import CallTimeout, WorkerDied
from duodao.lanes.base import Batch, Deliver, Failure, Result
from duodao.testing.clock import FakeClock


class Out:
    """A batch the lane was given and hasn't finished. Without positions, a method takes all that are left.

    Delivering a position twice is an AssertionError (invariant 1 of lanes.base), unless `again=True` asks for that very
    fault. after: seconds on the lane's fake clock until the delivery.
    """

    def __init__(self, lane: ScriptedLane, batch: Batch, deliver: Deliver) -> None:
        self.batch = batch
        self.cancelled = False
        self._lane = lane
        self._deliver = deliver
        self.left = set(range(len(batch.items)))

    def __repr__(self) -> str:
        return f"Out(ids={list(self.batch.ids)}, left={sorted(self.left)})"

    def finish(self, *positions: int, after: float = 0.0, seconds: float = 0.001, again: bool = False) -> None:
        """Call the lane's function on these items and deliver what it returns or raises, as one Result."""
        self._send(positions, None, after, seconds, again)

    def fail(self, position: int, error: BaseException, *, after: float = 0.0, seconds: float = 0.001) -> None:
        """Deliver an error the function never raised."""
        self._send((position,), lambda: Failure(error, "error", seconds), after, seconds)

    def time_out(self, position: int, *, after: float = 0.0, seconds: float = 1.0) -> None:
        """Deliver a CallTimeout."""
        self._send((position,), lambda: Failure(CallTimeout("timed out"), "timeout", seconds), after, seconds)

    def die(self, position: int, exitcode: int = -9, *, after: float = 0.0, seconds: float = 0.001) -> None:
        """This item killed its worker."""

        def died() -> Failure:
            return Failure(WorkerDied.at(f"input {self.batch.ids[position]}", exitcode), "died", seconds)

        self._send((position,), died, after, seconds)

    def lose(self, *positions: int, after: float = 0.0) -> None:
        """These items didn't run, or their results are gone: the engine is to run them again."""
        self._send(positions, lambda: Failure(None, "lost"), after, 0.0)

    def fatal(self, error: BaseException, *, after: float = 0.0) -> None:
        """The run must end with this error."""
        self._later(after, lambda: self._deliver(Result(self.batch, [], fatal=error)))

    def notify(self, *notices: str) -> None:
        """Deliver nothing but notices."""
        self._deliver(Result(self.batch, [], positions=[], notices=notices))

    def _send(
        self,
        positions: tuple[int, ...],
        failure: Callable[[], Failure] | None,
        after: float,
        seconds: float,
        again: bool = False,
    ) -> None:
        chosen = list(positions) or sorted(self.left)
        if not again:
            assert self.left.issuperset(chosen), f"{chosen} of {self!r}: delivered before"
        whole = len(chosen) == len(self.batch.items)
        self.left.difference_update(chosen)
        if not self.left and self in self._lane.open:
            self._lane.open.remove(self)

        def send() -> None:
            values: list[Any] = []
            errors: dict[int, Failure] = {}
            for position in chosen:
                value, why = self._lane.call(self.batch.items[position]) if failure is None else (None, failure())
                if why is not None:
                    errors[len(values)] = why
                values.append(value)
            where = None if whole and chosen == sorted(chosen) else chosen
            spent = seconds * len(chosen)
            each = [seconds] * len(chosen)
            self._deliver(Result(self.batch, values, positions=where, errors=errors or None, seconds=spent, each=each))

        self._later(after, send)

    def _later(self, after: float, send: Callable[[], None]) -> None:
        clock = self._lane.clock
        if not after:
            send()
        elif isinstance(clock, FakeClock):
            clock.after(after, send)
        else:
            raise AssertionError("after= needs a lane that was made with clock=FakeClock()")


class ScriptedLane:
    """Fulfils lanes.base.Lane. `function` gives the values; plan: what happens to each batch as it is started.

    started: every batch in the order of its start. open: those with something left. cancelled: as `cancel` was called.
    closed: the grace of each `close`.
    """

    def __init__(
        self,
        function: Callable[[Any], Any] = lambda item: item,
        *,
        workers: int = 2,
        plan: Callable[[Out], Any] | None = None,
        clock: Clock | None = None,
        name: str = "scripted",
        target: float = 0.010,
        depth: int = 2,
        singly: bool = False,
    ) -> None:
        self.name = name
        self.workers = workers
        self.target = target
        self.depth = depth
        self.singly = singly
        self.clock = clock
        self.started: list[Batch] = []
        self.open: list[Out] = []
        self.cancelled: list[Batch] = []
        self.closed: list[float] = []
        self._function = function
        self._plan = plan

    def call(self, item: Any) -> tuple[Any, Failure | None]:
        """The function's value, or the Failure it makes."""
        try:
            return self._function(item), None
        except Exception as error:
            return None, Failure(error)

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Remember it, and do what the plan says."""
        assert not self.closed, "started after close"
        assert len(batch.ids) == len(batch.items), "ids and items of different lengths"
        out = Out(self, batch, deliver)
        self.started.append(batch)
        if batch.items:
            self.open.append(out)
        if self._plan is not None:
            self._plan(out)

    def cancel(self, batch: Batch) -> None:
        """Note it; the batch stays open, so that a test can deliver what nobody wants any more."""
        self.cancelled.append(batch)
        for out in self.open:
            if out.batch is batch:
                out.cancelled = True

    def close(self, grace: float) -> None:
        """Note it."""
        self.closed.append(grace)
