"""Who waits for whom between processes: a table in the arena, in which every blocked wait for a shared lock stands.

`graph.py` walks it through `graph.FAR`: from a wait of this process to the thread that holds the lock, to what that one
waits for by its line of the table, and so on, until the walk comes back.

    line: | mutex, held by the waiting thread | who, number, for what, timed, renewed | name, stack (JSON) |

Invariants:
  1. A line is valid while the thread that wrote it holds its mutex: lines of killed threads vanish with them, and are
     taken again. No count of waiters, and no "is that pid alive", is trusted.
  2. `number` is 0 while a line is being written, and never the same for two waits.
  3. One process decides at a time, under the guard mutex, and takes the line of a wait that gives way out before it
     lets go of the guard: a circle that two processes see has one victim. Who doesn't have the guard, and stands in the
     table, sees no other process: such a walk finds circles of this process only.
  4. A thread that holds a shared lock and waits for something local writes a summary: the thread at the end of its
     chain of local waits. It renews that every RENEW seconds, and wakes who waits for the renewal.
"""

from __future__ import annotations

import _thread
import json
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from duodao import arena
from duodao.errors import TableFull
from duodao.sync import graph, threads
from duodao.sync.robust import ALL, DEAD, SLICE, Mutex, Word, native

LINES = 1000
"""Threads of all processes that may wait for shared locks at once."""
RENEW = 0.05
LOCK, THREAD, OTHER = 1, 2, 3
"""What is waited for: the mutex at an offset, the end of a thread, something that anyone may bring about."""
_TIMED = 0x100
_SIZE = 2048
_MAGIC = 0x64756F_64616F_01
_GUARD_AT = arena.COMMON_AT + 64
_MADE_AT = arena.COMMON_AT + 128
_LINES_AT = arena.COMMON_AT + 4096
_BATCH = 25  # lines that are set up in one go
_TID = 0x3FFFFFFF
_HEAD = 128
_TEXT = _SIZE - _HEAD
# The 8-byte words of a line, from byte 64 on
_WHO, _NUMBER, _TARGET, _KIND, _FRESH, _SIGNAL, _SINCE, _CLAIMS = range(8)


class Line:
    """A line of the table that this thread has. signal: a word for whoever wants to wake it; free: give it back."""

    __slots__ = ("free", "fresh", "index", "mutex", "signal", "words")

    def __init__(self, index: int) -> None:
        offset = _LINES_AT + index * _SIZE
        self.index = index
        self.mutex = Mutex(offset)
        self.words = arena.get().view(offset + 64, 64).cast("Q")
        self.fresh = Word(offset + 64 + 8 * _FRESH)
        self.signal = Word(offset + 64 + 8 * _SIGNAL)
        self.free = native().leave(self.mutex.pointer)

    def write(self, kind: int, target: int, name: str, *, timed: bool) -> None:
        """Say what this thread waits for."""
        words = self.words
        words[_NUMBER] = 0
        words[_WHO] = threads.ME.word
        words[_TARGET] = target
        words[_KIND] = kind | (_TIMED if timed else 0)
        words[_SIGNAL] = 0
        words[_SINCE] = time.monotonic_ns()
        words[_CLAIMS] += 1
        text = _text(name)
        offset = _LINES_AT + self.index * _SIZE + _HEAD
        arena.get().view(offset, 2 + len(text))[:] = struct.pack("H", len(text)) + text
        words[_NUMBER] = words[_CLAIMS] << 12 | self.index

    def renew(self, target: int) -> None:
        """The summary holds at this instant."""
        self.words[_TARGET] = target
        self.fresh.value += 1
        self.fresh.wake(ALL)

    def erase(self) -> None:
        """This thread runs, or gives way: nobody walks over the line any more."""
        self.words[_NUMBER] = 0


class Entry:
    """A line as somebody else reads it; what `graph.FarWait` asks for."""

    __slots__ = (
        "_name", "fresh", "index", "kind", "number", "on", "pid", "since", "stack", "target", "thread", "tid", "timed",
    )  # fmt: skip

    def __init__(self, index: int, words: Sequence[int], text: Any) -> None:
        self.index = index
        self.pid, self.tid = words[_WHO] >> 32, words[_WHO] & 0xFFFFFFFF
        self.number = words[_NUMBER]
        self.target = words[_TARGET]
        self.kind = words[_KIND] & 0xFF
        self.timed = bool(words[_KIND] & _TIMED)
        self.since = words[_SINCE]
        self.fresh = words[_FRESH] & 0xFFFFFFFF if self.kind == THREAD else None
        self._name, self.thread, frames = text
        self.stack: graph.Stack = tuple((file, line, function) for file, line, function in frames)
        self.on: graph.On = self

    @property
    def is_of_cell(self) -> bool:
        """Is `target` an offset?"""
        return self.kind != THREAD

    def resolvers(self) -> Sequence[graph.Unit] | None:
        """Who could end the wait."""
        if self.kind == OTHER:
            return None
        tid = owner_of(self.target) if self.kind == LOCK else self.target
        return (threads.unit_of(tid),) if tid else ()

    def describe(self) -> str:
        """What is waited for."""
        return str(self._name)


