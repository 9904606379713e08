"""Who waits for whom: every blocked unit publishes what it waits for, and a circle of waits is found as it closes.

    thread, task ── Wait ──► On (a lock, a join, a future) ── resolvers() ──► the units that could end the wait
        ▲                                                                          │
        └──────────────────────────── a circle: nobody will ever go on ◄───────────┘

A unit publishes its wait first and looks second, so whoever closes a circle sees the rest of it; the uncontended path
publishes nothing. A circle is looked for only when a resolver waits itself: one dictionary lookup per blocked wait.

Invariants:
  1. A unit has at most one wait, and only it publishes and withdraws it.
  2. A circle counts when two walks find the same waits, by number. A unit that stands in the same wait in both has not
     run in between, so it has released nothing: all edges held at one instant, and a circle that holds once stays.
     (InnoDB verifies its snapshot likewise, storage/innobase/lock/lock0wait.cc.)
  3. Checks are serial. A doomed wait counts as ended, so one circle has one victim.
  4. Waits with a time-out, and waits that anyone could end (an Event, a Queue), are in no circle.
"""

from __future__ import annotations

import _thread
import asyncio
import itertools
import os
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from duodao.errors import Deadlock
from duodao.sync import greenlets
from duodao.sync.units import Bell, Elsewhere, Far, FarWait, On, Stack, Unit, active, current_task, stack_of

__all__ = [
    "FAR", "Bell", "Elsewhere", "Far", "FarWait", "On", "Stack", "Unit", "Wait", "begin", "check", "doom", "end", "era",
    "gone", "loop_thread", "name_of", "runs", "stack_of", "unit", "unwatch", "waiting", "watch",
]  # fmt: skip

_SPARED = 1.0
"""Seconds for which one that gave way is spared, when another of the circle did so less often."""


class Wait:
    """One unit, blocked. `number` tells it from the unit's earlier waits; `doom`: the error it will raise."""

    __slots__ = ("doom", "number", "on", "outer", "since", "ticket", "timed", "unit")

    def __init__(self, unit: Unit, on: On, *, timed: bool, ticket: Bell | None) -> None:
        self.unit = unit
        self.on = on
        self.timed = timed
        self.ticket = ticket
        self.since = monotonic()
        self.number = next(_numbers)
        self.doom: BaseException | None = None
        self.outer = _waits.get(unit)  # in which a signal handler interrupted it, to wait itself


FAR: Elsewhere | None = None
"""Set by `table.py` when this process makes or receives its first shared lock."""

_numbers = itertools.count(1)
_waits: dict[Unit, Wait] = {}
_watchers: dict[Unit, Callable[[Wait | None], object]] = {}
_losses: dict[int, tuple[int, float]] = {}  # id of a unit -> how often it gave way, and when last
_guard = _thread.RLock()  # a destructor that runs inside may wait for a lock, and come here again
_threads: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int] = weakref.WeakKeyDictionary()
_era = os.getpid()


def era() -> int:
    """Changes with a fork: what was parked before has no thread in the child."""
    return _era


def _forked() -> None:
    global _era  # noqa: PLW0603  # one number for the process
    _era = os.getpid()
    _guard._at_fork_reinit()  # type: ignore[attr-defined]
    for table in (_waits, _watchers, _losses):
        table.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def unit() -> Unit:
    """The running coroutine's task, or this thread where none runs."""
    return _task() or _thread.get_ident()


def _task() -> asyncio.Task[Any] | None:
    return None if asyncio._get_running_loop() is None else current_task()


def waiting(who: Unit) -> Wait | None:
    """What a unit of this process is blocked in, timed or not; None while it runs."""
    return _waits.get(who)


def begin(who: Unit, on: On, *, timed: bool, ticket: Bell | None = None) -> Wait:
    """Publish that `who`, the caller, is about to block. `end` withdraws it, always.

    Raises Deadlock, and publishes nothing, when this closes a circle and the caller is the one to give way.
    """
    wait = Wait(who, on, timed=timed, ticket=ticket)
    try:
        _waits[who] = wait
        if _watchers and (watcher := _watchers.get(who)) is not None:
            watcher(wait)
        if not timed:
            check(wait)
    except BaseException:
        end(wait)
        raise
    return wait


