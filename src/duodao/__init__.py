"""Duodao (多道, many lanes): write plain functions; it runs them on any lane, durably, and shows what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duodao import errors
from duodao.outcome import Outcome, Report
from duodao.pipeline import runs as _runs
from duodao.pipeline.rate import Rate
from duodao.pipeline.retry import Retry
from duodao.pipeline.stages import Pipeline
from duodao.pipeline.verbs import arun, map, run  # noqa: A004 - it mirrors the builtin

if TYPE_CHECKING:
    from collections.abc import Callable

    from duodao.channel.journal import Journal
    from duodao.cost.advise import Profile
    from duodao.lanes.choose import measure
    from duodao.pipeline.sink import JsonLines
    from duodao.pipeline.source import Rejected
    from duodao.telemetry import Snapshot

__version__ = "0.1.0"
__all__ = [
    "Journal", "JsonLines", "Outcome", "Pipeline", "Profile", "Rate", "Rejected", "Report", "Retry", "arun", "errors", "map",
    "measure", "run",
]  # fmt: skip

# Loaded when first used, so that `import duodao` stays quick: SQLite and the probes cost some milliseconds.
_LATER = {
    "JsonLines": "duodao.pipeline.sink", "Journal": "duodao.channel.journal", "Profile": "duodao.cost.advise",
    "Rejected": "duodao.pipeline.source", "measure": "duodao.lanes.choose",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'duodao' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)


def _display() -> Callable[[Snapshot], object]:
    from duodao.watch.progress import display

    return display()


_runs.displays.append(_display)
