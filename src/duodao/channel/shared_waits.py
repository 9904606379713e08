"""How those who use a shared queue wait: threads on its bells (futex words), tasks through a thread that listens.

A waiter first lets others have its core a few times: the other side is often about to come. Then it publishes that it
waits (sync/graph.py) and sleeps in slices, between which it looks whether a process has died, and Ctrl-C comes through.
"""

from __future__ import annotations

import _thread
import os
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, NoReturn, TypeVar

from duodao.channel.base import Awaited, Queue, deadline
from duodao.channel.ears import Ears
from duodao.channel.index import COUNTED, HEAD, TAIL, WANT_DONE, WANT_ITEM, Index
from duodao.errors import Closed
from duodao.sync import graph, robust

T = TypeVar("T")

LOOKS = 40
"""Times that a waiter lets others have its core, some 30 microseconds, before it sleeps: the other side is about to
come, or waits for that core. To be woken for each single item would cost ten times as much as the item."""


class Gone:
    """In place of a closed queue's index."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __getattribute__(self, name: str) -> NoReturn:
        raise Closed(f"Queue {object.__getattribute__(self, 'name')!r} was closed here")


class _Bell:
    """What wakes a waiter that is told to give up."""

    __slots__ = ("_index", "_want")

    def __init__(self, index: Index, want: int) -> None:
        self._index = index
        self._want = want

    def signal(self) -> bool:
        """It looks again."""
        self._index.ring(self._want)
        return True


class WaitingQueue(Queue[T]):
    """What a shared queue does while it waits. _index: its items; _waiting: who waits here, by what for."""

    _index: Any
    _waiting: dict[int, list[graph.Unit]]
    _ears: dict[int, Ears]

    def _wait(
        self, index: Index, want: int, ready: Callable[[], Any], until: float | None, on: Awaited, *, spin: bool = True
    ) -> Any:
        """What `ready` gives, once it is true; something false when it is `until`."""
        words = index.words
        if spin and (until is None or until > monotonic()):
            before = words[HEAD]
            for _ in range(LOOKS):
                if (words[TAIL] != words[HEAD]) if want == WANT_ITEM else (words[HEAD] != before):
                    got = ready()
                    if got:
                        return got
                    break
                os.sched_yield()
        unit = _thread.get_ident()
        units = self._waiting[want]
        units.append(unit)
        edge = None
        try:
            edge = graph.begin(unit, on, timed=until is not None, ticket=_Bell(index, want))
            while True:
                seconds = robust.SLICE if until is None else until - monotonic()
                if seconds <= 0:
                    return ready()
                got = index.wait(want, ready, min(seconds, robust.SLICE))
                if got:
                    self._pass_on(index, want)
                    return got
                if edge.doom is not None:
                    raise edge.doom
                if self._index is not index:
                    raise Closed(f"Queue {self.name!r} was closed here")
        finally:
            units.remove(unit)
            if edge is not None:
                graph.end(edge)

    def _pass_on(self, index: Index, want: int) -> None:
        """A ring wakes one, and what it was for may have been more than one can use."""
        length = index.length()
        if index.words[want] and (length if want == WANT_ITEM else length < self.maxsize):
            index.ring(want, 1)

    def task_done(self) -> None:
        """As Queue.task_done."""
        self._index.finish(1)

    def join(self, timeout: float | None = None) -> bool:
        """As Queue.join. What a process took and had not finished when it ended counts as done, and is said."""
        index, until = self._index, deadline(timeout)
        index.words[COUNTED] = 1

        def ready() -> bool:
            return bool(index.unfinished() == 0)

        return bool(ready() or self._wait(index, WANT_DONE, ready, until, self.on_done, spin=False))

    async def ajoin(self, timeout: float | None = None) -> bool:
        """As Queue.ajoin."""
        index = self._index
        index.words[COUNTED] = 1
        return bool(await self._hear(WANT_DONE, self.on_done, lambda: index.unfinished() == 0, timeout, None))

    async def _hear(
        self, want: int, on: Awaited, ready: Callable[[], Any], timeout: float | None, error: type[Exception] | None
    ) -> Any:
        deadline(timeout)
        index = self._index

        def still() -> Any:
            if self._index is not index:
                raise Closed(f"Queue {self.name!r} was closed here")
            return ready()

        ears = self._ears.setdefault(want, Ears(index, want, lambda: self._index is not index))
        got = await ears.wait(on, still, timeout)
        if not got and error is not None:
            raise error
        return got


HANDLES: weakref.WeakSet[Any] = weakref.WeakSet()
"""All shared queues of this process."""


def _after_fork() -> None:
    """Nobody waits in the copy, and what was taken is the original's."""
    for queue in list(HANDLES):
        queue._rest.clear()
        queue._ears.clear()
        for units in queue._waiting.values():
            units.clear()


os.register_at_fork(after_in_child=_after_fork)
