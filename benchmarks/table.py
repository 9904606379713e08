"""Writes what was measured: docs/benchmarks.json keeps the figures, docs/benchmarks.md is made from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.rounds import Figures, judge
from benchmarks.scenario import CORES, Scenario, load

DOCS = Path(__file__).parents[1] / "docs"
PEERS = (
    "joblib", "mpire", "pebble", "pypeln", "streamable", "aiostream", "uvloop", "numpy", "gevent", "granian", "uvicorn",
)  # fmt: skip
HEAD = """# Benchmarks

Made by `make bench` (all of it: about 20 minutes; `make bench ONLY=process_tiny ROUNDS=3` for one table). Every run
is a fresh process; the rows of a table take turns, round by round, and what is shown is the median. A ratio is taken
within each round, then the median of those: the speed of a shared machine drifts, ratios drift less. Ours runs with
its default settings, each peer with the best settings we found for it. Slow peers get fewer items, so that a run stays
near a second. Goals that were missed stand here as well.
"""


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    versions = {}
    for name in ("duodao", *PEERS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "cores": CORES,
        "system": platform.system(),
        "kernel": os.uname().release.split("-")[0],
        "processor": processor(),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def as_record(scenario: Scenario, figures: list[Figures], rounds: int) -> dict[str, Any]:
    """One scenario's figures as JSON."""
    rows = []
    for f in figures:
        row: dict[str, Any] = {
            "label": f.row.label,
            "n": f.row.n,
            "note": f.row.note,
            "ours": f.row.ours,
            "limit": f.row.limit,
        }
        row |= {"values": f.values, "error": f.error if not f.good else ""}
        row |= {"extra": next((r["extra"] for r in f.runs if r.get("extra")), "")}
        row |= {"peak": max((r.get("peak") or 0 for r in f.runs), default=0)}
        rows.append(row)
    goals = []
    for goal in scenario.goals:
        verdict = judge(scenario, goal, figures)
        goals.append({"text": goal.text, "ours": goal.ours, "factor": goal.factor, "fixed": goal.fixed,
                      "ratio": verdict.ratio, "rival": verdict.rival, "reached": verdict.reached})  # fmt: skip
    return {"name": scenario.name, "title": scenario.title, "unit": scenario.unit, "up": scenario.up,
            "about": scenario.about, "rounds": rounds, "rows": rows, "goals": goals}  # fmt: skip


def number(value: float | None) -> str:
    """Three figures that count, thousands apart."""
    if value is None:
        return "-"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(values: list[float | None]) -> float | None:
    good = sorted(v for v in values if v is not None)
    if not good:
        return None
    middle = len(good) // 2
    return good[middle] if len(good) % 2 else (good[middle - 1] + good[middle]) / 2


def section(record: dict[str, Any]) -> list[str]:
    """One scenario as markdown: its rows, the best first, and its goals."""
    lines = [f"## {record['title']}", ""]
    if record["about"]:
        lines += [record["about"], ""]
    ours = next((median(r["values"]) for r in record["rows"] if r["ours"]), None)
    lines += [f"| | {record['unit']} | lowest to highest | duodao is | items | |", "|---|--:|--:|--:|--:|---|"]
    worst = float("-inf") if record["up"] else float("inf")
    for row in sorted(
        record["rows"], key=lambda r: m if (m := median(r["values"])) is not None else worst, reverse=record["up"]
    ):
        middle = median(row["values"])
        good = [v for v in row["values"] if v is not None]
        spread = f"{number(min(good))} - {number(max(good))}" if good else "-"
        times = "-"
        if middle and ours:
            times = f"{number(ours / middle if record['up'] else middle / ours)} x"
        label = f"**{row['label']}**" if row["ours"] else f"*{row['label']}*" if row["limit"] else row["label"]
        note = "; ".join(filter(None, [row["note"], row["extra"], row["error"]]))
        lines.append(f"| {label} | {number(middle)} | {spread} | {times} | {row['n']:,} | {note} |")
    lines.append("")
    lines += [goal_line(goal, record) for goal in record["goals"]]
    lines += ["", f"Median of {record['rounds']}.", ""]
    return lines


def goal_line(goal: dict[str, Any], record: dict[str, Any]) -> str:
    """A goal and what came of it."""
    mark = "reached" if goal["reached"] else "missed" if goal["ratio"] is not None else "not measured"
    if goal["ratio"] is None:
        return f"- {mark}: {goal['text']}"
    if goal["fixed"]:
        own = next(median(r["values"]) for r in record["rows"] if r["label"] == goal["ours"])
        return f"- {mark}: {goal['text']}: **{number(own)}**"
    return (
        f"- {mark}: {goal['text']}: **{number(goal['ratio'])}** times {goal['rival']} (aim: {number(goal['factor'])})"
    )


def render(data: dict[str, Any]) -> str:
    """The whole page."""
    place = data["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    where = (
        f"{place['processor']}, {place['cores']} cores, {place['system']} {place['kernel']}, Python {place['python']}"
    )
    lines = [HEAD, f"{where}; {versions}.", ""]  # fmt: skip
    records = [data["scenarios"][name] for name in load() if name in data["scenarios"]]
    goals = [(record, goal) for record in records for goal in record["goals"]]
    reached = sum(goal["reached"] for _, goal in goals)
    lines += [f"**{reached} of {len(goals)} goals reached.**", "", "| goal | measured | aim | |", "|---|--:|--:|---|"]
    for record, goal in goals:
        shown = goal["ratio"]
        if goal["fixed"]:
            shown = next((median(r["values"]) for r in record["rows"] if r["label"] == goal["ours"]), None)
        mark = "reached" if goal["reached"] else "missed"
        lines.append(f"| {record['title']}: {goal['text']} | {number(shown)} | {number(goal['factor'])} | {mark} |")
    lines.append("")
    for record in records:
        lines += section(record)
    return "\n".join(lines).rstrip() + "\n"


def save(records: list[dict[str, Any]], *, complete: bool) -> Path:
    """Put records into the JSON file and write the page anew; a complete run replaces everything."""
    path = DOCS / "benchmarks.json"
    data: dict[str, Any] = {"scenarios": {}}
    if path.exists() and not complete:
        data = json.loads(path.read_text())
    data["environment"] = environment()
    data["scenarios"].update({record["name"]: record for record in records})
    DOCS.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    page = DOCS / "benchmarks.md"
    page.write_text(render(data))
    return page
