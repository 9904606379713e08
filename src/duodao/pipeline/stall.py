"""A group whose tasks all wait for what only one of them could do: it is reported, in place of a silent hang.

Nothing is polled. A look is planned, MOMENT later, when the last task that ran begins a wait without a time-out, when
one ends, and when the owner begins one, for the end or in the block's body; a second one follows the first. Only if
both find every task and the owner in the same wait, its thread asleep, and nobody else who could end one, the group
fails. While there is somebody else, who may go in silence, the next look follows after twice the time of the last. So
it is never reported while

  - another thread of the program runs, or waits for anything but our primitives (a server in `accept`);
  - the program has a signal handler of its own, a child process that is no task of the group, or threads of a C library
    that do more than wait for each other;
  - a loop of the group has a timer, a connection, a listener or a task that waits for something else;
  - a task waits with a time-out, waits for its restart, or is a process that has a thread, child or handler as above;
  - one of the waits is for something in the arena, and a process that is no task of the group has that mapped, as the
    program above has where the group is in a process of ours; or for something that other programs reach.

Source: the Go runtime's checkdead, https://github.com/golang/go/blob/master/src/runtime/proc.go
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from duodao import arena
from duodao.children import guard
from duodao.cost import proc
from duodao.errors import Stalled
from duodao.lanes.choose import nested
from duodao.lanes.fleet import FLEET
from duodao.lanes.single import Blocked, ours, users
from duodao.lanes.solo import handlers, native, offspring
from duodao.pipeline.closing import GroupEnd
from duodao.sync import graph

if TYPE_CHECKING:
    from duodao.pipeline.group import Group
    from duodao.pipeline.task import Task

MOMENT = 0.1
"""Seconds before the first look, and between the two."""
_AGES = 1e6
"""Seconds after which nobody looks any more: a fake clock gets there in no time."""
_SERVANTS = ("duodao-guard-reader", "duodao-exchange-", "duodao-timers-")
"""Threads of ours that end no wait by themselves."""
_QUIET_UVLOOP = ("UVAsync", "UVIdle", "UVCheck")
"""What every loop of uvloop has."""

_FOR_SIGNALS = "Loop._read_from_self"
"""What a loop of uvloop in the main thread calls when there was a signal."""

_BUSY_UVLOOP = ("UV", "TCP", "UDP", "Unix", "Read", "Write")

Signature = tuple[tuple[str, int], ...]


class Stall:
    """The watch over one group. `look` may be called from any thread, and costs little when one task runs."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._soon = False  # a look is planned for the next MOMENT
        self._number = 0  # of the planned look
        self._witness: Task[Any] | None = None  # one that ran when last looked at

    def look_soon(self) -> None:
        """The owner is about to wait for the end."""
        if self._all_wait():
            self._plan(MOMENT)

    def look(self) -> None:
        """A task begins a wait, or has ended."""
        group = self._group
        if group.phase == "new" or group.cancelled or self._soon:
            return
        if self._all_stand():
            self._plan(MOMENT)

    def _all_stand(self) -> bool:
        return self._owner_waits() and self._all_wait()

    def _owner_waits(self) -> bool:
        """For the end, or, without a time-out, for something else of ours; not for an inner group, which is watched."""
        owner = self._group.owner
        wait = None if owner is None else graph.waiting(owner)
        if self._group.phase == "closing":
            return True
        return wait is not None and not wait.timed and not isinstance(wait.on, GroupEnd)

    def _all_wait(self) -> bool:
        group = self._group
        witness = self._witness
        if witness is not None and witness in group.live and not _stuck(witness):
            return False
        with group.lock:
            live = list(group.live)
        for task in live:
            if not _stuck(task):
                self._witness = task
                return False
        return bool(live)

    def _plan(self, delay: float) -> None:
        """Look after `delay` seconds, and forget the look that was planned before."""
        self._soon = delay == MOMENT
        self._number += 1
        self._group.later(delay, partial(self._first, self._number, delay))

    def _first(self, number: int, delay: float) -> None:
        if number != self._number:
            return
        self._soon = False  # before the look: what happens during it plans the next
        seen = self._signature()
        if seen is not None:
            self._group.later(MOMENT, partial(self._second, number, seen))
        elif number == self._number and delay < _AGES and not self._group.cancelled and self._all_stand():
            self._plan(2 * delay)

    def _second(self, number: int, seen: Signature) -> None:
        if self._signature() == seen:
            self._group.fail(self._error())
        elif number == self._number and self._all_stand():
            self._plan(2 * MOMENT)

    # What has to hold

    def _signature(self) -> Signature | None:
        """All the waits, by number; None when somebody may go on."""
        group = self._group
        owner = None if group.owner is None else ours(graph.waiting(group.owner))
        if owner is None or not owner.stuck or not self._owner_waits() or group.cancelled:
            return None
        if group.owner is None or isinstance(group.owner, graph.Far) or not _sleeps_here(group.owner):
            return None
        with group.lock:
            live = list(group.live)
        waits = [("owner", owner.number)]
        reaches = {*owner.reaches}
        for task in live:
            wait = task.waiting() if _stuck(task) and _asleep(task) and not task.unread() else None
            if wait is None:
                return None
            waits.append((task.name, wait.number))
            reaches.update(wait.reaches)
        for look in (self._strangers, self._loops):
            for wait in look():
                if wait is None or not wait.stuck:
                    return None
                waits.append(("other", wait.number))
                reaches.update(wait.reaches)
        if not live or handlers() or native() or self._others(live) or "world" in reaches:
            return None
        if "program" in reaches and (nested() or self._mapped_by_others(live)):
            return None
        return tuple(waits)

    def _strangers(self) -> Iterator[Blocked | None]:
        """The waits of all other threads; None for one that is not stuck in our primitives."""
        own = self._group.own_threads()
        for thread in threading.enumerate():
            if thread in own or thread.name.startswith(_SERVANTS) or thread.ident == self._group.owner:
                continue
            if self._runs_owner(thread):
                continue
            wait = None if thread.ident is None else ours(graph.waiting(thread.ident))
            yield wait if wait is not None and _sleeps(os.getpid(), _tid(thread)) else None

    def _runs_owner(self, thread: threading.Thread) -> bool:
        """The thread of the loop that the owner, a task, is on: `_loops` looks after it."""
        owner = self._group.owner
        return isinstance(owner, asyncio.Task) and graph.loop_thread(owner) in (None, thread.ident)

    def _loops(self) -> Iterator[Blocked | None]:
        group = self._group
        loop = group.loop
        if loop is None:
            return
        mine = {task.unit for task in group.tasks} | {group.owner}
        for task in asyncio.all_tasks(loop):
            if task not in mine and not task.done():
                yield ours(graph.waiting(task))
        if not _idle(loop):
            yield None

    def _others(self, live: list[Task[Any]]) -> bool:
        """Processes that are no tasks of ours: they may hold a shared lock or queue that one waits for."""
        keeper = guard.number()
        found = offspring()
        if keeper is not None:
            found |= offspring(keeper)
        return bool(found - _known(live))

    def _mapped_by_others(self, live: list[Task[Any]]) -> bool:
        """The same of any process that has the arena, as a fork of a fork may."""
        mark = re.compile(rb" %d +/memfd:duodao-arena" % os.fstat(arena.get().fd).st_ino)
        known = {*_known(live), os.getpid()}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) in known:
                continue
            with contextlib.suppress(OSError), open(f"/proc/{name}/maps", "rb") as file:  # gone, or another user's
                if mark.search(file.read()):
                    return True
        return False

    def _error(self) -> Stalled:
        lines, stacks = [], []
        for task in self._group.tasks:
            wait = task.waiting()
            line = f"task {task.name!r} ({task.lane}) waits for {wait.on if wait else 'nothing now'}"
            lines.append(line)
            unit = task.unit
            if wait is not None and wait.stacks:
                stacks += [(f"{line}: {where}", frames) for where, frames in wait.stacks]
            elif unit is not None:
                stacks.append((line, users(graph.stack_of(unit))))
        message = (
            f"group {self._group.name!r} stands still: each of its tasks waits, without a time-out, for what only "
            f"another of them could do, and nothing else runs that could. {'; '.join(lines)}"
        )
        return Stalled(message, lines, stacks)


