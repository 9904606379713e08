"""A batch on the thread lane, and how several threads share it.

Two forms. **Quick** (64 items or more: each is expected to take microseconds): one thread runs `source`, a plain list
iterator, with no clock and no bookkeeping per item. **Shared**: threads pull (position, item) pairs from `feed` and
time each call. The watchdog turns a quick run that is 20 ms old into a shared one: it empties `source` under its
owner's feet.

That rests on `next()` of a list iterator being atomic, which the GIL grants. A build without the GIL has no quick form,
and its feed takes a lock (`Guarded`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

from duodao.lanes.base import Batch, Deliver, Failure, Result

QUICK = 64
"""Items. The engine aims at 10 ms per batch: from this length on a call is expected to take 160 microseconds."""

_gil: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)


def end_copy() -> None:
    """End a forked copy of this process whose call came back: its threads are gone, its locks may be held by them."""
    if threading.current_thread() is threading.main_thread():  # as the thread that forked is in the copy
        os._exit(1)


class Guarded:
    """An iterator that several threads may pull from on a build without the GIL."""

    def __init__(self, items: list[Any]) -> None:
        self._lock = threading.Lock()
        self._items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            return next(self._items)

    def __length_hint__(self) -> int:
        return length_hint(self._items)


def shareable(items: list[Any]) -> Iterator[Any]:
    """An iterator whose `next()` may be called by many threads: each item comes out once."""
    return iter(items) if _gil() else Guarded(items)


class Run:
    """A batch that is being run. Threads pull from `source` and `feed`, and append to `out`, `errors` and `done`, as
    they go; the rest is written under the lane's lock.

    out, errors: outcomes of the quick form, in order; `taken` of them have been delivered. done: outcomes of the shared
    form that wait for delivery, as (position, value, failure, seconds). inside: threads that are in it. armed: the
    watchdog will look at it. over: all that will be delivered has been, or is no longer wanted.
    """

    __slots__ = (
        "armed",
        "batch",
        "began",
        "deliver",
        "done",
        "errors",
        "feed",
        "inside",
        "items",
        "mark",
        "out",
        "over",
        "source",
        "taken",
    )

    def __init__(self, batch: Batch, deliver: Deliver, items: list[Any], *, shared: bool) -> None:
        self.batch = batch
        self.deliver = deliver
        self.items = items
        self.out: list[Any] = []
        self.errors: dict[int, Failure] = {}
        self.done: list[tuple[int, Any, Failure | None, float]] = []
        self.taken = 0
        self.inside = 0
        self.began = 0.0
        self.mark = 0.0
        self.armed = False
        self.over = False
        quick = not shared and len(items) >= QUICK and _gil()
        self.source: Iterator[Any] | None = iter(items) if quick else None
        self.feed: Iterator[Any] | None = None if quick else shareable(list(enumerate(items)))

    def left(self) -> int:
        """Items of the shared form that no thread has taken."""
        return 0 if self.feed is None else length_hint(self.feed)

    def split(self) -> None:
        """Turn a quick run into a shared one: its owner finds no further item and joins the others on what was left."""
        source, self.source = self.source, None
        if source is not None:
            rest = list(source)
            first = len(self.items) - len(rest)
            self.feed = shareable(list(enumerate(rest, first)))

    def drop(self) -> None:
        """Nothing of it is wanted any more: what no thread has begun is not begun."""
        self.over = True
        for iterator in (self.source, self.feed):
            if iterator is not None:
                for _ in iterator:
                    pass

    def take(self, now: float) -> list[Result]:
        """The outcomes that wait for delivery; they are the caller's to deliver."""
        if self.over:
            return []
        found = []
        if len(self.out) > self.taken:
            found.append(self._take_quick(now))
        if self.done:
            found.append(self._take_done())
        return found

    def _take_quick(self, now: float) -> Result:
        first, last = self.taken, len(self.out)
        seconds, self.mark = now - self.mark, now
        self.taken = last
        if first == 0 and last == len(self.items):
            return Result(self.batch, self.out, errors=self.errors or None, seconds=seconds)
        known = self.errors.copy()
        errors = {position - first: known[position] for position in known if first <= position < last}
        values = self.out[first:last]
        return Result(self.batch, values, positions=range(first, last), errors=errors or None, seconds=seconds)

    def _take_done(self) -> Result:
        # Threads append meanwhile: a copy and a cut of the same length lose nothing, a swap of the list would.
        size = len(self.done)
        part = self.done[:size]
        del self.done[:size]
        whole = size == len(self.items)
        if whole and size > 1:
            part.sort(key=_position)
        errors = {index: entry[2] for index, entry in enumerate(part) if entry[2] is not None}
        each = [entry[3] for entry in part]
        return Result(
            self.batch,
            [entry[1] for entry in part],
            positions=None if whole else [entry[0] for entry in part],
            errors=errors or None,
            seconds=sum(each),
            each=each,
        )


def _position(entry: tuple[int, Any, Failure | None, float]) -> int:
    return entry[0]
