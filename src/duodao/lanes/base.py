"""The seam between the engine and every lane: start(batch, deliver), cancel(batch), close(grace).

The engine decides what runs, when, and what runs again; a lane runs calls, enforces time-outs and names the culprit.
A lane never sees order, retries, rates or the journal; the engine never names a lane.

Invariants every lane keeps (the contract suite holds them):
  1. Each position of a started batch is delivered exactly once: as a value, as a Failure, or as lost.
  2. `deliver` may be called from any thread and in parts; it only enqueues and never raises.
  3. A call that takes 20 ms or more is delivered when it completes, not with its batch.
  4. After `cancel(batch)` and after `close` nothing of it needs to arrive; what still arrives is ignored.
  5. After `close(grace)` no thread, process or descriptor of the lane is left, except a thread whose call can't be
     stopped, which is a daemon.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from duodao.errors import CallExited
from duodao.lanes.foreign import arguments

LANES = ("auto", "inline", "thread", "process", "coroutine", "greenlet", "command")
"""The names users write."""

PROMPT = 0.020
"""Seconds. An outcome that took this long is delivered by itself; also the aim for a process batch."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one stage runs, said once to its lane.

    timeout: seconds per call from its start, None for no limit. max_memory: bytes of resident memory of one worker.
    seed: None, or the run's seed; call i runs with the random state derived from (seed, i).

    Of the process lane alone: apart: the calls of a batch have nothing to do with each other. Each outcome is sent as
    its call ends, so that no call runs twice, and what a call of 20 ms holds up comes back as lost. max_calls: how many
    a worker runs before another takes its place.
    """

    function: Callable[..., Any]
    name: str
    star: bool = False
    common: Mapping[str, Any] = field(default_factory=dict)
    setup: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    seed: int | None = None
    timeout: float | None = None
    max_memory: int | None = None
    is_async: bool = False
    wants_rng: bool = False
    apart: bool = False
    max_calls: int | None = None


class Batch:
    """Items that travel together. `ids` are the run's own numbers of the items, a range or a list of the same length.

    careful: note which item is being run (the process lane's shared page), so that a death names it. attempt: from 1.
    """

    __slots__ = ("attempt", "careful", "ids", "items", "note")

    def __init__(
        self, ids: Sequence[int], items: list[Any], *, attempt: int = 1, careful: bool = False, note: Any = None
    ) -> None:
        self.ids = ids
        self.items = items
        self.attempt = attempt
        self.careful = careful
        self.note = note  # the engine's own; a lane neither reads nor writes it


@dataclass(slots=True)
class Failure:
    """Why one position has no value.

    kind: "error" the function raised; "timeout" it ran too long; "died" its worker died inside it; "lost" it didn't run
    or its result was lost through no fault of its own (the engine runs it again, uncounted).
    """

    error: BaseException | None
    kind: str = "error"
    seconds: float = 0.0


class Result:
    """One delivery: outcomes for some positions of a batch.

    positions: None for all of the batch, else a sequence of positions, parallel to `values`; empty when the lane
    only wants to be asked for room again. errors: position in `values` -> Failure (that value is a placeholder), or
    None when all succeeded. seconds: run time of these calls together, wall clock. each: seconds per call where the
    lane measured them, else None. fatal: the run must end with this error; the other fields are then ignored.
    notices: one-line texts the user must see (a thread that was given up).
    """

    __slots__ = ("batch", "each", "errors", "fatal", "notices", "positions", "seconds", "values")

    def __init__(
        self,
        batch: Batch,
        values: list[Any],
        *,
        positions: Sequence[int] | None = None,
        errors: dict[int, Failure] | None = None,
        seconds: float = 0.0,
        each: list[float] | None = None,
        fatal: BaseException | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.batch = batch
        self.values = values
        self.positions = positions
        self.errors = errors
        self.seconds = seconds
        self.each = each
        self.fatal = fatal
        self.notices = notices


Deliver = Callable[[Result], None]


class Lane(Protocol):
    """Where calls run.

    name: as users write it. workers: calls in flight at most. target: seconds of work the engine aims to put in a
    batch. depth: batches in flight per worker that keep it busy. singly: True when items of a batch start one by one as
    calls end (the engine then hands over items, not work sized by time, and keeps up to depth x workers of them out).
    """

    name: str
    workers: int
    target: float
    depth: int
    singly: bool

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Run the batch. Never blocks, except inline, which runs it here. Raises nothing that an item caused."""
        ...

    def cancel(self, batch: Batch) -> None:
        """Stop the batch as far as the lane can; its outcomes are no longer wanted."""
        ...

    def close(self, grace: float) -> None:
        """End every worker: idle ones at once, busy ones after at most `grace` seconds. Idempotent."""
        ...


def bind(work: Work, resources: Mapping[str, Any] | None = None) -> Callable[[Any], Any]:
    """The one-argument callable a worker loop calls: the function itself where nothing has to be added."""
    extra = {**work.common, **(resources or {})}
    function = functools.partial(work.function, **extra) if extra else work.function
    if not work.star:
        return function

    def starred(args: Any) -> Any:
        return function(*args)

    return starred


def contain(error: BaseException) -> BaseException:
    """An item's exception as it may reach the caller: one that would end the caller's program is wrapped."""
    if isinstance(error, Exception):
        return error
    wrapped = CallExited(f"the call ended with {type(error).__name__}({arguments(error)})")
    wrapped.__cause__ = error
    return wrapped
