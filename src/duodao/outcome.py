"""What became of an input (Outcome) and of a whole run (Report). Plain records, no behaviour beyond reading them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one call: its number from 1, stage and lane, seconds, and the error's text (None: it succeeded)."""

    number: int
    stage: str
    lane: str
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What became of one input: `errors="collect"` yields these, in place of values.

    index: position among the inputs, from 0. value: the result, None after a failure. error: the exception, None after
    a success. attempts: calls of the last stage that ran (1 = no retry). seconds: run time of the calls of all its
    attempts and stages; for calls shorter than 20 microseconds the mean of their batch. lane: of the last stage run.
    tries: every attempt that failed, and the last one when there were several. Source: M44, M45.
    """

    index: int
    input: Any
    value: R | None = None
    error: BaseException | None = None
    attempts: int = 1
    seconds: float = 0.0
    lane: str = ""
    tries: tuple[Attempt, ...] = ()

    @property
    def ok(self) -> bool:
        """True after a success."""
        return self.error is None

    def unwrap(self) -> R:
        """The value; raises the error of a failed input."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # a success holds an R, which may itself be None


@dataclass(slots=True)
class StageReport:
    """What one stage did. `why` is the reason for its lane in one sentence; `cpu` and `seconds` sum over its calls."""

    name: str
    lane: str
    workers: int
    why: str = ""
    calls: int = 0
    failed: int = 0
    retried: int = 0
    timeouts: int = 0
    deaths: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Report:
    """What a run did; returned by `run` and `arun`, and `.report` of a `map`.

    total: inputs read. succeeded, failed, skipped (found finished in the journal), dropped (left in the journal by
    inputs that are gone), unstarted (read but not run, because the run was stopped). seconds: wall time. stopped:
    why it ended before its inputs did, else "". failures: the first 100 failed Outcomes; the journal keeps all.
    """

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    dropped: int = 0
    added: int = 0
    unstarted: int = 0
    seconds: float = 0.0
    stopped: str = ""
    stages: list[StageReport] = field(default_factory=list)
    failures: list[Outcome[Any]] = field(default_factory=list)
    results: Any = None

    @property
    def ok(self) -> bool:
        """True when no input failed and none was left."""
        return not (self.failed or self.unstarted or self.stopped)

    def __str__(self) -> str:
        head = f"{self.succeeded} of {self.total} succeeded, {self.failed} failed in {self.seconds:.2f} s"
        extra = [f"{self.skipped} already in the journal"] if self.skipped else []
        extra += [f"{self.dropped} dropped"] if self.dropped else []
        extra += [f"{self.unstarted} not started"] if self.unstarted else []
        extra += [f"stopped: {self.stopped}"] if self.stopped else []
        lines = [f"  {s.name}: {s.lane} x {s.workers}{' - ' + s.why if s.why else ''}" for s in self.stages]
        return "\n".join([", ".join([head, *extra]), *lines])