class Table:
    """The table, as this process sees it; `graph.FAR`."""

    def __init__(self) -> None:
        self.memory = memory = arena.get()
        self._guard = Mutex(_GUARD_AT)
        self._made = memory.view(_MADE_AT, 4).cast("I")
        self._all = memory.view(_LINES_AT, LINES * _SIZE).cast("I")
        self._lines: dict[int, Line] = {}
        self._blind: set[int] = set()  # threads whose walk stays in this process: invariant 3
        self.locks: dict[int, Mutex] = {}  # by the id of their handle: what threads of this process may hold
        magic = memory.view(arena.COMMON_AT, 8).cast("Q")
        with memory.alone():
            if magic[0] != _MAGIC:
                self._guard.init()
                magic[0] = _MAGIC

    # Writing

    def claim(self) -> Line:
        """A line of this thread's own. TableFull when all LINES are taken."""
        while True:
            made = self._made[0]
            for index in range(made):
                if self._all[index * (_SIZE // 4)] & _TID == 0 and (line := self._take(index)) is not None:
                    return line
            with self.memory.alone():
                if self._made[0] == made:
                    if made >= LINES:
                        raise TableFull(
                            f"{LINES} threads wait for shared locks already, and there is room for no more: "
                            "let fewer tasks share, or let them wait with a time-out and try again"
                        )
                    for index in range(made, made + _BATCH):
                        Line(index).mutex.init()
                    self._made[0] = made + _BATCH

    def _take(self, index: int) -> Line | None:
        line = self._lines.get(index)
        if line is None:
            line = self._lines.setdefault(index, Line(index))
        try:
            code = line.mutex.trylock()
            if code == DEAD:
                line.mutex.consistent()
            if code not in {0, DEAD}:
                return None
            line.words[_NUMBER] = 0  # what its last owner waited for when it was killed
        except BaseException:
            line.mutex.let_go()
            raise
        return line

    @staticmethod
    def leave(line: Line, wait: graph.Wait | None = None) -> None:
        """Withdraw a wait, and give its line back, whatever interrupts that."""
        try:
            line.words[_NUMBER] = 0
            if wait is not None:
                graph.end(wait)
            line.free(None, None, None)
        except BaseException:
            line.words[_NUMBER] = 0
            if wait is not None:
                graph.end(wait)
            line.free(None, None, None)
            raise

    def begin(self, line: Line, who: int, on: graph.On, *, timed: bool) -> graph.Wait:
        """`graph.begin` for a wait that stands in the table. Deadlock as there; the line is erased then."""
        if not timed and self._is_stuck(on) and self._have_guard():
            try:
                return graph.begin(who, on, timed=False)
            except BaseException:
                line.erase()
                raise
            finally:
                self._guard.done()
                self._guard.unlock()
        self._blind.add(who)
        try:
            return graph.begin(who, on, timed=timed)
        finally:
            self._blind.discard(who)

    def check(self, line: Line, wait: graph.Wait) -> None:
        """`graph.check` for a wait that stands in the table. As `begin`."""
        if wait.timed or not self._is_stuck(wait.on) or not self._have_guard():
            return
        try:
            graph.check(wait)
        except BaseException:
            line.erase()
            raise
        finally:
            self._guard.done()
            self._guard.unlock()

    def _is_stuck(self, on: graph.On) -> bool:
        return any(
            graph.waiting(who) or (isinstance(who, graph.Far) and self.waits_of(who)) for who in on.resolvers() or ()
        )

    def _have_guard(self) -> bool:
        """Have the guard, or look again with the next slice: its owner may be stopped, or wait for a renewal."""
        try:
            code = self._guard.lock(SLICE)
            if code == DEAD:
                self._guard.consistent()
        except BaseException:
            self._guard.let_go()
            raise
        return code in {0, DEAD}

    # Reading: what `graph` asks for

    def entries(self) -> Iterator[Entry]:
        """Every wait that stands in the table now."""
        for index in range(self._made[0]):
            tid = self._all[index * (_SIZE // 4)] & _TID
            if tid and (entry := self._read(index, tid)) is not None:
                yield entry

    def _read(self, index: int, tid: int) -> Entry | None:
        """A line, unless it is being written, or its thread has another by now."""
        offset = _LINES_AT + index * _SIZE
        words = self.memory.view(offset + 64, 64).cast("Q").tolist()
        if not words[_NUMBER] or words[_WHO] & 0xFFFFFFFF != tid:
            return None
        size = self.memory.view(offset + _HEAD, 2).cast("H")[0]
        text = bytes(self.memory.view(offset + _HEAD + 2, min(size, _TEXT - 2)))
        if self.memory.view(offset + 64 + 8 * _NUMBER, 8).cast("Q")[0] != words[_NUMBER]:
            return None
        try:
            return Entry(index, words, json.loads(text))
        except ValueError:
            return None

    def waits_of(self, far: graph.Far) -> Entry | None:
        """What a thread of another process waits for; None when it runs."""
        if _thread.get_ident() in self._blind:
            return None
        found: Entry | None = None
        step = _SIZE // 4
        for index in range(self._made[0]):
            if self._all[index * step] & _TID == far.tid:
                entry = self._read(index, far.tid)
                if entry is not None and (found is None or entry.since > found.since):
                    found = entry  # the later one is a signal handler's
        return found

    def renewed(self, far: graph.Far, fresh: int) -> bool:
        """Wait until that thread has renewed its summary; False when it did not within a slice."""
        entry = self.waits_of(far)
        if entry is None or entry.fresh is None:
            return False
        if entry.fresh != fresh:
            return True
        word = Word(_LINES_AT + entry.index * _SIZE + 64 + 8 * _FRESH)
        until = time.monotonic() + SLICE
        while word.value == fresh:
            if not word.wait(fresh, until - time.monotonic()) and time.monotonic() >= until:
                return False
        return True

    def holds(self, ident: int) -> bool:
        """Does this thread of ours hold a shared lock?"""
        tid = threads.tid_of(ident)
        return tid != 0 and any(mutex.owner() == tid for mutex in list(self.locks.values()))

    def wait(self, wait: graph.Wait, ticket: Any) -> bool:
        """Block a thread that holds a shared lock in a local wait, with a summary of it in the table."""
        if wait.on.resolvers() is None:
            return bool(ticket.wait(None))
        try:
            line = self.claim()
        except TableFull:  # it waits as well; a circle through it is found by the others in it, or not at all
            return bool(ticket.wait(None))
        try:
            line.write(THREAD, self._end_of(wait), wait.on.describe(), timed=False)
            while True:
                self.check(line, wait)
                if ticket.wait(RENEW):
                    return True
                if wait.doom is None:
                    line.renew(self._end_of(wait))
        finally:
            self.leave(line)

    @staticmethod
    def _end_of(wait: graph.Wait) -> int:
        """The thread that ends the chain of local waits that begins here: the first that others can see waiting."""
        seen: set[graph.Unit] = {wait.unit}
        resolvers: Sequence[graph.Unit] = wait.on.resolvers() or ()
        while len(resolvers) == 1 and resolvers[0] not in seen:
            who = resolvers[0]
            seen.add(who)
            edge = None if isinstance(who, graph.Far) else graph._edge(who)
            if edge is None or isinstance(edge.on, Shared):
                return threads.tid_of(who)
            resolvers = edge.resolvers
        return 0

    def name_of(self, far: graph.Far) -> str:
        """As messages name a thread of another process."""
        entry = self.waits_of(far)
        return threads.describe(0, far.tid) if entry is None else threads.describe(entry.pid, entry.tid, entry.thread)


class Shared:
    """A base for what can be waited for between processes: its waits stand in the table by themselves."""

    __slots__ = ()


def owner_of(offset: int) -> int:
    """The native number of the thread that has the mutex at this offset; 0 for nobody."""
    return int(arena.get().view(offset, 4).cast("I")[0]) & _TID


def _text(name: str) -> bytes:
    """Name, thread and stack as JSON, without the outermost frames that there is no room for."""
    ident = _thread.get_ident()
    frames = [list(frame) for frame in graph.stack_of(ident)]
    thread = threading.current_thread().name
    while True:
        text = json.dumps([name[:200], thread[:100], frames]).encode()
        if len(text) <= _TEXT - 2:
            return text
        if not frames:
            return json.dumps([name[:50], thread[:50], []]).encode()
        del frames[0]


class _Home:
    """The one table of this process."""

    table: Table | None = None
    pid = os.getpid()


def get() -> Table:
    """The table, made on first need; from then on `graph` walks through it."""
    table = _Home.table
    if table is None or table.memory is not arena.get():
        table = _Home.table = graph.FAR = Table()
    return table


def _forked() -> None:
    if _Home.table is not None:
        _Home.table._blind.clear()


os.register_at_fork(after_in_child=_forked)
