"""The memory of a Shared: a log of facts in two halves, and this process's index of it.

    half 0 | record | record | ... |      words: ACTIVE (its lowest bit says which half), and of each half
    half 1 | record | record | ... |      END, where its records end, and FIRST, the version before its first one

A record is length, version, sizes, and then key, writer and value; without a value it says that the key was deleted.
Every process reads on from where it was and keeps a dict of its own: a read that finds ACTIVE and END as they were
costs two loads and a lookup.

Invariants:
  1. A record counts from the store of END that covers it. Several records that are covered by one store count together.
  2. What lies before END is never changed while its half is the active one. A reader without the lock copies first and
     looks whether ACTIVE is what it was second: the half is written to again only after ACTIVE has moved on.
  3. When the half is full, or mostly out of date, the live records and the new ones are written to the other half, then
     its FIRST and END, and then ACTIVE, in one store. Versions go on.
  4. Writers hold the mutex. So a kill at any instant leaves all of a write, or nothing of it.
Where stores may be seen in another order than they were made in (not x86), readers take the mutex too.
"""

from __future__ import annotations

import contextlib
import platform
import struct
import threading
from collections.abc import Iterable
from pickle import loads
from typing import Any, NamedTuple

from duodao.channel.frozen import freeze
from duodao.channel.segment import BODY, Segment
from duodao.sync import robust

LOCK_AT = 128
ACTIVE, END, FIRST = 32, 33, 35
HALF, HOLDER = 40, 41
HEAD = struct.Struct("<QQIIIi")
"""Bytes of the record, version, bytes of key, of the writer's name, of value; 1 for a deletion."""
ORDERED = platform.machine() in ("x86_64", "AMD64")
_LEAST = 256 << 10
"""Bytes. A half that is fuller than this, and than four times what is live in it, is begun anew."""
_UNREAD = object()


class Fact:
    """What is known of a key. value: read and frozen when it is first asked for."""

    __slots__ = ("at", "length", "size", "turn", "value", "value_at", "version", "writer")

    def __init__(self, turn: int, at: int, length: int, version: int, writer: str, value_at: int, size: int) -> None:
        self.turn = turn
        self.at = at
        self.length = length
        self.version = version
        self.writer = writer
        self.value_at = value_at
        self.size = size
        self.value: Any = _UNREAD


class Write(NamedTuple):
    """A key and its new value, pickled. value None: it is deleted. frozen: the value, when it is at hand."""

    key: Any
    packed_key: bytes
    value: bytes | None
    frozen: Any = _UNREAD


