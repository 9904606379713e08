"""duodao.Queue: one class in front of all transports. `via=` says which one an object of it is.

A transport is a subclass in a file of its own, named in `_HOMES`. It sets VIA, ORDERS and UNBOUNDED, calls
`super().__init__`, and has put, get, qsize, task_done, join, shutdown, is_shutdown, close and statistics. The other
methods stand here in terms of those; a transport that can do better overrides put_many and get_many, one that can wait
in an event loop the async forms, one that other processes may hold __reduce__.

What every transport must do at the edges, held by tests/contract/queues:

- An item is taken by one reader. What one writer puts arrives in `order`; the writers' turns are the transport's.
- Waiting parks with `on_item`, `on_room` or `on_done`: they name the queue, and nobody in particular could end them.
- `timeout` counts for the whole call. None waits without end, 0 only tries, less is a ValueError. With block=False the
  time-out is ignored. What is there, or fits, is taken or put even when the time is over.
- After shutdown() every put raises ShutDown at once, a waiting one too; every get takes what is there, then raises
  ShutDown, a waiting one too. It can be called again; shutdown(immediate=True) drops what is there and counts it done.
  All who hold the queue, in other processes too, see it shut down.
- After close() every method but close raises Closed, and so does whoever waits in this object. Other handles go on.
"""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty
from time import monotonic
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeVar

from duodao.errors import Closed, NotPicklable, ShutDown, UsageError

T = TypeVar("T")
Order = Literal["fifo", "lifo", "priority"]

ORDERS = ("fifo", "lifo", "priority")
# How `via` begins -> the file here and its class. By name: a program loads only the transports that it uses.
_HOMES = {
    "memory": ("memory", "MemoryQueue"),
    "shared": ("shared", "SharedQueue"),
    "pipe": ("stream", "PipeQueue"),
    "unix:": ("stream", "SocketQueue"),
    "tcp://": ("stream", "SocketQueue"),
    "file:": ("file", "FileQueue"),
}
_VALID = "'memory', 'shared', 'pipe', 'unix:PATH', 'tcp://HOST:PORT' or 'file:PATH'"
_numbers = itertools.count(1)


def _home(via: object) -> tuple[str, str]:
    """The file and class of a transport. UsageError names the valid ones."""
    if isinstance(via, str):
        for start, home in _HOMES.items():
            if via == start or (start[-1] in ":/" and via.startswith(start)):
                return home
    raise UsageError(f"via={via!r}: it is {_VALID}")


def deadline(timeout: float | None) -> float | None:
    """When `timeout` seconds from now will be, by time.monotonic(). ValueError: less than 0, or nan."""
    if timeout is None:
        return None
    if not timeout >= 0:  # nan, too: nothing is later than it
        raise ValueError("'timeout' must be a non-negative number")
    return monotonic() + timeout


def left(until: float | None) -> float | None:
    """Seconds until then, at least 0; None: without end."""
    return None if until is None else max(0.0, until - monotonic())


def at_least_one(n: int) -> int:
    """`n` as get_many takes it. ValueError: less than 1."""
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"get_many takes 1 item or more, not {n}")
    return n


def cut_short(error: BaseException, count: int) -> None:
    """Say in the error that ends a put_many how many items, the first ones, had been put: `error.put_count`."""
    vars(error)["put_count"] = count
    error.add_note(f"the first {count} items had been put")


