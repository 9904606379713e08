"""What a run tells about itself while it goes on: plain snapshots, made by the engine, read by all of `watch`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One stage now. in_flight: items handed to its lane; queued: items that wait for it; the rest are totals."""

    name: str
    lane: str
    workers: int
    in_flight: int
    queued: int
    done: int
    failed: int
    retried: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The input whose outcome everyone waits for in an ordered run, and for how many seconds it has been in work."""

    index: int
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run now.

    total: inputs in all, None while unknown. read, done, failed, retried, skipped: items so far (done counts successes
    and failures and what the journal already had). rate: items per second over the last seconds. eta: seconds that are
    left, None while unknown. state: "running", "draining" or "done". notices: texts since the last snapshot.
    """

    total: int | None
    read: int
    done: int
    failed: int
    retried: int
    skipped: int
    seconds: float
    rate: float
    eta: float | None
    waiting: Waiting | None
    stages: tuple[StageSnapshot, ...]
    state: str = "running"
    notices: tuple[str, ...] = field(default=())
