"""What a queue hands out next: the first, the last, or the lowest; ties of priority by arrival."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")

_PLAIN = frozenset({int, float, bool, str, bytes})
"""Types whose values C compares, and whose `==` agrees with `<`."""


class Ranked:
    """A priority of any other type: all that is asked of it is `<`, so two of which neither is lower are equal."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < _value(other))

    def __gt__(self, other: Any) -> bool:
        return bool(_value(other) < self.value)

    def __eq__(self, other: object) -> bool:
        return not (self < other or self > other)

    __hash__ = None  # type: ignore[assignment]


def _value(other: Any) -> Any:
    return other.value if type(other) is Ranked else other


def rank(item: Any) -> Any:
    """What an item of a priority queue is sorted by: of a pair its first half, else the item itself.

    So `(priority, anything)` never compares the `anything`. A longer tuple is compared as a whole, as every item is by
    queue.PriorityQueue: (priority, turn, anything).
    """
    priority = item[0] if isinstance(item, tuple) and len(item) == 2 else item
    return priority if type(priority) in _PLAIN else Ranked(priority)


class Heap(Generic[T]):
    """Items by `rank`, then by arrival. To look at it is like a list; its first item is the next.

    entries: (rank, number of arrival, item): the number is unique, so items are never compared.
    """

    __slots__ = ("_numbers", "entries")

    def __init__(self) -> None:
        self.entries: list[tuple[Any, int, T]] = []
        self._numbers = itertools.count()

    def push(self, item: T) -> None:
        """Add an item. What comparing it raises is passed on (TypeError: not comparable), and the heap is as before."""
        entry = (rank(item), next(self._numbers), item)
        try:
            heappush(self.entries, entry)
        except BaseException:
            self._take_back(entry)
            raise

    def pop(self) -> T:
        """Take the next item. IndexError: there is none."""
        return heappop(self.entries)[2]

    def _take_back(self, entry: tuple[Any, int, T]) -> None:
        """Undo a push that stopped half way up: what it passed moves up again. heapq.heappush leaves it in."""
        heap, way = self.entries, [len(self.entries) - 1]
        while heap[way[-1]] is not entry:
            way.append((way[-1] - 1) >> 1)
        for below, above in itertools.pairwise(reversed(way)):
            heap[below] = heap[above]
        heap.pop()

    def clear(self) -> None:
        """Drop all items."""
        self.entries.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> T:
        return self.entries[index][2]

    def __iter__(self) -> Iterator[T]:
        return (item for _, _, item in self.entries)

    def __repr__(self) -> str:
        return f"Heap({list(self)!r})"


Store: TypeAlias = "deque[T] | list[T] | Heap[T]"


def make(order: str) -> Store[Any]:
    """What holds the items of a queue of this order."""
    return deque() if order == "fifo" else [] if order == "lifo" else Heap()


def ends(store: Store[T]) -> tuple[Callable[[T], None], Callable[[], T]]:
    """How an item is put into the store, and how the next one is taken from it."""
    if isinstance(store, deque):
        return store.append, store.popleft
    if isinstance(store, Heap):
        return store.push, store.pop
    return store.append, store.pop
