"""What a scenario is: rows that do the same work, and goals that compare them. The families declare; rounds.py runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Bench:
    """What a row gets: its size, and `time` around the part that counts. What comes before is warm-up."""

    def __init__(self, scenario: Scenario, n: int) -> None:
        self.n = n
        self.value: float | None = None
        self.seconds = 0.0
        self.cpu = 0.0
        self.extra = ""
        self._scenario = scenario

    def time(self, call: Callable[[], Any]) -> Any:
        """Run `call` once under the clock; its result is checked and turned into the figure afterwards."""
        cpu, began = time.process_time(), time.perf_counter()
        result = call()
        self.seconds = time.perf_counter() - began
        self.cpu = time.process_time() - cpu
        if self._scenario.check is not None and not self._scenario.check(result, self.n):
            raise AssertionError(f"wrong result: {str(result)[:200]}")
        self.value = self._scenario.figure(self.seconds, self.n, result)
        return result

    def record(self) -> dict[str, Any]:
        """The run as JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {"value": self.value, "seconds": self.seconds, "cpu": self.cpu, "peak": peak, "extra": self.extra}


@dataclass(frozen=True)
class Row:
    """One way to do the work. ours: Duodao; limit: no pool at all, there to show what is possible at best."""

    label: str
    run: Callable[[Bench], Any]
    n: int
    ours: bool = False
    limit: bool = False
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """`ours` against the best of `over`, or against a fixed figure. factor: what is aimed at.

    text: as it stands in the table. over: prefixes of row labels. fixed: the figure itself is compared with `factor`.
    """

    text: str
    ours: str
    factor: float
    over: tuple[str, ...] = ()
    fixed: bool = False


@dataclass
class Scenario:
    """A table. unit: of the figure; up: more is better; n: items; figure(seconds, n, result) -> the figure."""

    name: str
    title: str
    unit: str
    n: int
    up: bool = True
    figure: Callable[[float, int, Any], float] = lambda seconds, n, _: n / seconds
    check: Callable[[Any, int], bool] | None = None
    about: str = ""
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def row(self, label: str, *, n: int | None = None, ours: bool = False, limit: bool = False, note: str = "") -> Any:
        """Declare the decorated function as a row. `n`: its own size, where the common one would take minutes."""

        def declare(run: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
            self.rows.append(Row(label, run, n or self.n, ours, limit, note))
            return run

        return declare

    def goal(self, text: str, ours: str, factor: float, *over: str, fixed: bool = False) -> None:
        """Declare what is aimed at: `ours` is to be `factor` times as good as the best row of `over`."""
        self.goals.append(Goal(text, ours, factor, over, fixed))


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, title: str, unit: str, n: int, **more: Any) -> Scenario:
    """Make and register a scenario."""
    made = Scenario(name, title, unit, n, **more)
    SCENARIOS[name] = made
    return made


def load() -> dict[str, Scenario]:
    """All scenarios, in the order of the issue. Peers are imported by the rows themselves, so this needs none."""
    from benchmarks import (
        auto,
        commands,
        coroutines,
        crawling,
        greenlets,
        locks,
        mixed,
        payloads,
        pipelines,
        pool,
        process_tiny,
        process_uneven,
        serving,
        shared_queue,
        starting,
        thread_queues,
        threads,
        waiting,
    )

    order = (
        process_tiny,
        process_uneven,
        threads,
        coroutines,
        greenlets,
        payloads,
        pipelines,
        auto,
        mixed,
        starting,
        waiting,
        locks,
        thread_queues,
        shared_queue,
        pool,
        serving,
        commands,
        crawling,
    )
    names = [name for module in order for name in module.NAMES]
    return {name: SCENARIOS[name] for name in names}
