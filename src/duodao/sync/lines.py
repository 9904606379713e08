"""The lines of the table of who waits for whom: how they lie in the arena, and how they are written and read.

| mutex, held by the waiting thread | who, number, for what, renewed, told, since | name, thread, stack (JSON) |
0                                   64                                            128                       2048
"""

from __future__ import annotations

import _thread
import json
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from duodao import arena
from duodao.sync import graph, threads
from duodao.sync.robust import ALL, Mutex, Word, native

LINES = 1000
"""Threads of all processes that may wait for shared locks at once."""
LOCK, THREAD, ANYONE, TURN = 1, 2, 3, 4
"""What is waited for: the mutex at an offset; what a thread does; what anyone may do; to be told so (`turns.py`)."""
LINES_AT = arena.COMMON_AT + 4096
SIZE = 2048
TID = 0x3FFFFFFF
_TIMED = 0x100
HEAD = 128
TEXT = SIZE - HEAD
# The 8-byte words of a line, from byte 64 on
WHO, NUMBER, TARGET, KIND, ROUND, SIGNAL, SINCE, CLAIMS = range(8)


class Line:
    """A line of the table that this thread has. signal: a word for whoever wants to wake it; free: give it back."""

    __slots__ = ("free", "fresh", "index", "mutex", "signal", "words")

    def __init__(self, index: int) -> None:
        offset = LINES_AT + index * SIZE
        self.index = index
        self.mutex = Mutex(offset)
        self.words = arena.get().view(offset + 64, 64).cast("Q")
        self.fresh = Word(offset + 64 + 8 * ROUND)
        self.signal = Word(offset + 64 + 8 * SIGNAL)
        self.free = native().leave(self.mutex.pointer)

    def write(self, kind: int, target: int, name: str, *, timed: bool, round: int = 0) -> None:
        """Say what this thread waits for. round: which of its rounds, where what is waited for has such."""
        words = self.words
        words[NUMBER] = 0
        words[WHO] = threads.ME.word
        words[TARGET] = target
        words[KIND] = kind | (_TIMED if timed else 0)
        words[ROUND] = round
        words[SIGNAL] = 0
        words[SINCE] = time.monotonic_ns()
        words[CLAIMS] += 1
        text = _text(name)
        offset = LINES_AT + self.index * SIZE + HEAD
        arena.get().view(offset, 2 + len(text))[:] = struct.pack("H", len(text)) + text
        words[NUMBER] = words[CLAIMS] << 12 | self.index

    def told(self) -> int:
        """What `tell` told this wait, 0 for nothing yet."""
        value = self.signal.value
        return value & 3 if value >> 2 == tag(self.words[NUMBER]) else 0

    def renew(self, target: int) -> None:
        """The summary holds at this instant."""
        self.words[TARGET] = target
        self.fresh.value += 1
        self.fresh.wake(ALL)

    def erase(self) -> None:
        """This thread runs, or gives way: nobody walks over the line any more."""
        self.words[NUMBER] = 0


class Entry:
    """A line as somebody else reads it; what `graph.FarWait` asks for."""

    __slots__ = (
        "_name", "fresh", "index", "kind", "number", "on", "pid", "since", "stack", "target", "thread", "tid", "timed",
    )  # fmt: skip

    def __init__(self, index: int, words: Sequence[int], text: Any) -> None:
        self.index = index
        self.pid, self.tid = words[WHO] >> 32, words[WHO] & 0xFFFFFFFF
        self.number = words[NUMBER]
        self.target = words[TARGET]
        self.kind = words[KIND] & 0xFF
        self.timed = bool(words[KIND] & _TIMED)
        self.since = words[SINCE]
        self.fresh = words[ROUND] & 0xFFFFFFFF if self.kind == THREAD else None
        self._name, self.thread, frames = text
        self.stack: graph.Stack = tuple((file, line, function) for file, line, function in frames)
        self.on: graph.On = self

    @property
    def is_of_cell(self) -> bool:
        """Is `target` an offset?"""
        return self.kind != THREAD

    def resolvers(self) -> Sequence[graph.Unit] | None:
        """Who could end the wait."""
        if self.kind in {ANYONE, TURN}:
            return None
        tid = owner_of(self.target) if self.kind == LOCK else self.target
        return (threads.unit_of(tid),) if tid else ()

    def describe(self) -> str:
        """What is waited for."""
        return str(self._name)


class Shared:
    """A base for what can be waited for between processes: its waits stand in the table by themselves."""

    __slots__ = ()
    _duodao_handle = True  # channel/frozen.py
    reach = "program"


def tag(number: int) -> int:
    """The part of a wait's number that stands beside what it was told."""
    return number & 0x3FFFFFFF


def owner_of(offset: int) -> int:
    """The native number of the thread that has the mutex at this offset; 0 for nobody."""
    return int(arena.get().view(offset, 4).cast("I")[0]) & TID


def _text(name: str) -> bytes:
    """Name, thread and stack as JSON, without the outermost frames that there is no room for."""
    ident = _thread.get_ident()
    frames = [list(frame) for frame in graph.stack_of(ident)]
    known = threading._active.get(ident)  # type: ignore[attr-defined]  # current_thread() would invent one
    thread = "" if known is None else known.name
    while True:
        text = json.dumps([name[:200], thread[:100], frames]).encode()
        if len(text) <= TEXT - 2:
            return text
        if not frames:
            return json.dumps([name[:50], thread[:50], []]).encode()
        del frames[0]
