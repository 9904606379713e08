"""The state of a call that waits for nothing of ours: what its loop or the kernel says. Source: M2, M6."""

from __future__ import annotations

import inspect
import queue
from typing import Any

from duodao.clock import SYSTEM
from duodao.cost import proc
from duodao.lanes.single import Coroutine, Single
from duodao.sync import graph

_LOOK = 0.01
"""Seconds between two looks at a thread's clocks: more than a turn of the GIL, more than a tick of the kernel."""


def on_loop(single: Coroutine) -> tuple[str, str | None]:
    """The state of an asyncio task that waits for nothing of ours."""
    task = single.task
    if task is None or task.done():
        return "ready", None
    coroutine: Any = task.get_coro()
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_RUNNING:
        return "running", None
    step = coroutine
    while getattr(step, "cr_await", None) is not None:
        step = step.cr_await
    waits = getattr(task, "_fut_waiter", step if step is not coroutine else None)  # None: it is in the loop's queue
    if waits is None:
        return "ready", None
    return "blocked", f"await of {type(step).__name__}" if step is not coroutine else "await"


def in_kernel(single: Single) -> tuple[str, str | None]:
    """What the kernel says of a thread: two looks, since one letter tells little."""
    pid, tid = single.pid, single.native_id
    if pid is None or tid is None:
        return "ready", None
    try:
        before = proc.times(pid, tid)
        SYSTEM.get(queue.SimpleQueue(), _LOOK)
        after = proc.times(pid, tid)
    except (ProcessLookupError, OSError, ValueError):  # it has just ended; or there is no /proc
        return "running", None
    state, where = proc.state(before, after)
    if state == "blocked" and after.on_cpu > before.on_cpu and not isinstance(single.unit, graph.Far):
        return "ready", None  # it ran a little, and waits for the GIL
    if state == "stopped":
        return "blocked", "a stop signal"
    if state == "zombie":
        return "running", None
    return state, f"kernel: {where or 'a system call'}" if state == "blocked" else None
