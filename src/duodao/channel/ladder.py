"""The lifo and priority orders of a shared queue: rungs in the order in which they are taken, the next one last.

    order   a permutation of all rungs: [0, COUNT) hold items, the last of them is the next to take; the others are free
    infos   a word per rung: kind | bytes of rank << 8 | bytes of data << 32
    keys    a double per rung: its rank, where that is a number
    turns   a word per rung: the number of its item, so that a rank which was unpickled once is known again
    cells   what is in a rung: its rank pickled, unless its key says all, and then the item, or the name of its block

To put is to fill the first free rung, order[COUNT], to move it to its place and to add 1 to COUNT; to take is to
subtract 1: the rung is free where it stands. A lifo queue's items have their place there already.

Invariants (one lock):
  1. Items are what order[0, COUNT) names: the one store to COUNT puts or takes. COUNT = TAIL - HEAD but between two
     stores: who mends sees by the sign whether the dead one put or took.
  2. While rungs are being moved, MOVING holds COUNT and the new rung. Moved from the end on, at each instant each rung
     stands there, one of them twice: who mends takes out the new one and the second of the two, and puts it last.
  3. A rank is compared before anything is stored: what a comparison raises leaves the queue as it was.
  4. READY blocks are those that items name; as in ring.py.
Only ranks are compared, and only those of other types than numbers are unpickled for it, under the lock.
"""

from __future__ import annotations

import pickle
import struct
import threading
from collections import OrderedDict
from typing import Any

from duodao import pickling
from duodao.channel.base import ORDERS
from duodao.channel.blocks import IS_READ, IS_READY, LENGTH, READY, Blocks
from duodao.channel.index import (
    COUNT,
    H_PUT,
    H_TAKEN,
    HEAD,
    MOVING,
    ORDER,
    SHUT,
    SPACE,
    TAIL,
    WANT_ITEM,
    WANT_ROOM,
    Index,
)  # fmt: skip
from duodao.channel.order import rank as rank_of
from duodao.channel.ring import BLOCK, ONE, Taken
from duodao.channel.segment import Segment
from duodao.errors import UsageError
from duodao.sync.robust import OWN

_LEAST, _MOST, _TOGETHER = 256, 4096, 64 << 20
_KNOWN = 1024
"""Unpickled ranks that a process keeps."""
_NUMBERS = frozenset((int, float, bool))
_BLOCK = struct.Struct("<Q")


