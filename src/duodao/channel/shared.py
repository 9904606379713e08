"""duodao.Queue(via="shared"): a queue in memory that processes share. No pipe, no thread, no server.

    put: pickle ──► [lock: a record, one store] ──► ring a waiter's bell
    get: [lock: copy the record, one store] ──► unpickle

What is longer than INLINE is written into a block of its own, outside of the lock, straight from the buffers of the
item; the record only names it. A killed process leaves either the state before its store or the one after it: ring.py
and ladder.py have the layouts and their invariants, index.py the account of what it had in its hands.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pickle import dumps as plain_dumps
from pickle import loads
from queue import Empty, Full
from typing import Any, ClassVar, TypeVar

from duodao import pickling
from duodao.channel.base import (
    ORDERS,
    Order,
    Queue,
    QueueStatistics,
    at_least_one,
    cut_short,
    deadline,
    left,
)  # fmt: skip
from duodao.channel.blocks import BYTES as BLOCKS_BYTES
from duodao.channel.blocks import Blocks
from duodao.channel.index import (
    H_RETURNED,
    HEAD,
    LOST,
    MAXSIZE,
    ORDER,
    SHUT,
    SPACE,
    TAIL,
    WANT_DONE,
    WANT_ITEM,
    WANT_ROOM,
    Index,
)  # fmt: skip
from duodao.channel.ladder import Ladder, cell_size
from duodao.channel.parcel import FAILED, VALUES, Parcel, drop, plain, try_put, unpack, unreadable
from duodao.channel.ring import BLOCK, BLOCK_DATA, INLINE, LIST, ONE, Ring, Taken, ring_size
from duodao.channel.segment import BODY, Segment, give_back
from duodao.channel.shared_waits import HANDLES, LOOKS, Gone, WaitingQueue
from duodao.errors import UsageError
from duodao.sync import graph

T = TypeVar("T")

MOST = 1_000_000
"""Items a shared queue may hold: what it needs for each is laid out when it is made."""
_KIND = 0x51
_AT_ONCE = 256
"""Items that put_many reads ahead and packs into one record, at most."""
_PACKED = 16384
"""Bytes of such a record: whoever takes one item of it unpacks them all."""


@dataclass(frozen=True, slots=True)
class SharedStatistics(QueueStatistics):
    """lost: items that died with a process. lost_by: "pid 4711: 2", the last ones. processes: that have the queue."""

    lost: int
    lost_by: tuple[str, ...]
    processes: tuple[int, ...]


class SharedQueue(WaitingQueue[T]):
    """duodao.Queue(maxsize, via="shared"). maxsize: 1 to MOST items. They take at most 128 MiB beside what is small."""

    VIA: ClassVar[str] = "shared"

    def __init__(
        self, maxsize: int = 0, *, order: Order = "fifo", via: str = "shared", name: str | None = None
    ) -> None:
        super().__init__(maxsize, order=order, via=via, name=name)
        if maxsize > MOST:
            raise UsageError(f"Queue(via='shared') holds at most {MOST:,} items, not maxsize={maxsize:,}")
        kind = _index_of(order)
        segment = Segment.make(_KIND, BODY + BLOCKS_BYTES + kind.bytes_for(maxsize))
        words = segment.words
        words[MAXSIZE], words[ORDER] = maxsize, ORDERS.index(order)
        words[SPACE] = ring_size(maxsize) if order == "fifo" else cell_size(maxsize)
        self._open(segment)
        index: Index = self._index
        index.blocks.init()
        index.init()
        index.join()

    def _open(self, segment: Segment) -> None:
        blocks = Blocks(segment.offset + BODY)
        self._index: Any = _index_of(self.order)(segment, blocks, self.name, BODY + BLOCKS_BYTES)
        self._rest: deque[Taken] = deque()  # taken together with what could not be unpickled
        self._large = False
        self._waiting = {WANT_ITEM: [], WANT_ROOM: [], WANT_DONE: []}
        self._ears = {}
        HANDLES.add(self)

    # ------------------------------------------------------------------------------------------------------------ put

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """As Queue.put. NotPicklable: the item is not put. UsageError: it is larger than all the memory."""
        index = self._index
        if self._large:
            self._put_large(index, item, block, timeout)
            return
        try:
            data = pickling.dumps(item)
        except pickling.Raised as error:
            raise pickling.not_picklable(item, "item", error) from error
        if len(data) > INLINE:
            self._large = True  # the next ones probably too
            self._put_slowly(index, Parcel(item, b"", [data]), block, timeout)
        elif (timeout is not None and timeout < 0) or index.push(data, ONE, 1, item) != 1:
            self._put_slowly(index, Parcel(item, data), block, timeout)

    def _put_large(self, index: Index, item: T, block: bool, timeout: float | None) -> None:
        try:
            pieces = pickling.pieces(item)
        except pickling.Raised as error:
            raise pickling.not_picklable(item, "item", error) from error
        parcel = Parcel(item, b"", pieces)
        if parcel.size <= INLINE:
            self._large = False
            parcel = Parcel(item, b"".join(pieces))
        self._put_slowly(index, parcel, block, timeout)

    def _put_slowly(self, index: Index, parcel: Parcel, block: bool, timeout: float | None) -> None:
        until = deadline(timeout) if block else 0.0
        try:
            if try_put(index, parcel):
                return
            if not block or not self._wait(index, WANT_ROOM, lambda: try_put(index, parcel), until, self.on_room):
                raise Full
        finally:
            drop(index, parcel)

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """As Queue.put_many. Up to 256 items are read ahead; plain ones (numbers, texts, tuples of them) are packed."""
        index, until, count = self._index, deadline(timeout), 0
        source = iter(items)
        at_once = max(1, min(_AT_ONCE, self.maxsize)) if self.order == "fifo" else 1
        try:
            while True:
                batch: list[T] = []
                try:
                    batch.extend(islice(source, at_once))
                finally:
                    for put in self._put_batch(index, batch, until):
                        count += put
                if not batch:
                    return count
        except Exception as error:
            cut_short(error, count)
            raise

    def _put_batch(self, index: Index, batch: list[T], until: float | None) -> Iterable[int]:
        at = 0
        packable = len(batch) > 1 and plain(batch)
        while at < len(batch):
            room = self.maxsize - index.length()
            part = batch[at : at + room] if packable and room > 1 else []
            if len(part) > 1:
                data = bytes(8) + plain_dumps(part, 5)
                if len(data) > _PACKED:
                    packable = False
                elif index.push(data, LIST, len(part)) == 1:
                    at += len(part)
                    yield len(part)
                    continue
            self.put(batch[at], timeout=left(until))
            at += 1
            yield 1

    # ------------------------------------------------------------------------------------------------------------ get

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """As Queue.get. What unpickling an item raises is passed on: that item is gone, the others are there."""
        index = self._index
        if self._rest or (timeout is not None and timeout < 0):
            return self._get_odd(index, block, timeout)
        taken = index.pop()
        if taken is None:
            taken = self._get_slowly(index, index.pop, block, timeout)
        kind, data, first, _ = taken
        try:
            if kind != ONE:
                return unpack(index, kind, data, first, 1)[0]  # type: ignore[no-any-return]
            value: T = loads(data)
        except BaseException as error:
            unreadable(index, error)
            raise
        finally:
            index.words[index.segment.hand + H_RETURNED] += 1  # as index.returned(1)
        return value

    def _get_odd(self, index: Index, block: bool, timeout: float | None) -> T:
        """Of what an error of get_many left, or with a wrong time-out."""
        if block:
            deadline(timeout)
        try:
            kind, data, first, count = self._rest.popleft()
        except IndexError:  # another thread has it
            return self.get(block, None if timeout is None else max(0.0, timeout))
        if count > 1:
            self._rest.appendleft((kind, data, first + 1, count - 1))
        try:
            return unpack(index, kind, data, first, 1)[0]  # type: ignore[no-any-return]
        finally:
            index.returned(1)

    def _get_slowly(self, index: Index, pop: Callable[[], Any], block: bool, timeout: float | None) -> Any:
        words = index.words
        if block and timeout is None:
            for _ in range(LOOKS):
                if words[HEAD] != words[TAIL]:
                    taken = pop()
                    if taken:
                        return taken
                else:
                    os.sched_yield()
        until = deadline(timeout) if block else 0.0

        def ready() -> Any:
            shut = words[SHUT]  # first: nothing is put after it
            taken = pop()
            if not taken and shut:
                raise index.shut_down()
            return taken

        taken = ready()
        if not taken and block:
            taken = self._wait(index, WANT_ITEM, ready, until, self.on_item, spin=timeout is not None)
        if not taken:
            raise Empty
        return taken

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """As Queue.get_many. An item that can't be unpickled ends the list; the next get raises its error."""
        n = at_least_one(n)
        index = self._index
        deadline(timeout)
        found: deque[Taken] = deque()
        while self._rest:
            found.append(self._rest.popleft())
        if not found:
            found.extend(index.pop_many(n) or self._get_slowly(index, lambda: index.pop_many(n), True, timeout))
        values: list[T] = []
        try:
            while found and len(values) < n:
                kind, data, first, count = found.popleft()
                want = min(count, n - len(values))
                if want < count:
                    found.appendleft((kind, data, first + want, count - want))
                part = unpack(index, kind, data, first, want)
                values = part if not values else values + part
        except Exception as error:
            unreadable(index, error)
            if not values:
                index.returned(1)
                raise
            found.appendleft((FAILED, error, 0, 1))
        except BaseException:  # Ctrl-C: nobody gets them now
            found.appendleft((VALUES, values, 0, len(values)))
            raise
        finally:
            if found:
                self._rest.extendleft(reversed(found))
        index.returned(len(values))
        return values

    # ------------------------------------------------------------------------------------------------------- its ends

    def shutdown(self, immediate: bool = False) -> None:
        """As Queue.shutdown, for all processes that have the queue."""
        index = self._index
        index.shut()
        while immediate and (found := index.pop_many(1000)):
            n = 0
            for kind, data, _, count in found:
                n += count
                if kind == BLOCK:
                    index.blocks.free(BLOCK_DATA.unpack(data)[0])
            index.returned(n)
            index.finish(n, at_most=True)

    @property
    def is_shutdown(self) -> bool:
        """As Queue.is_shutdown."""
        return bool(self._index.words[SHUT])

    def close(self) -> None:
        """As Queue.close."""
        index = self._index
        if type(index) is Gone:
            return
        self._index = Gone(self.name)
        self._rest.clear()
        index.segment.life.closed = True
        for want in (WANT_ITEM, WANT_ROOM, WANT_DONE):
            index.ring(want)
        del index
        give_back()

    def qsize(self) -> int:
        """As Queue.qsize."""
        length: int = self._index.length()
        return length

    def statistics(self) -> SharedStatistics:
        """As Queue.statistics, and what was lost with killed processes."""
        index = self._index
        index.mourn()
        words, segment = index.words, index.segment
        names = {want: tuple(map(graph.name_of, list(units))) for want, units in self._waiting.items()}
        return SharedStatistics(
            name=self.name, via=self.via, order=self.order, size=index.length(), maxsize=self.maxsize,
            unfinished=index.unfinished(), getters=names[WANT_ITEM], putters=names[WANT_ROOM],
            is_shutdown=bool(words[SHUT]), lost=words[LOST], lost_by=tuple(index.losses()),
            processes=(os.getpid(), *segment.others()),
        )  # fmt: skip

    def __reduce__(self) -> Any:
        """To any process of this program: where it is, and its stamp."""
        segment = self._index.segment
        segment.life.pickled = True
        return _attach, (segment.offset, segment.stamp, self.name)

    # ---------------------------------------------------------------------------------------------------- event loops

    async def aget(self, timeout: float | None = None) -> T:
        """As Queue.aget."""
        return (await self.aget_many(1, timeout))[0]

    async def aget_many(self, n: int, timeout: float | None = None) -> list[T]:
        """As Queue.aget_many."""
        found: list[T] = await self._hear(WANT_ITEM, self.on_item, lambda: self._get_now(n), timeout, Empty)
        return found

    def _get_now(self, n: int) -> list[T]:
        try:
            found: list[T] = self.get_many(n, timeout=0)
        except Empty:
            return []
        return found

    async def aput(self, item: T, timeout: float | None = None) -> None:
        """As Queue.aput."""
        index = self._index
        try:
            parcel = Parcel(item, b"", pickling.pieces(item))
        except pickling.Raised as error:
            raise pickling.not_picklable(item, "item", error) from error
        if parcel.size <= INLINE:
            parcel = Parcel(item, b"".join(parcel.pieces or ()))
        try:
            await self._hear(WANT_ROOM, self.on_room, lambda: try_put(index, parcel), timeout, Full)
        finally:
            drop(index, parcel)

    async def aput_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """As Queue.aput_many."""
        until, count = deadline(timeout), 0
        try:
            for item in items:
                await self.aput(item, left(until))
                count += 1
        except Exception as error:
            cut_short(error, count)
            raise
        return count


def _index_of(order: str) -> type[Ring | Ladder]:
    return Ring if order == "fifo" else Ladder


def _attach(offset: int, stamp: int, name: str) -> SharedQueue[Any]:
    segment = Segment.attach(_KIND, offset, stamp, f"Queue {name!r}")
    segment.join(f"Queue {name!r}")
    words = segment.words
    found: SharedQueue[Any] = object.__new__(SharedQueue)
    Queue.__init__(found, words[MAXSIZE], order=ORDERS[words[ORDER]], via="shared", name=name)  # type: ignore[arg-type]
    segment.life.pickled = True
    found._open(segment)
    return found
