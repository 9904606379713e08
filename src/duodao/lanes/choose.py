"""Which lane: the one place that maps a lane's name to its class, its default width, and `auto`, which measures first."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from duodao.cost import limits
from duodao.errors import UsageError
from duodao.lanes.base import LANES, Batch, Deliver, Lane, Work


def nested() -> bool:
    """True inside a worker of ours: its siblings share the CPUs with it. Read from the marker every child carries."""
    owner = os.environ.get("DUODAO_GUARD", "").partition("-")[0]
    return owner.isdigit() and int(owner) != os.getpid()


def default_workers(lane: str, inside: bool | None = None) -> int:
    """How many calls a lane has in flight when `workers=` doesn't say.

    | lane      | at the top            | inside a worker of ours | because                                                |
    |-----------|-----------------------|-------------------------|--------------------------------------------------------|
    | inline    | 1                     | 1                       | it runs in the caller's thread                         |
    | process   | cpus()                | 1                       | a core runs one call; its siblings use the others      |
    | thread    | min(64, 8 x cpus())   | 8                       | for calls that wait: 8 per core is full at 12 % CPU    |
    | coroutine | 1000                  | 1000 / cpus(), min. 10  | under the usual limit of 1024 descriptors in a process |

    inside: None asks `nested()`. Source: M30.
    """
    cpus = limits.cpus()
    top, within = {
        "inline": (1, 1),
        "process": (cpus, 1),
        "thread": (min(64, 8 * cpus), 8),
        "coroutine": (1000, max(10, 1000 // cpus)),
        "auto": (1, 1),
    }[lane]
    return within if (nested() if inside is None else inside) else top


def make(name: str, work: Work, workers: int | None = None, loop: asyncio.AbstractEventLoop | None = None) -> Lane:
    """The lane of that name for that work. workers: None for the lane's default.

    Raises UsageError when there is no such lane, or when it can't run a function of this kind; the message names what can.
    """
    if name not in LANES:
        raise UsageError(f"lane={name!r}: there is no such lane (valid: {', '.join(LANES)})")
    if work.is_async and name not in ("auto", "coroutine"):
        raise UsageError(f"{work.name} is an async function: it runs on lane='coroutine', not {name!r}")
    if not work.is_async and name == "coroutine":
        raise UsageError(f"{work.name} is a plain function: it would block the loop; use lane='thread' or make it async")
    if name == "auto":
        return Auto(work, workers, loop)
    return _fixed(name, work, workers or default_workers(name), loop)


def _fixed(name: str, work: Work, workers: int, loop: asyncio.AbstractEventLoop | None) -> Lane:
    if name == "inline":
        from duodao.lanes.inline import Inline

        return Inline(work)
    if name == "thread":
        from duodao.lanes.thread import Threads

        return Threads(work, workers)
    if name == "process":
        from duodao.lanes.process import Processes

        return Processes(work, workers)
    from duodao.lanes.coroutine import Coroutines

    return Coroutines(work, workers, loop=loop)


class Auto:
    """Measures the first calls, then hands everything to the lane that suits them."""

    def __init__(self, work: Work, workers: int | None = None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.why = ""
        self.expected: int | None = None
        self._inner: Lane = make("coroutine" if work.is_async else "thread", work, workers, loop)
        self.name, self.workers = self._inner.name, self._inner.workers
        self.target, self.depth, self.singly = self._inner.target, self._inner.depth, self._inner.singly
        self.start: Any = self._inner.start

    def cancel(self, batch: Batch) -> None:
        """Stop the batch."""
        self._inner.cancel(batch)

    def close(self, grace: float) -> None:
        """End every worker."""
        self._inner.close(grace)


__all__ = ["Auto", "Deliver", "default_workers", "make", "nested"]
