"""The first-in-first-out order of a shared queue: a ring of records, and a lock for each end of it.

    places   a word per item number, modulo maxsize: where the record that holds the item begins
    ring     | word | data | word | data | ...      word = kind | items << 8 | bytes of data << 32

(a LIST has the number of its first item in front of its data)

Items are numbered as they are put. HEAD is the number of the next one to take, TAIL that of the next one to put. Places
in the ring are counted on for ever, like the numbers; modulo its size they say where a record is. None lies across the
end. Kinds: ONE pickled item; LIST, one pickle of several plain ones; BLOCK, the name of a block that holds the pickle.

Invariants:
  1. Items HEAD to TAIL - 1 are in the queue, no others; each of their places names a whole record. The one store to
     TAIL puts a record, the one store to HEAD takes it: there is no state in between.
  2. What lies before the record of item HEAD is free (all, when HEAD = TAIL). Writers read HEAD without the readers'
     lock: it only grows, so what they see free is free. Readers copy a record before they store HEAD.
  3. READY blocks are those that items HEAD to TAIL - 1 name. A writer publishes a block before it stores TAIL, a reader
     takes it before it stores HEAD: who mends the one frees READY blocks that no item names, who mends the other makes
     those READY that an item names.
  4. WRITE_END is a hint, stored before TAIL: who mends finds it again from the last record.
  5. There is always room for BLOCK records up to maxsize: what doesn't fit in the ring goes into a block.

Two locks are right where stores are seen in their order (x86). Elsewhere the ends share one.
"""

from __future__ import annotations

import platform
import struct
import threading
from typing import Any, ClassVar

from duodao import arena
from duodao.channel.blocks import IS_READ, IS_READY, LENGTH, READ, READY, Blocks
from duodao.channel.index import (
    H_PUT,
    H_TAKEN,
    HEAD,
    SHUT,
    SPACE,
    TAIL,
    WANT_ITEM,
    WANT_ROOM,
    WRITE_END,
    Index,
)  # fmt: skip
from duodao.channel.segment import Segment
from duodao.sync.robust import OWN

ONE, LIST, BLOCK = 0, 1, 2
INLINE = 32768
"""Bytes. What is longer goes into a block, for it would be copied under the lock."""
ORDERED = platform.machine() in ("x86_64", "AMD64")
BLOCK_DATA = struct.Struct("<QQ")
"""The data of a BLOCK record: the block, the size of the pickle in it."""
_BLOCK_RECORD = 8 + BLOCK_DATA.size
_MIN, _MAX, _EACH = 1 << 20, 256 << 20, 512

Taken = tuple[int, Any, int, int]
"""What was taken: kind, data (of a LIST with its place in front), from which item of the record on, how many."""


def ring_size(maxsize: int) -> int:
    """Bytes of ring for so many items."""
    return max(_MIN, min(_MAX, maxsize * _EACH)) & ~7


