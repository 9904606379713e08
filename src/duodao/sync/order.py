"""Lock order: deadlocks that could happen, reported before they do. Off unless DUODAO_LOCKDEP=1; then on for all locks.

    holds A, takes B   ──► edge A → B, with its stack          a way B → … → A besides: an inversion, said once
    holds B, takes A   ──► edge B → A, with its stack

A lock's class is the place where it was made, or its name if it was given one: what was seen with one lock counts for
all of its class, so an inversion is found though the runs that show it were strictly one after the other, and never
hung. Edges are looked up per acquisition and searched only when new: a program soon has none that are.

Silent: an inversion of which two sides hold a common lock (a gate) on the outside, since they exclude each other;
locks of one class that are always taken in the order of their making, as `locks()` does; tries and waits with a
time-out, which end by themselves.
Source: Linux, Documentation/locking/lockdep-design.rst; Havelund, "Using Runtime Analysis to Guide Model Checking of
Java Programs", 2000 (gate locks).
"""

from __future__ import annotations

import _thread
import functools
import os
import traceback
import warnings
import weakref
from typing import Any, TypeAlias

from duodao.sync import graph
from duodao.sync.named import site

Class: TypeAlias = "str | tuple[str, int]"
_CONTEXTS = 8
"""Sets of gates that are kept for one edge; more than these are taken for what they mostly are, the same again."""
_STEPS = 10_000
"""Steps of one search: it is a report that would be missed, not a deadlock."""


class LockOrderWarning(UserWarning):
    """Locks are taken in different orders: two threads or tasks that do so at once wait for each other for ever."""


class _Edge:
    """`first` was held when `second` was taken. contexts: for each set of gates, where that was."""

    __slots__ = ("contexts", "first", "second")

    def __init__(self, first: str, second: str) -> None:
        self.first = first
        self.second = second
        self.contexts: dict[frozenset[int], tuple[str, graph.Stack]] = {}


class Order:
    """What was seen of the order of locks. `watch` makes the locks of a class report to it."""

    def __init__(self) -> None:
        self._edges: dict[Any, dict[Any, _Edge]] = {}
        self._held: weakref.WeakKeyDictionary[Any, list[weakref.ref[Any]]] = weakref.WeakKeyDictionary()
        self._held_by_threads: dict[int, list[weakref.ref[Any]]] = {}
        self._said: set[frozenset[Any]] = set()
        self._guard = _thread.allocate_lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._guard._at_fork_reinit)  # type: ignore[attr-defined]

    # What locks tell

    def taking(self, lock: Any, who: graph.Unit) -> None:
        """`who` is about to wait for `lock`. Warns, before anything is taken."""
        held = self._holds(who)
        if not held or any(each is lock for each in held):
            return
        for place, other in enumerate(held):
            self._look(other, lock, frozenset(each._number for each in held[:place]), who)

    def taken(self, lock: Any, who: graph.Unit) -> None:
        """`who` has it."""
        self._of(who).append(weakref.ref(lock))

    def released(self, lock: Any, who: graph.Unit, *, wholly: bool = False) -> int:
        """`who` gave it back, once or as often as it had it. How often that was."""
        held = self._of(who)
        count = 0
        for place in range(len(held) - 1, -1, -1):
            if held[place]() is lock:
                del held[place]
                count += 1
                if not wholly:
                    break
        if not held and isinstance(who, int):
            self._held_by_threads.pop(who, None)
        return count

    def times(self, lock: Any, who: graph.Unit) -> int:
        """How often `who` has it."""
        return sum(each is lock for each in self._holds(who))

    def _holds(self, who: graph.Unit) -> list[Any]:
        """The first taken first. A lock that nobody knows any more is held no more."""
        return [lock for ref in self._of(who) if (lock := ref()) is not None]

    def _of(self, who: graph.Unit) -> list[weakref.ref[Any]]:
        if isinstance(who, int):
            return self._held_by_threads.setdefault(who, [])
        return self._held.setdefault(who, [])

    # The graph of classes

    def _look(self, first: Any, second: Any, gates: frozenset[int], who: graph.Unit) -> None:
        start, end = _node(first, second)
        edge = self._edges.get(start, {}).get(end)
        if edge is not None and (gates in edge.contexts or len(edge.contexts) >= _CONTEXTS):
            return
        if first._owner() != who:  # left behind by a thread that ended, whose number this one has now
            return
        with self._guard:
            row = self._edges.setdefault(start, {})
            edge = row.setdefault(end, _Edge(first.describe(), second.describe()))
            if gates in edge.contexts:
                return
            edge.contexts[gates] = (graph.name_of(who), graph.stack_of(who))
            way = self._way(end, start, gates)
            if way is None:
                return
            names = frozenset(_plain(node) for node in (start, *(step[1] for step in way)))
            if names in self._said:
                return
            self._said.add(names)
        text = _report(edge, gates, [(self._edges[a][b], context) for a, b, context in way])
        warnings.warn(text, LockOrderWarning, stacklevel=_depth())

    def _way(self, start: Any, end: Any, gates: frozenset[int]) -> list[tuple[Any, Any, frozenset[int]]] | None:
        """Edges from `start` to `end`, no two of which, nor `gates`, have a gate in common."""
        steps = 0
        todo: list[tuple[Any, frozenset[int], list[tuple[Any, Any, frozenset[int]]]]] = [(start, gates, [])]
        seen = set()
        while todo and steps < _STEPS:
            node, used, way = todo.pop(0)
            if (node, used) in seen:
                continue
            seen.add((node, used))
            for following, edge in self._edges.get(node, {}).items():
                for context in edge.contexts:
                    steps += 1
                    if context & used:
                        continue
                    longer = [*way, (node, following, context)]
                    if following == end:
                        return longer
                    todo.append((following, used | context, longer))
        return None

    # The methods of a lock class, wrapped

    def watch(self, kind: Any) -> None:
        """Make the locks of this class report to us, by wrapping its methods."""
        _wrap(self, kind)