class Facts:
    """This process's side of the log. One per process and segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.words: Any = segment.words
        self.mutex = robust.Mutex(segment.offset + LOCK_AT)
        self.size: int = self.words[HALF]
        self.halves = [segment.memory[BODY + half * self.size : BODY + (half + 1) * self.size] for half in (0, 1)]
        self.forget()

    def forget(self) -> None:
        """Know nothing: a new one, and a forked copy, for another thread may have been at it."""
        self.reading = threading.RLock()  # a signal handler may read while its thread does
        self.known: dict[Any, Fact] = {}
        self.deleted: dict[Any, Fact] = {}
        self.turn = -1
        self.end = 0
        self.live = 0
        self.version = 0

    @staticmethod
    def bytes_for(size: int) -> int:
        """Bytes of the segment for halves of so many."""
        return BODY + 2 * size

    # ------------------------------------------------------------------------------------------------------- reading

    def catch_up(self) -> None:
        """Know all that counts now."""
        words = self.words
        turn = words[ACTIVE]
        if turn == self.turn and words[END + (turn & 1)] == self.end:
            return
        with self.reading, self._steady():
            while not self._read_on():
                pass

    def _steady(self) -> Any:
        """Where loads and stores may be seen out of order: nobody writes."""
        if ORDERED or self.mutex.owner() == threading.get_native_id():
            return contextlib.nullcontext()
        return self.mutex.held()

    def _read_on(self) -> bool:
        words = self.words
        turn = words[ACTIVE]
        half = turn & 1
        end = words[END + half]
        anew = turn != self.turn
        at = 0 if anew else self.end
        first = words[FIRST + half]
        memory = self.halves[half]
        found = []
        while at < end:
            length, version, key_size, name_size, size, gone = HEAD.unpack(memory[at : at + HEAD.size])
            if length < HEAD.size or at + length > end:
                return False  # it is being written to again
            start = at + HEAD.size
            names = start + key_size
            value_at = names + name_size
            key, name = bytes(memory[start:names]), bytes(memory[names:value_at])
            found.append((key, name, Fact(turn, at, length, version, "", value_at, size), gone))
            at += length
        if words[ACTIVE] != turn:
            return False
        if anew:
            self.known, self.deleted, self.live, self.version = {}, {}, 0, first
        for packed, name, fact, gone in found:
            key = loads(packed)
            fact.writer = name.decode()
            self.version = fact.version
            before = self.known.pop(key, None) if gone else self.known.get(key)
            if before is not None:
                self.live -= before.length
            if gone:
                self.deleted[key] = fact
                continue
            self.deleted.pop(key, None)
            self.known[key] = fact
            self.live += fact.length
        self.turn, self.end = turn, end
        return True

    def find(self, key: Any) -> Fact | None:
        """What counts for a key now, its value read."""
        while True:
            self.catch_up()
            fact = self.known.get(key)
            if fact is None or fact.value is not _UNREAD or self._load(fact):
                return fact

    def _load(self, fact: Fact) -> bool:
        """Read the value; False when it is there no more."""
        with self._steady():
            data = bytes(self.halves[fact.turn & 1][fact.value_at : fact.value_at + fact.size])
            if self.words[ACTIVE] != fact.turn:
                return False
        fact.value = freeze(loads(data))
        return True

    def all(self) -> dict[Any, Fact]:
        """What counts at one instant, values read."""
        while True:
            self.catch_up()
            with self.reading:
                found = dict(self.known)
            if all(fact.value is not _UNREAD or self._load(fact) for fact in found.values()):
                return found

    # ------------------------------------------------------------------------------------------------------- writing

    def write(self, writes: Iterable[Write], writer: str) -> int:
        """Let these count together, and return the version of the last. The mutex is held, and all is known.

        MemoryError: they don't fit, and nothing was written.
        """
        name = writer.encode()[:200]
        records = []
        version = self.version
        total = 0
        for each in writes:
            version += 1
            size = len(each.value or b"")
            length = HEAD.size + len(each.packed_key) + len(name) + size + 7 & ~7
            head = HEAD.pack(length, version, len(each.packed_key), len(name), size, each.value is None)
            records.append((length, head, each))
            total += length
        anew = self.end + total > self.size or (self.end > _LEAST and self.end > 4 * self.live)
        half, at = self._begin_anew({each.key for _, _, each in records}, total) if anew else (self.turn & 1, self.end)
        memory = self.halves[half]
        for length, head, each in records:
            start = at
            for part in (head, each.packed_key, name, each.value or b""):
                memory[start : start + len(part)] = part
                start += len(part)
            at += length
        if anew:
            self._change_over(half, at)
        else:
            self.words[END + half] = at
            self.catch_up()
        for _, _, each in records:
            fact = self.known.get(each.key)
            if fact is not None and each.frozen is not _UNREAD and fact.version > version - len(records):
                fact.value = each.frozen
        return version

    def _begin_anew(self, but: set[Any], more: int) -> tuple[int, int]:
        """Copy what is live, `but` those keys, to the other half. Which one that is, and where it goes on."""
        old, new = self.turn & 1, self.turn + 1 & 1
        live = [fact for key, fact in self.known.items() if key not in but]
        total = sum(fact.length for fact in live)
        if total + more > self.size:
            raise MemoryError(
                f"no room: {total} of {self.size} bytes are in use, and {more} more don't fit. Delete keys, or make "
                "the Shared with a larger size="
            )
        at = 0
        for fact in live:
            self.halves[new][at : at + fact.length] = self.halves[old][fact.at : fact.at + fact.length]
            at += fact.length
        return new, at

    def _change_over(self, half: int, end: int) -> None:
        """That half is the one that counts, from here on."""
        words, before = self.words, self.known
        words[FIRST + half] = self.version
        words[END + half] = end
        words[ACTIVE] = self.turn + 1
        self.catch_up()
        for key, fact in before.items():
            now = self.known.get(key)
            if now is not None and now.version == fact.version:
                now.value = fact.value