def cell_size(maxsize: int) -> int:
    """Bytes of each rung's cell."""
    return max(_LEAST, min(_MOST, _TOGETHER // maxsize)) & ~63


class Ladder(Index):
    """The index of a lifo or priority queue. `at`: where in the segment it has `bytes_for(maxsize)` bytes."""

    def __init__(self, segment: Segment, blocks: Blocks, name: str, at: int) -> None:
        super().__init__(segment, blocks, name, one_lock=True)
        self.cell: int = self.words[SPACE]
        self.sorted = ORDERS[self.words[ORDER]] == "priority"
        n, memory = self.maxsize, segment.memory
        self.order: Any = memory[at : at + n * 8].cast("Q")
        self.infos: Any = memory[at + n * 8 : at + n * 16].cast("Q")
        self.keys: Any = memory[at + n * 16 : at + n * 24].cast("d")
        self.turns: Any = memory[at + n * 24 : at + n * 32].cast("Q")
        self.cells: Any = memory[at + n * 32 : at + n * (32 + self.cell)]
        self._ranks: OrderedDict[tuple[int, int], Any] = OrderedDict()

    @staticmethod
    def bytes_for(maxsize: int) -> int:
        """Bytes of the segment."""
        return maxsize * (32 + cell_size(maxsize))

    def init(self) -> None:
        """All rungs are free."""
        super().init()
        self.order[:] = memoryview(b"".join(map(_BLOCK.pack, range(self.maxsize)))).cast("Q")

    # ------------------------------------------------------------------------------------------------------------ put

    def push(self, data: bytes, kind: int = ONE, count: int = 1, item: Any = None) -> int:
        """Put an item: 1 done, 0 there is no room, -1 it is too long for a rung. What comparing raises is passed on."""
        key, rank, packed = 0.0, None, b""
        if self.sorted:
            key, rank, packed = _ranked(item)
            if len(packed) > self.cell - 64:
                raise UsageError(  # nothing of it is caught here
                    f"a priority of {len(packed)} bytes is too long, {self.cell - 64} is the most here"
                )
        start, size = len(packed), len(data)
        if start + size > self.cell:
            return -1
        words = self.words
        mine = (self.segment.hand or self.join()) + H_PUT
        code = 0
        try:
            code = self.trylock(self.put_pointer)
            if code:
                self.enter(self.putting, code)
            if words[SHUT]:
                raise self.shut_down()  # noqa: TRY301
            length = words[COUNT]
            if length == self.maxsize:
                return 0
            place = self._place(key, rank, packed, length) if self.sorted else length
            order = self.order
            rung = order[length]
            at = rung * self.cell
            self.cells[at : at + start] = packed
            self.cells[at + start : at + start + size] = data
            self.infos[rung] = kind | start << 8 | size << 32
            self.keys[rung] = key
            self.turns[rung] = words[TAIL]
            if place != length:
                self._move(place, length, rung)
            if kind == BLOCK:
                block, table = _BLOCK.unpack_from(data)[0], self.blocks.table
                table[block] = table[block] & LENGTH | IS_READY
            words[mine] += 1
            words[COUNT] = length + 1
            words[TAIL] += 1
            words[MOVING] = 0
        except BaseException:
            if code != OWN:
                self._mend_own()
            raise
        finally:
            if code != OWN:
                self.unlock(self.put_pointer)
        if words[WANT_ITEM]:
            self.ring(WANT_ITEM, count)
        return 1

    def _move(self, place: int, length: int, rung: int) -> None:
        order = self.order
        self.words[MOVING] = length << 32 | rung + 1
        order[place + 1 : length + 1] = order[place:length]
        order[place] = rung

    def _place(self, key: float, rank: Any, packed: bytes, length: int) -> int:
        """How many rungs are above the new one: they are lower, or were there before it. By bisection."""
        order, keys, infos = self.order, self.keys, self.infos
        low, high = 0, length
        while low < high:
            middle = (low + high) >> 1
            rung = order[middle]
            exact = not infos[rung] >> 8 & 0xFFFFFF
            if exact and not packed:
                less = key < keys[rung]
            else:
                less = bool(rank < (keys[rung] if exact else self._rank(rung)))
            if less:
                low = middle + 1
            else:
                high = middle
        return low

    def _rank(self, rung: int) -> Any:
        name = rung, self.turns[rung]
        known = self._ranks
        found = known.get(name)
        if found is None:
            at = rung * self.cell
            found = rank_of((pickle.loads(self.cells[at : at + (self.infos[rung] >> 8 & 0xFFFFFF)]), None))
            known[name] = found
            if len(known) > _KNOWN:
                known.popitem(last=False)
        return found

    # ------------------------------------------------------------------------------------------------------------ get

    def pop(self) -> Taken | None:
        """Take the next item; None when there is none."""
        found = self.pop_many(1)
        return found[0] if found else None

    def pop_many(self, n: int) -> list[Taken]:
        """Take what is there, `n` items at most."""
        words, table = self.words, self.blocks.table
        mine = (self.segment.hand or self.join()) + H_TAKEN
        found: list[Taken] = []
        code = 0
        try:
            code = self.trylock(self.get_pointer)
            if code:
                self.enter(self.getting, code)
            length = words[COUNT]
            got = min(n, length)
            for place in range(length - 1, length - got - 1, -1):
                rung = self.order[place]
                info = self.infos[rung]
                at = rung * self.cell + (info >> 8 & 0xFFFFFF)
                data = self.cells[at : at + (info >> 32)].tobytes()
                if info & 255 == BLOCK:
                    block = _BLOCK.unpack_from(data)[0]
                    table[block] = table[block] & LENGTH | self.segment.hand << 32 | IS_READ
                found.append((info & 255, data, 0, 1))
            words[COUNT] = length - got
            words[HEAD] += got
            words[mine] += got
        except BaseException:
            if code != OWN:
                self._mend_own()
            raise
        finally:
            if code != OWN:
                self.unlock(self.get_pointer)
        if got and words[WANT_ROOM]:
            self.ring(WANT_ROOM, got)
        return found

    # ----------------------------------------------------------------------------------------------------------- mend

    def _mend_own(self) -> None:
        """After Ctrl-C in the middle, or what a comparison raised."""
        if self.putting.owner() == threading.get_native_id():
            self.mend_both()

    def mend_both(self) -> None:
        words = self.words
        moving = words[MOVING]
        length = words[COUNT]
        if moving and moving >> 32 == length:  # else COUNT was stored after it
            rung = (moving & 0xFFFFFFFF) - 1
            used = [each for each in dict.fromkeys(self.order[: length + 1].tolist()) if each != rung]
            self.order[: length + 1] = memoryview(b"".join(map(_BLOCK.pack, [*used, rung]))).cast("Q")
        words[MOVING] = 0
        difference = length - (words[TAIL] - words[HEAD])
        if difference > 0:
            words[TAIL] += difference
        else:
            words[HEAD] -= difference
        freed = self._mend_blocks(length)
        self.note_put(freed)
        self.note_taken()

    def _mend_blocks(self, length: int) -> int:
        named = set()
        for rung in self.order[:length].tolist():
            info = self.infos[rung]
            if info & 255 == BLOCK:
                named.add(_BLOCK.unpack_from(self.cells, rung * self.cell + (info >> 8 & 0xFFFFFF))[0])
        table, freed = self.blocks.table, 0
        for block, state, _ in self.blocks.all():
            if block in named:
                table[block] = table[block] & LENGTH | IS_READY
            elif state == READY:
                self.blocks.free(block)
                freed += 1
        return freed

    def length(self) -> int:
        """Items in it."""
        return int(self.words[COUNT])


def _ranked(item: Any) -> tuple[float, Any, bytes]:
    """(the key, what is compared, and that pickled: b"" when the key says all)."""
    rank = rank_of(item)
    if type(rank) in _NUMBERS:
        try:
            key = float(rank)
        except OverflowError:
            pass
        else:
            if key == rank:
                return key, key, b""
    value = getattr(rank, "value", rank)
    try:
        return 0.0, rank, pickling.dumps(value)
    except pickling.Raised as error:
        raise pickling.not_picklable(value, "priority", error) from error
