"""Runs rows in interleaved rounds, every run a fresh process, and keeps what each said."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.scenario import Goal, Row, Scenario

LIMIT = 120.0
"""Seconds for one run; a row that takes longer counts as hung and is left out of later rounds."""


@dataclass
class Figures:
    """What the runs of one row gave, round by round; None where one failed."""

    row: Row
    values: list[float | None] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def good(self) -> list[float]:
        return [v for v in self.values if v is not None]

    @property
    def median(self) -> float | None:
        return statistics.median(self.good) if self.good else None


def once(scenario: Scenario, number: int) -> dict[str, Any]:
    """One run. It gets a session of its own, which is killed afterwards, whatever it left behind."""
    command = [sys.executable, "-m", "benchmarks.child", scenario.name, str(number)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"value": None, "error": f"no end after {LIMIT:.0f} s"}
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    lines = [line for line in out.splitlines() if line.startswith('{"value"')]
    if not lines:
        return {"value": None, "error": (err.strip().splitlines() or [f"exit code {child.returncode}"])[-1][:200]}
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def measure(
    scenario: Scenario, rounds: int, say: Callable[[str], None], wanted: Callable[[Row], bool]
) -> list[Figures]:
    """The wanted rows of a scenario, `rounds` times over, in an order that turns by one each round."""
    figures = [Figures(row) for row in scenario.rows]
    for turn in range(rounds):
        say(f"{scenario.name}: round {turn + 1} of {rounds}")
        order = list(range(len(figures)))
        for number in order[turn % len(order) :] + order[: turn % len(order)]:
            kept = figures[number]
            if not wanted(kept.row) or (kept.error and not kept.good):
                kept.values.append(None)
                continue
            record = once(scenario, number)
            kept.values.append(record["value"])
            kept.runs.append(record)
            kept.error = record.get("error", kept.error)
    return figures


@dataclass(frozen=True)
class Verdict:
    """A goal with what was measured: ratio is how many times as good as `rival`, by the median of the rounds."""

    goal: Goal
    ratio: float | None
    rival: str

    @property
    def reached(self) -> bool:
        return self.ratio is not None and self.ratio >= self.goal.factor


def named(label: str, patterns: tuple[str, ...]) -> bool:
    """Whether a label is meant: by its beginning, or with "=" by all of it."""
    return any(label == p[1:] if p.startswith("=") else label.startswith(p) for p in patterns)


def judge(scenario: Scenario, goal: Goal, figures: list[Figures]) -> Verdict:
    """Compare within rounds, where both ran under the same conditions, and take the median over the rounds."""
    ours = next(f for f in figures if f.row.label == goal.ours)
    if goal.fixed:
        if ours.median is None:
            return Verdict(goal, None, "")
        if scenario.up:
            return Verdict(goal, ours.median, "")
        return Verdict(goal, goal.factor * goal.factor / max(ours.median, 1e-9), "")
    rivals = [f for f in figures if named(f.row.label, goal.over) and f.median is not None and f is not ours]
    if not rivals or ours.median is None:
        return Verdict(goal, None, "")
    best = (max if scenario.up else min)(rivals, key=lambda f: f.median or 0.0)
    pairs = [(a, b) for a, b in zip(ours.values, best.values, strict=True) if a is not None and b is not None]
    ratios = [a / b if scenario.up else b / a for a, b in pairs]
    return Verdict(goal, statistics.median(ratios), best.row.label)