def end(wait: Wait) -> None:
    """Withdraw a wait: its unit runs."""
    if _waits.get(wait.unit) is wait:
        if wait.outer is None:
            del _waits[wait.unit]
        else:
            _waits[wait.unit] = wait.outer
        if _watchers and (watcher := _watchers.get(wait.unit)) is not None:
            watcher(wait.outer)


def doom(wait: Wait, error: BaseException) -> None:
    """Let the waiter raise `error` at once. Nothing happens when it is doomed already."""
    with _guard:
        if wait.doom is not None:
            return
        wait.doom = error
    if wait.ticket is not None:
        wait.ticket.signal()


def watch(who: Unit, callback: Callable[[Wait | None], object]) -> None:
    """Call `callback(wait)` as the unit begins a wait and `callback(None)` as it ends one, in the unit's own thread."""
    _watchers[who] = callback


def unwatch(who: Unit) -> None:
    """Undo `watch`."""
    _watchers.pop(who, None)


def gone(who: Unit) -> None:
    """The unit has ended: let those that wait for it look again at what it may have left locked."""
    for wait in list(_waits.values()):
        if wait.ticket is not None and who in (wait.on.resolvers() or ()):
            wait.ticket.signal()


def check(wait: Wait) -> None:
    """Look for a circle through this wait. Deadlock when there is one and its unit is to give way."""
    if not any(_blocked(other) for other in wait.on.resolvers() or ()):
        return
    with _guard:
        circle = _confirmed(wait)
        if circle is None:
            return
        victim = _victim(circle, wait)
        error = _describe(circle, victim)
        victim.doom = error
        _note_loss(victim.unit)
    if victim is wait:
        end(wait)
        raise error
    if victim.ticket is not None:
        victim.ticket.signal()


def _blocked(who: Unit) -> bool:
    return who in _waits or bool(_edges(who))


class _Edge:
    """One step of a walk: who waits, for what, and who could end it."""

    __slots__ = ("fresh", "number", "on", "resolvers", "stack", "wait", "who")

    def __init__(self, who: Unit, on: On, resolvers: Sequence[Unit], number: int) -> None:
        self.who = who
        self.on = on
        self.resolvers = resolvers
        self.number = number
        self.wait: Wait | None = None
        self.fresh: int | None = None
        self.stack: Stack = ()


class _Loop:
    """A task can't run while its loop's thread is blocked."""

    def __init__(self, ident: int) -> None:
        self._ident = ident

    def resolvers(self) -> Sequence[Unit]:
        return (self._ident,)

    def describe(self) -> str:
        return "the thread of its event loop"


def _edges(who: Unit) -> list[_Edge]:
    """What keeps a unit from going on, each by itself; none when it runs, or may go on without others.

    A task can be held up twice: by what it waits for, and by what its loop's thread waits for.
    """
    if isinstance(who, Far):
        far = _far_edge(who)
        return [] if far is None else [far]
    found = []
    wait = _waits.get(who)
    if wait is not None and not wait.timed and wait.doom is None:
        resolvers = wait.on.resolvers()
        if resolvers:
            edge = _Edge(who, wait.on, resolvers, wait.number)
            edge.wait = wait
            found.append(edge)
    if not isinstance(who, int):
        ident = loop_thread(who)
        above = None if ident is None else _waits.get(ident)
        if ident is not None and above is not None and not above.timed and above.doom is None:
            found.append(_Edge(who, _Loop(ident), (ident,), above.number))
    return found


def _edge(who: Unit) -> _Edge | None:
    """The first of them, for a summary."""
    return next(iter(_edges(who)), None)


def _far_edge(who: Far) -> _Edge | None:
    wait = None if FAR is None else FAR.waits_of(who)
    if wait is None or wait.timed:
        return None
    resolvers = wait.on.resolvers()
    if not resolvers:
        return None
    edge = _Edge(who, wait.on, resolvers, wait.number)
    edge.fresh = wait.fresh
    edge.stack = wait.stack
    return edge


def loop_thread(task: asyncio.Task[Any]) -> int | None:
    """The thread that runs a task's loop; None while none does, or none is known."""
    loop = task.get_loop()
    ident = getattr(loop, "_thread_id", _threads.get(loop))
    return ident if isinstance(ident, int) and loop.is_running() else None