def _class(lock: Any) -> Class:
    found: Class = lock._name or lock._site
    return found


def _node(first: Any, second: Any) -> tuple[Any, Any]:
    """The ends of an edge. Within one class they are its younger and its older end: a circle needs both directions."""
    one, two = _class(first), _class(second)
    if one != two:
        return one, two
    return ((one, "older"), (one, "younger")) if first._number < second._number else ((one, "younger"), (one, "older"))


def _plain(node: Any) -> Any:
    return node[0] if isinstance(node, tuple) and node[1] in {"older", "younger"} else node


def _report(new: _Edge, gates: frozenset[int], way: list[tuple[_Edge, frozenset[int]]]) -> str:
    parts = []
    for edge, context in [(new, gates), *way]:
        who, stack = edge.contexts[context]
        frames = traceback.StackSummary.from_list([(file, number, name, None) for file, number, name in stack])
        parts.append(f"--- {who} took {edge.second} while it held {edge.first}\n{''.join(frames.format())}".rstrip())
    first = f"{new.first} is held and {new.second} taken here, and elsewhere the other way round"
    return "\n".join([f"lock order inversion: {first}: two that do so at once deadlock; keep to one order", *parts])


def _depth() -> int:
    """For the warning: the user's own frame."""
    import sys

    frame: Any = sys._getframe(1)
    user, depth = site(frame), 1
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != user:
        frame, depth = frame.f_back, depth + 1
    return depth


def _wrap(order: Order, kind: Any) -> None:
    acquire, release, enter, exit_ = kind.acquire, kind.release, kind.__enter__, kind.__exit__
    aacquire, aenter, aexit = kind.aacquire, kind.__aenter__, kind.__aexit__
    save, restore, arestore = kind._release_save, kind._acquire_restore, kind._aacquire_restore
    thread = _thread.get_ident

    @functools.wraps(acquire)
    def acquire_(self: Any, blocking: bool = True, timeout: float = -1) -> Any:
        who = thread()
        if blocking and timeout == -1:
            order.taking(self, who)
        got = acquire(self, blocking, timeout)
        if got:
            order.taken(self, who)
        return got

    @functools.wraps(enter)
    def enter_(self: Any) -> Any:
        who = thread()
        order.taking(self, who)
        got = enter(self)
        order.taken(self, who)
        return got

    @functools.wraps(release)
    def release_(self: Any) -> None:
        holder = self._holder
        release(self)
        order.released(self, thread() if holder is None else holder)

    @functools.wraps(exit_)
    def exit__(self: Any, *error: Any) -> Any:
        exit_(self, *error)
        order.released(self, thread())

    @functools.wraps(aacquire)
    async def aacquire_(self: Any, timeout: float | None = None) -> Any:
        who = graph.unit()
        if timeout is None:
            order.taking(self, who)
        got = await aacquire(self, timeout)
        if got:
            order.taken(self, who)
        return got

    @functools.wraps(aenter)
    async def aenter_(self: Any) -> Any:
        return await aacquire_(self)

    @functools.wraps(aexit)
    async def aexit_(self: Any, *error: Any) -> Any:
        await aexit(self, *error)
        order.released(self, graph.unit())

    @functools.wraps(save)
    def save_(self: Any) -> Any:
        holder = self._holder
        state = save(self)
        return state, order.released(self, thread() if holder is None else holder, wholly=True)

    def again(self: Any, count: int, who: graph.Unit) -> None:
        for _ in range(count):
            order.taken(self, who)

    @functools.wraps(restore)
    def restore_(self: Any, state: Any) -> None:
        order.taking(self, thread())
        restore(self, state[0])
        again(self, state[1] - order.times(self, thread()), thread())

    @functools.wraps(arestore)
    async def arestore_(self: Any, state: Any) -> None:
        await arestore(self, state[0])
        again(self, state[1] - order.times(self, graph.unit()), graph.unit())

    for name, method in (
        ("acquire", acquire_), ("release", release_), ("__enter__", enter_), ("__exit__", exit__),
        ("aacquire", aacquire_), ("__aenter__", aenter_), ("__aexit__", aexit_),
        ("_release_save", save_), ("_acquire_restore", restore_), ("_aacquire_restore", arestore_),
    ):  # fmt: skip
        setattr(kind, name, method)


ORDER = Order()
"""That of the program."""
