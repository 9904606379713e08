"""Who can wait, what can be waited for, and where a unit stands: the words that the graph speaks in."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from duodao.sync import greenlets

if TYPE_CHECKING:
    from duodao.sync.graph import Wait

_STACK = 6
"""Frames of a stack in a message: the last ones of the user's own."""
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep

active: dict[int, threading.Thread] = getattr(threading, "_active", {})
"""The threads that `threading` knows. Its `enumerate` takes a lock, in which we may be."""

_tasks: dict[Any, asyncio.Task[Any]] = getattr(asyncio.tasks, "_current_tasks", {})
_inside = _tasks.values()


def _running() -> asyncio.Task[Any] | None:
    try:
        (task,) = _inside  # one task of all loops is inside a step: it is the caller, who runs
    except ValueError:
        return _tasks.get(asyncio._get_running_loop())
    return task


current_task = _running if sys.version_info < (3, 12) else asyncio.current_task
"""The running task, for a coroutine. Python 3.11 asks the kernel for the process's number at each look at the loop."""


@dataclass(frozen=True, slots=True)
class Far:
    """A thread of another process, by its native number; a process's first thread has the process's number."""

    tid: int


Stack: TypeAlias = "tuple[tuple[str, int, str], ...]"
"""Frames as (file, line, function), the outermost first."""

Unit: TypeAlias = "int | asyncio.Task[Any] | Far"
"""Who can wait: a thread of this process (its `get_ident`), a coroutine's task, or somebody in another process."""


class On(Protocol):
    """What can be waited for. It may say `unsettled = True` (who could end it may be known only later) and `reach`."""

    def resolvers(self) -> Sequence[Unit] | None:
        """The units any one of which could end the wait; None when anyone could."""
        ...

    def describe(self) -> str:
        """As messages name it: "Lock 'plate'"."""
        ...


class Bell(Protocol):
    """What wakes a waiter."""

    def signal(self) -> bool: ...


class FarWait(Protocol):
    """A wait of a thread of another process, read from the table that processes share.

    number: equal in two looks only if the thread has not run in between. fresh: None when `number` says all; else the
    edge is a summary that its owner renews, and holds at an instant after the first look when it was renewed since.
    """

    on: On
    number: int
    timed: bool
    fresh: int | None
    stack: Stack


class Elsewhere(Protocol):
    """What the table of the processes does for the graph, once this process shares a lock."""

    def waits_of(self, far: Far) -> FarWait | None:
        """What that thread waits for; None when it runs or is unknown."""
        ...

    def renewed(self, far: Far, fresh: int) -> bool:
        """Wait, briefly, until that thread has renewed its summary; False when it did not."""
        ...

    def holds(self, ident: int) -> bool:
        """Does this thread hold a shared lock, so that others may wait for it from other processes?"""
        ...

    def wait(self, wait: Wait, ticket: Any) -> bool:
        """Block the thread like `ticket.wait(None)`, and let other processes see for whom it waits."""
        ...

    def name_of(self, far: Far) -> str:
        """As messages name it."""
        ...


def reach(on: On) -> str:
    """Which other processes could end such a wait: "" none, "program" those of this program, "world" others as well."""
    found = getattr(on, "reach", "")
    return found if isinstance(found, str) else ""


def stack_of(who: Unit) -> Stack:
    """Where a unit of this process stands, its last frames, ours left out; () when it has ended."""
    if isinstance(who, Far):
        return ()
    found: list[tuple[Any, int]] = []
    if isinstance(who, int):
        frame = sys._current_frames().get(who) or greenlets.frame_of(who)
        while frame is not None:
            found.append((frame, frame.f_lineno))
            frame = frame.f_back
        found.reverse()
    else:
        step: Any = who.get_coro()
        while step is not None and getattr(step, "cr_frame", None) is not None:
            found.append((step.cr_frame, step.cr_frame.f_lineno))
            step = step.cr_await
    stack = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in found]
    own = [entry for entry in stack if not entry[0].startswith(_OURS) and entry[0] != threading.__file__]
    return tuple((own or stack)[-_STACK:])