def runs(task: asyncio.Task[Any], ident: int) -> None:
    """Note which thread runs a task's loop, for loops that don't tell (uvloop)."""
    loop = task.get_loop()
    if not hasattr(loop, "_thread_id"):
        _threads[loop] = ident


def _confirmed(wait: Wait) -> list[_Edge] | None:
    """The circle through this wait, seen twice."""
    first = _circle(wait)
    if first is None:
        return None
    for edge in first:
        if edge.fresh is not None and isinstance(edge.who, Far):
            assert FAR is not None
            if not FAR.renewed(edge.who, edge.fresh):
                return None
    second = _circle(wait)
    if second is None or [(e.who, e.number) for e in first] != [(e.who, e.number) for e in second]:
        return None
    return second


def _circle(wait: Wait) -> list[_Edge] | None:
    """A way from this wait's unit back to it through units that are stuck; None when there is none.

    A wait with several resolvers (a place in a full pool) is stuck only if all of them are; a unit is stuck if one of
    its waits is.
    """
    start = wait.unit
    edges: dict[Unit, list[_Edge]] = {}
    live: set[Unit] = set()
    todo = [start]
    while todo:
        who = todo.pop()
        if who in edges or who in live:
            continue
        found = [edge for edge in _edges(who) if who == start or who not in edge.resolvers]  # else it has just got it
        if not found:
            live.add(who)
            continue
        edges[who] = found
        for edge in found:
            todo.extend(edge.resolvers)
    spread = True
    while spread:
        spread = False
        for who in edges.keys() - live:
            edges[who] = [edge for edge in edges[who] if live.isdisjoint(edge.resolvers)]
            if not edges[who]:
                live.add(who)
                spread = True
    return None if start in live else _way(start, edges)


def _way(start: Unit, edges: dict[Unit, list[_Edge]]) -> list[_Edge] | None:
    """The shortest way from start to start; None when the circle it waits for doesn't contain it."""
    before: dict[Unit, _Edge] = {}
    row = [start]
    while row:
        following = []
        for edge in (edge for who in row for edge in edges[who]):
            for other in edge.resolvers:
                if other == start:
                    path = [edge]
                    while path[-1].who != start:
                        path.append(before[path[-1].who])
                    return path[::-1]
                if other not in before:
                    before[other] = edge
                    following.append(other)
        row = following
    return None


def _victim(circle: list[_Edge], own: Wait) -> Wait:
    """The one that closed the circle, unless it gave way lately more often than another that can be woken.

    Without that, one of two that retry for ever can lose each time (wound-wait spares by age for the same reason:
    Documentation/locking/ww-mutex-design.rst of Linux).
    """
    now = monotonic()
    others = [edge.wait for edge in circle if edge.wait is not None and edge.wait.ticket is not None]
    return min([own, *others], key=lambda wait: _lost(wait.unit, now))


def _lost(who: Unit, now: float) -> int:
    times, last = _losses.get(hash(who), (0, 0.0))
    return times if now - last < _SPARED else 0


def _note_loss(who: Unit) -> None:
    now = monotonic()
    times = _lost(who, now) + 1
    if len(_losses) > 1000:
        for key in [key for key, (_, last) in _losses.items() if now - last >= _SPARED]:
            del _losses[key]
    _losses[hash(who)] = (times, now)


def _describe(circle: list[_Edge], victim: Wait) -> Deadlock:
    lines = []
    for edge, following in zip(circle, [*circle[1:], circle[0]], strict=True):
        lines.append(f"{name_of(edge.who)} waits for {edge.on.describe()}, held by {name_of(following.who)}")
    message = f"{'; '.join(lines)}. {name_of(victim.unit)} gives way: leave what it holds, and try again"
    stacks = [(line, edge.stack or stack_of(edge.who)) for edge, line in zip(circle, lines, strict=True)]
    return Deadlock(message, lines, stacks)


def name_of(who: Unit) -> str:
    """As messages name a unit."""
    if isinstance(who, Far):
        return f"thread {who.tid}" if FAR is None else FAR.name_of(who)
    if isinstance(who, int):
        named = greenlets.name_of(who)
        if named is not None:
            return named
        thread = active.get(who)
        return f"thread {who}" if thread is None else f"thread {thread.name!r}"
    return f"task {who.get_name()!r}"
