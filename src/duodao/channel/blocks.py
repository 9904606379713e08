"""Room in a segment for what is too large to be copied under a lock: blocks of whole granules, first fit.

    map    a byte per granule, not 0 = taken: what a search looks through
    table  a word per granule: at a block's first one its length, its hand and its state. The truth

A block is written and read by one process at a time, without a lock:

    allocate ──► WRITTEN by a hand ──► publish ──► READY, in the queue ──► take ──► READ by a hand ──► free

Invariants:
  1. A block exists from the store of its word in the table to the store of 0 there, both under the mutex. `map` is made
     anew from the table when a holder of the mutex died: a granule that it had marked, without a word, is free again.
  2. READY blocks belong to the queue. WRITTEN and READ ones to their hand, and are freed for it when its owner dies.
     Who changes a block between READY and a hand's holds the queue's lock for that end, and mends it if he dies there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from duodao import arena
from duodao.errors import UsageError
from duodao.sync import robust

GRANULES = 8192
GRANULE = 16384
AREA = GRANULES * GRANULE
WRITTEN, READY, READ = 1, 2, 3

_MAP_AT = robust.SIZE
_TABLE_AT = _MAP_AT + GRANULES
_AREA_AT = -(-(_TABLE_AT + GRANULES * 8) // GRANULE) * GRANULE
BYTES = _AREA_AT + AREA
"""Bytes of the segment that the blocks take."""
LENGTH = (1 << 32) - 1
IS_READY = READY << 60
IS_READ = READ << 60
"""A word of the table: granules | hand << 32 | state << 60. To publish is `word & LENGTH | IS_READY`, to take is
`word & LENGTH | hand << 32 | IS_READ`: stores that the indexes do themselves, for a call is where a signal comes in."""
_STATE = 60


class Blocks:
    """The blocks at `offset` of the arena. A block is named by its first granule."""

    def __init__(self, offset: int) -> None:
        memory = arena.get().view(offset, BYTES)
        self.mutex = robust.Mutex(offset)
        self.map: Any = memory[_MAP_AT:_TABLE_AT]
        self.table: Any = memory[_TABLE_AT : _TABLE_AT + GRANULES * 8].cast("Q")
        self.area: Any = memory[_AREA_AT:BYTES]

    def init(self) -> None:
        """Set them up, all free, before others know them."""
        self.map[:] = bytes(GRANULES)
        self.table.cast("B")[:] = bytes(GRANULES * 8)
        self.mutex.init()

    def allocate(self, size: int, hand: int) -> int | None:
        """A block of `size` bytes, WRITTEN by `hand`; None while there is no such room.

        UsageError: it is larger than all the memory of the queue.
        """
        if size > AREA:
            raise UsageError(
                f"an item of {size} bytes is larger than all of the queue's memory, {AREA} bytes: send it in parts, or "
                "put the path of a file"
            )
        wanted = -(-size // GRANULE)
        with self.mutex.held() as undone:
            if undone:
                self._mend()
            block = bytes(self.map).find(bytes(wanted))
            if block >= 0:
                self.map[block : block + wanted] = b"\1" * wanted
                self.table[block] = wanted | hand << 32 | WRITTEN << _STATE
            self.mutex.done()
        return None if block < 0 else block

    def free(self, block: int) -> None:
        """Give it back, and with it what it holds."""
        with self.mutex.held() as undone:
            if undone:
                self._mend()
            granules = self.table[block] & LENGTH
            self.table[block] = 0
            self.map[block : block + granules] = bytes(granules)
            self.mutex.done()

    def _mend(self) -> None:
        """A holder of the mutex stopped half-way: make the map from the table."""
        marks = bytearray(GRANULES)
        block, table = 0, self.table
        while block < GRANULES:
            granules = table[block] & LENGTH
            marks[block : block + granules] = b"\1" * granules
            block += granules or 1
        self.map[:] = marks

    def state(self, block: int) -> tuple[int, int]:
        """(WRITTEN, READY or READ, its hand)."""
        word = self.table[block]
        return word >> _STATE, word >> 32 & 0xFFFFFFF

    def of(self, hand: int) -> list[tuple[int, int]]:
        """(block, WRITTEN or READ) of those that are this hand's."""
        return [(block, state) for block, state, whose in self.all() if whose == hand]

    def all(self) -> Iterator[tuple[int, int, int]]:
        """(block, state, hand) of each."""
        for block, word in enumerate(self.table.tolist()):
            if word:
                yield block, word >> _STATE, word >> 32 & 0xFFFFFFF

    def write(self, block: int, pieces: Iterable[Any]) -> None:
        """Copy the pieces in, one after the other."""
        at = block * GRANULE
        for piece in pieces:
            end = at + len(piece)
            self.area[at:end] = piece
            at = end

    def view(self, block: int, size: int) -> memoryview:
        """Its first `size` bytes."""
        at = block * GRANULE
        found: memoryview = self.area[at : at + size]
        return found
