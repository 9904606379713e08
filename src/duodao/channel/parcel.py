"""Items on their way into a shared queue and out of it: pickled, in a record or in a block, one or several."""

from __future__ import annotations

from itertools import chain
from pickle import loads
from typing import Any

from duodao.channel.blocks import WRITTEN
from duodao.channel.index import SHUT, WANT_ROOM, Index
from duodao.channel.ring import BLOCK, BLOCK_DATA, ONE

VALUES, FAILED = 8, 9
"""Kinds of what get_many had taken when it failed: values, an error."""
_SCALARS = frozenset((int, float, complex, bool, str, bytes, type(None)))


class Parcel:
    """An item on its way in: pickled, perhaps in a block already. pieces: not yet in a block."""

    __slots__ = ("block", "data", "item", "kind", "pieces", "size")

    def __init__(self, item: Any, data: bytes, pieces: list[Any] | None = None) -> None:
        self.item = item
        self.data = data
        self.kind = ONE
        self.block: int | None = None
        self.pieces = pieces
        self.size = sum(map(len, pieces)) if pieces else len(data)


def try_put(index: Index, parcel: Parcel) -> bool:
    """Put it, into a block where it is long; False while there is no room. ShutDown: the queue was."""
    if parcel.pieces is None and parcel.block is None:
        done: int = index.push(parcel.data, ONE, 1, parcel.item)
        if done >= 0:
            return done == 1
        parcel.pieces = [parcel.data]
    if parcel.pieces is not None:
        if index.words[SHUT]:
            raise index.shut_down()
        hand = index.segment.hand or index.join()
        parcel.block = index.blocks.allocate(parcel.size, hand)
        if parcel.block is None:
            return False
        index.blocks.write(parcel.block, parcel.pieces)
        parcel.pieces = None
        parcel.data = BLOCK_DATA.pack(parcel.block, parcel.size)
    return bool(index.push(parcel.data, BLOCK, 1, parcel.item) == 1)


def drop(index: Index, parcel: Parcel) -> None:
    """Give back the block of an item that was not put."""
    if parcel.block is not None and index.blocks.state(parcel.block) == (WRITTEN, index.segment.hand):
        index.blocks.free(parcel.block)


def unpack(index: Index, kind: int, data: Any, first: int, count: int) -> list[Any]:
    """The values of what was taken."""
    if kind == VALUES:
        return data[first : first + count]  # type: ignore[no-any-return]
    if kind == FAILED:
        raise data
    if kind == ONE:
        return [loads(data)]
    if kind == BLOCK:
        return [_read_block(index, *BLOCK_DATA.unpack(data))]
    begin, items = data
    if type(items) is not list:
        items = loads(memoryview(items)[8:])
        if count == len(items):
            return items  # type: ignore[no-any-return]
        index.unpacked = begin, items
    return items[first : first + count]  # type: ignore[no-any-return]


def _read_block(index: Index, block: int, size: int) -> Any:
    try:
        return loads(index.blocks.view(block, size))
    finally:
        index.blocks.free(block)
        if index.words[WANT_ROOM]:
            index.ring(WANT_ROOM)


def unreadable(index: Index, error: BaseException) -> None:
    """Note in the error what became of the item."""
    error.add_note(f"an item of Queue {index.name!r} could not be unpickled here; it is gone, the others are there")


def plain(batch: list[Any]) -> bool:
    """Are these numbers and texts, or tuples of them? Pickled together they are what they are pickled apart."""
    types = set(map(type, batch))
    return types <= _SCALARS or (types == {tuple} and set(map(type, chain.from_iterable(batch))) <= _SCALARS)