class Ring(Index):
    """The index of a fifo queue. `at`: where in the segment it has `bytes_for(maxsize)` bytes."""

    one_lock: ClassVar[bool] = not ORDERED

    def __init__(self, segment: Segment, blocks: Blocks, name: str, at: int) -> None:
        super().__init__(segment, blocks, name, one_lock=self.one_lock)
        self.size: int = self.words[SPACE]
        end = at + self.maxsize * 8
        self.places: Any = segment.memory[at:end].cast("Q")
        self.heads: Any = segment.memory[end : end + self.size].cast("Q")
        self.whole = arena.get().whole
        self.base = segment.offset + end + 8  # the data of the record that begins at 0

    @staticmethod
    def bytes_for(maxsize: int) -> int:
        """Bytes of the segment."""
        return maxsize * 8 + ring_size(maxsize)

    def push(self, data: bytes, kind: int = ONE, count: int = 1, item: Any = None) -> int:  # noqa: ARG002  # as Ladder
        """Put a record of `count` items: 1 done, 0 there is no room for so many items, -1 none for so many bytes.

        The first 8 bytes of a LIST are for us. ShutDown: it was.
        """
        words = self.words
        size = len(data)
        mine = (self.segment.hand or self.join()) + H_PUT
        code = 0
        try:
            code = self.trylock(self.put_pointer)
            if code:
                self.enter(self.putting, code)
            if words[SHUT]:
                raise self.shut_down()
            tail, head = words[TAIL], words[HEAD]
            length = tail - head + count
            if length > self.maxsize:
                return 0
            begin = words[WRITE_END]
            ring_size = self.size
            if tail == head:
                first = begin = -(-begin // ring_size) * ring_size  # from its start: what is in the caches
            else:
                first = self.places[head % self.maxsize]
            here = begin % ring_size
            need = size + 15 & ~7
            if here + need > ring_size:
                begin += ring_size - here
                here = 0
            end = begin + need
            if kind != BLOCK and first + ring_size - end < (self.maxsize - length + 2) * _BLOCK_RECORD:
                return -1
            self.heads[here >> 3] = kind | count << 8 | size << 32
            at = self.base + here
            self.whole[at : at + size] = data
            if kind == LIST:
                self.heads[(here >> 3) + 1] = tail
                self._place(tail, count, begin)
            else:
                self.places[tail % self.maxsize] = begin
                if kind == BLOCK:
                    block, table = self.heads[(here >> 3) + 1], self.blocks.table
                    table[block] = table[block] & LENGTH | IS_READY
            words[mine] += count
            words[WRITE_END] = end
            words[TAIL] = tail + count
        finally:
            if code != OWN:
                self.unlock(self.put_pointer)
        if words[WANT_ITEM]:
            self.ring(WANT_ITEM, count)
        return 1

    def _place(self, tail: int, count: int, begin: int) -> None:
        start = tail % self.maxsize
        before_end = min(count, self.maxsize - start)
        self.places[start : start + before_end] = _same(begin, before_end)
        self.places[: count - before_end] = _same(begin, count - before_end)

    def pop(self) -> Taken | None:
        """Take the next item; None when there is none."""
        words = self.words
        if words[HEAD] == words[TAIL]:  # HEAD first, for it is never ahead: there was none
            return None
        mine = (self.segment.hand or self.join()) + H_TAKEN
        first = 0
        code = 0
        try:
            code = self.trylock(self.get_pointer)
            if code:
                self.enter(self.getting, code)
            head = words[HEAD]
            if head == words[TAIL]:
                return None
            begin = self.places[head % self.maxsize]
            here = begin % self.size
            word = self.heads[here >> 3]
            kind = word & 255
            unpacked = self.unpacked
            if kind == LIST and unpacked[0] == begin:
                first = head - self.heads[(here >> 3) + 1]
                data: Any = unpacked
            else:
                at = self.base + here
                data = self.whole[at : at + (word >> 32)]
                if kind == LIST:
                    first = head - self.heads[(here >> 3) + 1]
                    data = begin, data
            if kind == BLOCK:
                block, table = self.heads[(here >> 3) + 1], self.blocks.table
                table[block] = table[block] & LENGTH | self.segment.hand << 32 | IS_READ
            words[HEAD] = head + 1
            words[mine] += 1
        finally:
            if code != OWN:
                self.unlock(self.get_pointer)
        if words[WANT_ROOM]:
            self.ring(WANT_ROOM, 1)
        return kind, data, first, 1

    def pop_many(self, n: int) -> list[Taken]:
        """Take what is there, `n` items at most."""
        words, table = self.words, self.blocks.table
        mine = (self.segment.hand or self.join()) + H_TAKEN
        found: list[Taken] = []
        got = 0
        code = 0
        try:
            code = self.trylock(self.get_pointer)
            if code:
                self.enter(self.getting, code)
            head = words[HEAD]
            n = min(n, words[TAIL] - head)
            while got < n:
                begin = self.places[(head + got) % self.maxsize]
                here = begin % self.size
                word = self.heads[here >> 3]
                kind = word & 255
                at = self.base + here
                data: Any = self.whole[at : at + (word >> 32)]
                first, count = 0, 1
                if kind == LIST:
                    first = head + got - self.heads[(here >> 3) + 1]
                    count = min((word >> 8 & 0xFFFFFF) - first, n - got)
                    data = begin, data
                elif kind == BLOCK:
                    block = self.heads[(here >> 3) + 1]
                    table[block] = table[block] & LENGTH | self.segment.hand << 32 | IS_READ
                found.append((kind, data, first, count))
                got += count
            words[HEAD] = head + got
            words[mine] += got
        except BaseException:
            if code != OWN and self.getting.owner() == threading.get_native_id():
                self.mend_get()  # Ctrl-C: what was taken so far is the queue's
            raise
        finally:
            if code != OWN:
                self.unlock(self.get_pointer)
        if got and words[WANT_ROOM]:
            self.ring(WANT_ROOM, got)
        return found

    def mend_put(self) -> None:
        words = self.words
        tail = words[TAIL]
        if tail:
            last = self.places[(tail - 1) % self.maxsize]
            words[WRITE_END] = last + ((self.heads[last % self.size >> 3] >> 32) + 15 & ~7)
        named = self._named(words[HEAD])
        freed = 0
        for block, state, _ in self.blocks.all():
            if state == READY and block not in named:
                self.blocks.free(block)
                freed += 1
        self.note_put(freed)

    def mend_get(self) -> None:
        named, table = self._named(self.words[HEAD]), self.blocks.table
        for block, state, _ in self.blocks.all():
            if state == READ and block in named:
                table[block] = table[block] & LENGTH | IS_READY
        self.note_taken()

    def _named(self, head: int) -> set[int]:
        """The blocks that items of the queue name."""
        found = set()
        for number in range(head, self.words[TAIL]):
            here = self.places[number % self.maxsize] % self.size
            if self.heads[here >> 3] & 255 == BLOCK:
                found.add(self.heads[(here >> 3) + 1])
        return found

    def length(self) -> int:
        """Items in it. HEAD first: TAIL is never behind it."""
        head = self.words[HEAD]
        return int(min(max(0, self.words[TAIL] - head), self.maxsize))


def _same(number: int, count: int) -> Any:
    return memoryview(number.to_bytes(8, "little") * count).cast("Q")
