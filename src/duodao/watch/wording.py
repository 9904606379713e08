"""The words and figures of every display, so that a terminal, a log and a notebook say the same thing the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duodao.telemetry import Snapshot, StageSnapshot

PATIENCE = 1.0
"""Seconds after which the input that everyone waits for is named."""

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def clean(text: str) -> str:
    """`text` on one line and harmless to a terminal: control characters and undecodable bytes become escapes."""
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode("utf-8")


def count(number: int) -> str:
    """12345 as "12,345"."""
    return f"{number:,}"


def many(number: int, noun: str = "input") -> str:
    """A number with its noun: "1 input", "1,532 inputs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people read them: "0.42 s", "7.1 s", "3:05", "1:02:03"."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(per_second: float) -> str:
    """Items per second, or per minute where that reads better."""
    if per_second <= 0:
        return "-/s"
    if per_second < 0.5:
        return f"{per_second * 60:.1f}/min"
    return f"{per_second:.1f}/s" if per_second < 10 else f"{per_second:,.0f}/s"


def in_flight(snapshot: Snapshot) -> int:
    """Items that are in work in any stage."""
    return sum(stage.in_flight for stage in snapshot.stages)


def progress(snapshot: Snapshot) -> str:
    """How far it is: "120 of 1,532", or "120 done" while the total is unknown."""
    done = count(snapshot.done)
    return f"{done} done" if snapshot.total is None else f"{done} of {count(snapshot.total)}"


def error(error: BaseException) -> str:
    """The exception's class and text, whatever its own `__str__` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException as broken:
        return f"{type(error).__name__}: <{type(broken).__name__} in its __str__>"


def counters(snapshot: Snapshot) -> list[str]:
    """The totals worth a look: in flight and failed always, the others once they are not zero."""
    parts = [f"{count(in_flight(snapshot))} in flight", f"{count(snapshot.failed)} failed"]
    parts += [f"{count(snapshot.retried)} retried"] if snapshot.retried else []
    parts += [f"{count(snapshot.skipped)} already in the journal"] if snapshot.skipped else []
    return parts


def lane(stage: StageSnapshot) -> str:
    """The lane and width of a stage: "process x 2"; while the choice is open: "measuring"."""
    return f"{stage.lane} x {stage.workers}" if stage.lane and stage.lane != "auto" else "measuring"


def status(snapshot: Snapshot) -> str:
    """One line about now."""
    parts = [progress(snapshot), rate(snapshot.rate), *counters(snapshot)]
    parts += [f"{duration(snapshot.eta)} left"] if snapshot.eta is not None else []
    parts += ["draining"] if snapshot.state == "draining" else []
    parts += [f"{clean(stage.name)}: {lane(stage)}" for stage in snapshot.stages]
    return ", ".join(parts)


def waiting(snapshot: Snapshot) -> str:
    """The input that everyone waits for, once that has taken a while; else ""."""
    wait = snapshot.waiting
    if wait is None or wait.seconds < PATIENCE or snapshot.state == "done":
        return ""
    return f"waiting for input {count(wait.index)}, {clean(wait.text)}, for {duration(wait.seconds)}"


def summary(snapshot: Snapshot) -> list[str]:
    """The last word about a run: what was done, then each stage with its lane and the reason for it."""
    mean = (snapshot.done - snapshot.skipped) / snapshot.seconds if snapshot.seconds > 0 else 0.0
    parts = [progress(snapshot), f"{count(snapshot.failed)} failed"]
    parts += [f"{count(snapshot.retried)} retried"] if snapshot.retried else []
    parts += [f"{count(snapshot.skipped)} already in the journal"] if snapshot.skipped else []
    lines = [f"{', '.join(parts)} in {duration(snapshot.seconds)} ({rate(mean)})"]
    ran = snapshot.done > snapshot.skipped
    for stage in snapshot.stages if ran else ():
        why = f" - {clean(stage.why)}" if stage.why else ""
        where = f"{lane(stage)}{why}" if stage.lane != "auto" else "over before its calls were measured"
        lines.append(f"  {clean(stage.name)}: {where}")
    return lines
