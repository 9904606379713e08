"""Duodao (多道, many lanes): write plain functions; it runs them on any lane, durably, and shows what it does."""

from __future__ import annotations

TYPE_CHECKING = False  # checkers know the name; importing `typing` for it would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duodao import errors as errors
    from duodao.channel.base import Queue
    from duodao.channel.journal import Journal
    from duodao.channel.state import Shared
    from duodao.cost.advise import Profile
    from duodao.lanes.choose import measure
    from duodao.lanes.program import Command
    from duodao.outcome import Outcome, Report
    from duodao.pipeline.group import Group
    from duodao.pipeline.pool import Pool
    from duodao.pipeline.rate import Rate
    from duodao.pipeline.restart import Restart
    from duodao.pipeline.retry import Retry
    from duodao.pipeline.sink import JsonLines
    from duodao.pipeline.source import Rejected
    from duodao.pipeline.stages import Pipeline
    from duodao.pipeline.task import Task
    from duodao.pipeline.verbs import arun, map, run
    from duodao.servers.server import Server, serve
    from duodao.servers.session import Session
    from duodao.servers.web import Request, Response
    from duodao.telemetry import Snapshot

__version__ = "0.1.0"
__all__ = [
    "Command", "Group", "Journal", "JsonLines", "Outcome", "Pipeline", "Pool", "Profile", "Queue", "Rate", "Rejected",
    "Report", "Request", "Response", "Restart", "Retry", "Server", "Session", "Shared", "Snapshot", "Task", "arun",
    "map", "measure", "run", "serve",
]  # fmt: skip

# Every name is loaded when it is first used (PEP 562): the guard and its workers import this package too, and start
# 15 ms sooner without the engine.
_HOMES = {
    "Command": "lanes.program",
    "Group": "pipeline.group",
    "Journal": "channel.journal",
    "JsonLines": "pipeline.sink",
    "Outcome": "outcome",
    "Pipeline": "pipeline.stages",
    "Pool": "pipeline.pool",
    "Profile": "cost.advise",
    "Queue": "channel.base",
    "Rate": "pipeline.rate",
    "Rejected": "pipeline.source",
    "Report": "outcome",
    "Request": "servers.web",
    "Response": "servers.web",
    "Restart": "pipeline.restart",
    "Retry": "pipeline.retry",
    "Server": "servers.server",
    "Session": "servers.session",
    "Shared": "channel.state",
    "Snapshot": "telemetry",
    "Task": "pipeline.task",
    "arun": "pipeline.verbs",
    "map": "pipeline.verbs",
    "measure": "lanes.choose",
    "run": "pipeline.verbs",
    "serve": "servers.server",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("duodao.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'duodao' has no attribute {name!r}")
    module = importlib.import_module(f"duodao.{home}")
    if home == "pipeline.verbs":
        module.displays[:] = [_display]
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "errors"])


def _display() -> Callable[[Snapshot], object]:
    from duodao.watch.progress import display

    return display()