class Awaited:
    """What a wait on a queue waits for, in words. Anyone could end it, so it is never part of a circle."""

    __slots__ = ("_text", "reach")

    def __init__(self, text: str, reach: str = "") -> None:
        """reach: see `units.reach`."""
        self._text = text
        self.reach = reach

    def resolvers(self) -> None:
        """Nobody in particular."""
        return

    def describe(self) -> str:
        """As it stands behind "waits for"."""
        return self._text


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A queue at one moment.

    unfinished: items put and not yet task_done, None where the transport doesn't count them. getters, putters: the
    names of those who wait in this process, for an item and for room.
    """

    name: str
    via: str
    order: str
    size: int
    maxsize: int
    unfinished: int | None
    getters: tuple[str, ...]
    putters: tuple[str, ...]
    is_shutdown: bool


class Queue(Generic[T]):
    """A queue with the methods and exceptions of queue.Queue, over memory, shared memory, a pipe, a socket or a file.

    maxsize: items it holds at most; 0 or less is without bound, in memory only. order: "fifo", "lifo", or "priority":
    lowest first, ties by arrival, where a pair `(2, anything)` counts by its first half and any other item as it is
    (channel/order.py). via: "memory" for threads and tasks of this process; "shared" (shared memory) and "pipe" for
    this machine's processes of ours; "unix:PATH" and "tcp://HOST:PORT" for any process; "file:PATH" outlives them all.
    name: for messages and statistics.

    `for item in queue` ends when the queue was shut down and all items were read. `with Queue(...) as queue` closes it.
    Wrong options raise UsageError. Source: M10, M11, M13, M22, M25.
    """

    _duodao_handle = True  # frozen.py

    VIA: ClassVar[str] = ""
    ORDERS: ClassVar[tuple[str, ...]] = ORDERS
    UNBOUNDED: ClassVar[bool] = False

    maxsize: int
    order: Order
    via: str
    name: str
    on_item: Awaited
    on_room: Awaited
    on_done: Awaited

    def __new__(
        cls, maxsize: int = 0, *, order: Order = "fifo", via: str = "memory", name: str | None = None
    ) -> Queue[T]:
        """An object of the transport that `via` names; a transport's own class gives itself."""
        del maxsize, order, name
        if cls is Queue:
            home, kind = _home(via)
            return object.__new__(getattr(importlib.import_module(f"duodao.channel.{home}"), kind))
        if not cls.VIA:
            raise TypeError(f"{cls.__name__}: derive it from duodao.dropin.queue.Queue, whose hooks are _put and _get")
        return object.__new__(cls)

    def __init__(
        self, maxsize: int = 0, *, order: Order = "fifo", via: str = "memory", name: str | None = None
    ) -> None:
        what = f"Queue(via={via!r})"
        if order not in ORDERS:
            raise UsageError(f"order={order!r}: it is {', '.join(map(repr, ORDERS[:-1]))} or {ORDERS[-1]!r}")
        if order not in self.ORDERS:
            raise UsageError(f"{what} has no order={order!r}, only {', '.join(map(repr, self.ORDERS))}")
        if not isinstance(maxsize, int):
            raise UsageError(f"maxsize={maxsize!r}: it is a number of items, an int")
        if maxsize <= 0 and not self.UNBOUNDED:
            raise UsageError(f"{what} needs a bound: maxsize=1 or more items. Only via='memory' has queues without one")
        if not isinstance(name, str | None):
            raise UsageError(f"name={name!r}: it is a text")
        self.maxsize = maxsize
        self.order = order
        self.via = via
        self.name = name or f"Queue-{next(_numbers)}"
        reach = {"memory": "", "shared": "program", "pipe": "program"}.get(via, "world")
        self.on_item = Awaited(f"an item of Queue {self.name!r}", reach)
        self.on_room = Awaited(f"room in Queue {self.name!r}", reach)
        self.on_done = Awaited(f"all items of Queue {self.name!r} to be done", reach)

    # ------------------------------------------------------------------------------- what each transport has of its own

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, waiting for room up to `timeout` seconds (None: without end).

        Full: none within that time, or none now with block=False. ShutDown, Closed: it was. ValueError: timeout < 0.
        """
        raise NotImplementedError

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item, waiting for one up to `timeout` seconds (None: without end).

        Empty: none within that time, or none now with block=False. ShutDown: it was, and holds no item. Closed: it was.
        ValueError: timeout < 0.
        """
        raise NotImplementedError

    def qsize(self) -> int:
        """Items in it at some moment of the call."""
        raise NotImplementedError

    def task_done(self) -> None:
        """Say that one item that was got is done with. ValueError: more often than items were put."""
        raise NotImplementedError

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every item that was put is done with. True, or False after `timeout` seconds."""
        raise NotImplementedError

    def shutdown(self, immediate: bool = False) -> None:
        """End it: puts raise ShutDown from now on, gets when all items were read; immediate: items are dropped now.

        As queue.Queue.shutdown of Python 3.13: an item that is dropped counts as done.
        """
        raise NotImplementedError

    @property
    def is_shutdown(self) -> bool:
        """Shutdown() was called, by anyone who has this queue."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what this object holds; using it later raises Closed, and so do its waiting calls. Can be repeated.

        Items stay for the other handles of the queue. With the last handle they go, but for those in a file.
        """
        raise NotImplementedError

    def statistics(self) -> QueueStatistics:
        """Its size, limits, and who waits."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------- the same for all of them

    def put_nowait(self, item: T) -> None:
        """Put an item if there is room now, else raise Full."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """Take an item if there is one now, else raise Empty."""
        return self.get(block=False)

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """Put all items in their order, waiting for room as often as need be, `timeout` seconds altogether.

        Other writers' items may come in between. The items are read as there is room for them. Nothing to put is 0 at
        any time. Returns how many were put: all. Full, ShutDown, Closed: as put; what reading or putting an item raises
        is passed on. `error.put_count` is then the number of items, the first ones, that are in the queue.
        """
        until = deadline(timeout)
        count = 0
        try:
            for item in items:
                self.put(item, timeout=left(until))
                count += 1
        except Exception as error:
            cut_short(error, count)
            raise
        return count

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Wait for an item as get does, then take with it what is there, `n` altogether at most, without waiting.

        Returns 1 to n items in their order. Each is to be task_done of its own. Empty, ShutDown, Closed: as get.
        ValueError: n < 1 or timeout < 0.
        """
        n = at_least_one(n)
        found = [self.get(timeout=timeout)]
        try:
            while len(found) < n:
                found.append(self.get_nowait())
        except (Empty, Closed):
            pass
        return found

    def empty(self) -> bool:
        """No item was in it at some moment of the call."""
        return self.qsize() == 0

    def full(self) -> bool:
        """A put would have had to wait at some moment of the call."""
        return 0 < self.maxsize <= self.qsize()

    def __iter__(self) -> Iterator[T]:
        """Items as they come; ends when the queue was shut down and all were read. task_done remains the reader's."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __enter__(self) -> Queue[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Queue {self.name!r} order={self.order!r} via={self.via!r} maxsize={self.maxsize}>"

    def __reduce__(self) -> Any:
        """Of a transport that stays in its process."""
        raise NotPicklable(f"{self!r} lives in one process: use via='shared', or a socket or file", "queue")

    # ---------------------------------------------------------------- in an event loop: the same, but the task waits

    def _no_async(self, name: str, *arguments: object) -> NoReturn:
        del arguments
        raise TypeError(f"a queue via={self.via!r} has no {name}(): await asyncio.to_thread(queue.{name[1:]}, ...)")

    def aput(self, item: T, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """As put. TypeError at once: this transport has no async forms; so for all of them."""
        self._no_async("aput", item, timeout)

    def aget(self, timeout: float | None = None) -> Coroutine[Any, Any, T]:
        """As get."""
        self._no_async("aget", timeout)

    def aput_many(self, items: Iterable[T], timeout: float | None = None) -> Coroutine[Any, Any, int]:
        """As put_many."""
        self._no_async("aput_many", items, timeout)

    def aget_many(self, n: int, timeout: float | None = None) -> Coroutine[Any, Any, list[T]]:
        """As get_many."""
        self._no_async("aget_many", n, timeout)

    def ajoin(self, timeout: float | None = None) -> Coroutine[Any, Any, bool]:
        """As join."""
        self._no_async("ajoin", timeout)

    async def __aiter__(self) -> AsyncIterator[T]:
        """As iteration."""
        while True:
            try:
                item = await self.aget()
            except ShutDown:
                return
            yield item
