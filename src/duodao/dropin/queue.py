"""`queue` on Duodao's queues: `from duodao.dropin import queue`, and the rest of a program stays as it is.

A subclass may override _init, _put, _get and _qsize, and finds mutex, not_empty, not_full, all_tasks_done,
unfinished_tasks and queue. What differs: shutdown() is there on every Python; a put() in a signal handler or in __del__
never hangs; a queue without a bound says once that it has grown past 100,000 items; and all that duodao.Queue has,
put_many, get_many and the async forms, is there too. Source: M25.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from queue import Empty, Full
from typing import Any, ClassVar, Generic, TypeVar

from duodao.channel.base import Order
from duodao.channel.base import Queue as _Queue
from duodao.channel.memory import MemoryQueue
from duodao.errors import ShutDown

__all__ = ["Empty", "Full", "LifoQueue", "PriorityQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")


class Queue(MemoryQueue[T]):
    """`queue.Queue`: first in, first out. maxsize: items it holds at most; 0 or less, or infinity: without bound."""

    _order: ClassVar[Order] = "fifo"

    def __init__(self, maxsize: float = 0) -> None:
        super().__init__(0 if maxsize == math.inf else maxsize, order=self._order)  # type: ignore[arg-type]

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """As duodao.Queue's; one by one through a subclass's own put()."""
        plain = type(self).put is MemoryQueue.put
        return super().put_many(items, timeout) if plain else _Queue.put_many(self, items, timeout)

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """As duodao.Queue's; one by one through a subclass's own get()."""
        plain = type(self).get is MemoryQueue.get
        return super().get_many(n, timeout) if plain else _Queue.get_many(self, n, timeout)


class LifoQueue(Queue[T]):
    """`queue.LifoQueue`: last in, first out."""

    _order = "lifo"


class PriorityQueue(Queue[T]):
    """`queue.PriorityQueue`: lowest first; every item is compared as a whole, a pair too.

    duodao.Queue(order="priority") takes pairs with the same first half by arrival, and never compares the second ones.
    """

    _order = "priority"

    def _make(self) -> Any:
        return []

    def _ends(self, store: Any) -> tuple[Callable[[T], None], Callable[[], T]]:
        return partial(heappush, store), partial(heappop, store)


class SimpleQueue(Generic[T]):
    """`queue.SimpleQueue`: unbounded, first in, first out, without task_done; put() may interrupt a put()."""

    def __init__(self) -> None:
        self._queue: MemoryQueue[T] = MemoryQueue()
        self.get, self.get_nowait = self._queue.get, self._queue.get_nowait
        self.qsize, self.empty = self._queue.qsize, self._queue.empty

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item. `block` and `timeout` are there for the sake of Queue's signature: there is always room."""
        del block, timeout
        self._queue.put(item)

    def put_nowait(self, item: T) -> None:
        """Put an item."""
        self._queue.put(item)
