"""What a memory queue holds, and its ends. Nothing here waits; memory.py does.

State is changed under `mutex` alone. Two ways lead there. The quick one, in memory.py, is for a queue as it comes: a
limit to compare with and a bound method of the store, no call of Python's. The careful one, here, runs the hooks _put,
_get and _qsize that a subclass may have, tells the conditions that somebody asked for, and knows the ends of things.
`_tune` opens the quick one: a `_limit` below 0 closes it for put, an empty `_source` for get.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence, Sized
from itertools import repeat, starmap
from typing import Any, ClassVar, TypeVar

from duodao.channel.base import Order, Queue, QueueStatistics
from duodao.channel.order import Heap, ends, make
from duodao.errors import Closed, ShutDown
from duodao.sync import lot

T = TypeVar("T")

GROWN = 100_000
"""Items from which on a queue without a bound is said to grow."""
_HOOKS = ("_init", "_put", "_get", "_qsize")
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class _Side(threading.Condition):
    """not_empty, not_full or all_tasks_done, for programs that use them: notifying also wakes those who are parked."""

    def __init__(self, mutex: Any, parked: lot.Parked) -> None:
        super().__init__(mutex)
        self._parked = parked

    def notify(self, n: int = 1) -> None:
        super().notify(n)
        lot.wake(self._parked, n)

    def notify_all(self) -> None:
        super().notify_all()
        lot.wake_all(self._parked)


class Buffer(Queue[T]):
    """The state of a memory queue: its store, its count of unfinished items, and who is parked for what."""

    UNBOUNDED: ClassVar[bool] = True
    is_shutdown: bool = False

    _source: Sized = ()
    _limit = -1
    _store: Any = ()
    _push: Callable[[T], None]
    _pop: Callable[[], T]

    def __init__(
        self, maxsize: int = 0, *, order: Order = "fifo", via: str = "memory", name: str | None = None
    ) -> None:
        self.mutex = threading.RLock()
        self._acquire, self._release = self.mutex.acquire, self.mutex.release
        self.unfinished_tasks = 0
        self._getters: lot.Parked = deque()
        self._putters: lot.Parked = deque()
        self._joiners: lot.Parked = deque()
        self._sides: dict[str, _Side] = {}
        self._plain = all(getattr(type(self), hook) is getattr(Buffer, hook) for hook in _HOOKS)
        self._told = self._closed = False
        super().__init__(maxsize, order=order, via=via, name=name)
        self._init(maxsize)
        _alive[id(self)] = self  # not a set: a subclass may have no hash

    # ---------------------------------------------------------- the hooks of queue.Queue; called with the mutex held

    def _init(self, maxsize: int) -> None:
        del maxsize
        self.queue = self._make()

    def _qsize(self) -> int:
        return len(self._store)

    def _put(self, item: T) -> None:
        self._push(item)

    def _get(self) -> T:
        return self._pop()

    def _make(self) -> Any:
        """An empty store."""
        return make(self.order)

    def _ends(self, store: Any) -> tuple[Callable[[T], None], Callable[[], T]]:
        """How an item is put into the store, and taken from it."""
        return ends(store)

    @property
    def queue(self) -> Any:
        """What holds the items: a deque, a list, or for priorities a Heap that reads like a list."""
        return self._store

    @queue.setter
    def queue(self, store: Any) -> None:
        self._store = store
        if isinstance(store, deque | list | Heap):
            self._push, self._pop = self._ends(store)
        self._tune()

    @property
    def maxsize(self) -> int:
        """Items it holds at most; 0 or less: without bound."""
        return self._maxsize

    @maxsize.setter
    def maxsize(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._tune()

    def _tune(self) -> None:
        quick = self._plain and not self._sides and not self._closed
        self._source = () if not quick else self._store.entries if isinstance(self._store, Heap) else self._store
        if not quick or self.is_shutdown:
            self._limit = -1
        elif self._maxsize > 0:
            self._limit = self._maxsize
        else:
            self._limit = sys.maxsize if self._told else GROWN

    # ----------------------------------------------------------------------------------------------- one step each

    def _offer(self, item: T) -> bool:
        """Put the item if there is room."""
        with self.mutex:
            self._refuse_puts()
            if 0 < self._maxsize <= self._qsize():
                return False
            self._put(item)
            self.unfinished_tasks += 1
            self._tell("not_empty", self._getters, 1)
        return True

    def _take(self) -> tuple[T] | tuple[()]:
        """The next item, if there is one."""
        with self.mutex:
            self._refuse_gets()
            if not self._qsize():
                return ()
            item = self._get()
            self._tell("not_full", self._putters, 1)
        return (item,)

    def _offer_some(self, items: Sequence[T], start: int) -> int:
        """Put as many items from `start` on as there is room for now; how many."""
        with self.mutex:
            self._refuse_puts()
            n = len(items) - start
            if self._maxsize > 0:
                n = min(n, self._maxsize - self._qsize())
            if n <= 0:
                return 0
            part = items if n == len(items) else items[start : start + n]
            if self._plain and self.order != "priority":
                self.unfinished_tasks += n
                self._store.extend(part)
            else:
                n = self._put_each(part)
            self._tell("not_empty", self._getters, n)
        return n

    def _put_each(self, items: Sequence[T]) -> int:
        """Put them until one fails; the first one's error is raised, a later one's meets the call that begins there."""
        put, n = self._push if self._plain else self._put, 0
        try:
            for item in items:
                put(item)
                self.unfinished_tasks += 1
                n += 1
        except Exception:
            if not n:
                raise
        return n

    def _take_some(self, n: int) -> list[T]:
        """Up to n items that are there."""
        found: list[T] = []
        with self.mutex:
            self._refuse_gets()
            get = self._pop if self._plain else self._get
            try:
                found.extend(starmap(get, repeat((), min(n, self._qsize()))))
            except Exception:
                if not found:  # else: what came out before a hook failed
                    raise
            if found:
                self._tell("not_full", self._putters, len(found))
        return found

    def _all_done(self) -> bool:
        self._refuse_closed()
        return not self.unfinished_tasks

    def _room(self, most: int) -> int:
        """How many items to read ahead: as many as fit, `most` at most, one at least."""
        with self.mutex:
            return most if self._maxsize <= 0 else min(most, max(1, self._maxsize - self._qsize()))

    def _tell(self, side: str, parked: lot.Parked, n: int) -> None:
        if side in self._sides:
            self._sides[side].notify(n)
        elif parked:
            lot.wake(parked, n)

    def _tell_all(self, side: str, parked: lot.Parked) -> None:
        if side in self._sides:
            self._sides[side].notify_all()
        else:
            lot.wake_all(parked)

    # ------------------------------------------------------------------------------------------------- its ends

    def task_done(self) -> None:
        """Say that one item that was got is done with. ValueError: more often than items were put."""
        with self.mutex:
            self._refuse_closed()
            unfinished = self.unfinished_tasks - 1
            if unfinished < 0:
                raise ValueError("task_done() called too many times")
            self.unfinished_tasks = unfinished
            if not unfinished:
                self._tell_all("all_tasks_done", self._joiners)

    def shutdown(self, immediate: bool = False) -> None:
        """No more puts; gets until it is empty. `immediate`: the items are dropped now, and count as done."""
        with self.mutex:
            self._refuse_closed()
            self._end(immediate)

    def close(self) -> None:
        """Drop the items; who waits gets Closed, and so does who uses it later. Can be repeated."""
        with self.mutex:
            self._closed = True
            self._end(True)

    def _end(self, immediate: bool) -> None:
        self.is_shutdown = True
        self._tune()
        if immediate:
            while self._qsize():
                self._get()
                self.unfinished_tasks = max(0, self.unfinished_tasks - 1)
            self._tell_all("all_tasks_done", self._joiners)
        self._tell_all("not_empty", self._getters)
        self._tell_all("not_full", self._putters)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Closed(f"Queue {self.name!r} was closed")

    def _refuse_puts(self) -> None:
        if self.is_shutdown:
            self._refuse_closed()
            raise ShutDown(f"Queue {self.name!r} was shut down: it takes no more items")

    def _refuse_gets(self) -> None:
        if self.is_shutdown and not self._qsize():
            self._refuse_closed()
            raise ShutDown(f"Queue {self.name!r} was shut down, and holds no item")

    # ------------------------------------------------------------------------------------------------- a look at it

    def qsize(self) -> int:
        """Items in it now."""
        with self.mutex:
            self._refuse_closed()
            return self._qsize()

    def statistics(self) -> QueueStatistics:
        """Its size, limits, and who waits."""
        with self.mutex:
            size, unfinished = self._qsize(), self.unfinished_tasks
        waiters = lot.names(self._getters), lot.names(self._putters)
        return QueueStatistics(
            self.name, self.via, self.order, size, self._maxsize, unfinished, *waiters, self.is_shutdown
        )

    @property
    def not_empty(self) -> threading.Condition:
        """As queue.Queue's: notified for each item. Once asked for, the queue tells it each time, and is slower."""
        return self._side("not_empty", self._getters)

    @property
    def not_full(self) -> threading.Condition:
        """As queue.Queue's: notified for each item taken; see not_empty."""
        return self._side("not_full", self._putters)

    @property
    def all_tasks_done(self) -> threading.Condition:
        """As queue.Queue's: notified when unfinished_tasks drops to 0; see not_empty."""
        return self._side("all_tasks_done", self._joiners)

    def _side(self, side: str, parked: lot.Parked) -> _Side:
        with self.mutex:
            if side not in self._sides:
                self._sides[side] = _Side(self.mutex, parked)
                self._tune()
            return self._sides[side]

    def _tell_growth(self) -> None:
        """Say once, to whoever puts, that nothing bounds this queue."""
        if self._told or self._maxsize > 0:
            return
        with self.mutex:
            if self._told or self._qsize() < GROWN:
                return
            self._told = True
            self._tune()
        depth, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
            depth, frame = depth + 1, frame.f_back
        warnings.warn(
            f"Queue {self.name!r} has grown past {GROWN:,} items and has no bound: it is written faster than it is "
            "read, and takes all memory in the end. With maxsize= its writers wait",
            RuntimeWarning,
            stacklevel=depth,
        )


_alive: weakref.WeakValueDictionary[int, Buffer[Any]] = weakref.WeakValueDictionary()


def _forget() -> None:
    """In a forked copy the other threads are gone: whoever had the mutex, and those that would take the wake-ups."""
    for queue in list(_alive.values()):
        if not queue.mutex._is_owned():  # type: ignore[attr-defined]
            queue.mutex._at_fork_reinit()  # type: ignore[attr-defined]
        for parked in (queue._getters, queue._putters, queue._joiners):
            parked.clear()


os.register_at_fork(after_in_child=_forget)