def _known(live: list[Task[Any]]) -> set[int | None]:
    """The processes of the group's tasks, those that idle, and the guard."""
    return {guard.number(), *FLEET.pids(), *(task.pid for task in live if task.lane == "process")}


def _stuck(task: Task[Any]) -> bool:
    """Does it wait for our primitives alone, without a time-out? The end of an inner group is watched by that one."""
    wait = task.waiting()
    if wait is None or not wait.stuck:
        return False
    unit = task.unit
    own = None if unit is None or isinstance(unit, graph.Far) else graph.waiting(unit)
    return own is None or not isinstance(own.on, GroupEnd)


def _asleep(task: Task[Any]) -> bool:
    """A thread that was woken and has had no processor since is still in its wait, but not asleep."""
    unit = task.unit
    return _sleeps(task.pid, task.native_id) if unit is None or isinstance(unit, graph.Far) else _sleeps_here(unit)


def _sleeps_here(unit: int | asyncio.Task[Any]) -> bool:
    ident = unit if isinstance(unit, int) else graph.loop_thread(unit)
    thread = next((each for each in threading.enumerate() if each.ident == ident), None)
    return _sleeps(os.getpid(), None if thread is None else _tid(thread))


def _tid(thread: threading.Thread) -> int | None:
    """Its native number; `native_id` of the main thread is that of the process it was forked from."""
    return os.getpid() if thread is threading.main_thread() else thread.native_id


def _sleeps(pid: int | None, tid: int | None) -> bool:
    """By the kernel's word; True where it can't be asked."""
    if pid is None or tid is None:
        return True
    try:
        return proc.times(pid, tid).letter == "S"
    except (ProcessLookupError, OSError, ValueError):  # it has just ended; or there is no /proc
        return sys.platform != "linux"


def _idle(loop: Any) -> bool:
    """Has this loop nothing that could call back: no timer, no descriptor, nothing that is due?"""
    scheduled, ready, selector = (getattr(loop, name, None) for name in ("_scheduled", "_ready", "_selector"))
    if scheduled is not None and ready is not None and selector is not None:
        timers = any(not handle.cancelled() for handle in list(scheduled))
        return not timers and not ready and len(selector.get_map() or ()) <= 1  # its own wake-up
    if not type(loop).__module__.startswith("uvloop"):
        return False  # it can't be looked into
    for each in gc.get_objects():
        kind = type(each)
        if kind.__module__ != "uvloop.loop":
            continue
        name = kind.__name__
        if name == "TimerHandle":
            if not each.cancelled():
                return False
        elif name.startswith(_BUSY_UVLOOP) and name not in _QUIET_UVLOOP and not _is_for_signals(each):
            return False
    return True


def _is_for_signals(poll: Any) -> bool:
    return any(_FOR_SIGNALS in repr(part) for part in gc.get_referents(poll) if type(part).__name__ == "Handle")
