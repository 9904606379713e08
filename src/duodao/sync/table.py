"""Who waits for whom between processes: a table in the arena, in which every blocked wait for a shared lock stands.

`graph.py` walks it through `graph.FAR`: from a wait of this process to the thread that holds the lock, to what that one
waits for by its line of the table, and so on, until the walk comes back.

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
import time
from collections.abc import Iterator, Sequence
from typing import Any

from duodao import arena
from duodao.errors import TableFull
from duodao.sync import graph, threads
from duodao.sync.lines import (
    HEAD,
    KIND,
    LINES,
    LINES_AT,
    NUMBER,
    ROUND,
    SIZE,
    TEXT,
    THREAD,
    TID,
    TURN,
    WHO,
    Entry,
    Line,
    Shared,
)  # fmt: skip
from duodao.sync.robust import DEAD, SLICE, Mutex, Word, native

RENEW = 0.025
_MAGIC = 0x64756F_64616F_01
_GUARD_AT = arena.COMMON_AT + 64
_MADE_AT = arena.COMMON_AT + 128
_BATCH = 25  # lines that are set up in one go
_STEP = SIZE // 4


class Table:
    """The table, as this process sees it; `graph.FAR`."""

    def __init__(self) -> None:
        self.memory = memory = arena.get()
        self._guard = Mutex(_GUARD_AT)
        self._leave_guard = native().leave(self._guard.pointer)  # in C: Ctrl-C can't come before it
        self.made = memory.view(_MADE_AT, 4).cast("I")
        self.all = memory.view(LINES_AT, LINES * SIZE).cast("I")
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
            made = self.made[0]
            full = made >= LINES
            for last in (False, True)[: 1 + full]:
                for index in self.untaken():
                    if (line := self.take(index, last=last)) is not None:
                        return line
            with self.memory.alone():
                if self.made[0] == made:
                    if full:
                        raise TableFull(
                            f"{LINES} threads wait for shared locks already, and there is room for no more: "
                            "let fewer tasks share, or let them wait with a time-out and try again"
                        )
                    for index in range(made, made + _BATCH):
                        Line(index).mutex.init()
                    self.made[0] = made + _BATCH

    def line(self, index: int) -> Line:
        """One of the lines, whoever has it."""
        line = self._lines.get(index)
        return self._lines.setdefault(index, Line(index)) if line is None else line

    def take(self, index: int, *, last: bool) -> Line | None:
        """last: also one whose owner was killed and may have been told something: others look for such ones."""
        line = self.line(index)
        if not last and line.words[NUMBER] and line.words[KIND] & 0xFF == TURN:
            return None
        try:
            code = line.mutex.trylock()
            if code == DEAD:
                line.mutex.consistent()
            if code not in {0, DEAD}:
                return None
            line.words[NUMBER] = 0  # what its last owner waited for when it was killed
        except BaseException:
            line.mutex.let_go()
            raise
        return line

    @staticmethod
    def leave(line: Line, wait: graph.Wait | None = None) -> None:
        """Withdraw a wait, and give its line back, whatever interrupts that."""
        try:
            line.words[NUMBER] = 0
            if wait is not None:
                graph.end(wait)
            line.free(None, None, None)
        except BaseException:
            line.words[NUMBER] = 0
            if wait is not None:
                graph.end(wait)
            line.free(None, None, None)
            raise

    def taken(self) -> Iterator[tuple[int, int]]:
        """The lines that somebody has now, as (index, native number of the thread)."""
        for index in range(self.made[0]):
            tid = self.all[index * _STEP] & TID
            if tid:
                yield index, tid

    def untaken(self) -> Iterator[int]:
        """The lines that nobody has, also because he was killed."""
        for index in range(self.made[0]):
            if not self.all[index * _STEP] & TID:
                yield index

    def begin(self, line: Line, who: int, on: graph.On, *, timed: bool) -> graph.Wait:
        """`graph.begin` for a wait that stands in the table. Deadlock as there; the line is erased then."""
        if not timed and self._is_stuck(on) and self._have_guard():
            try:
                return graph.begin(who, on, timed=False)
            except BaseException:
                line.erase()
                raise
            finally:
                self._leave_guard(None, None, None)
        self._blind.add(who)
        try:
            return graph.begin(who, on, timed=timed)
        finally:
            self._blind.discard(who)

    def check(self, line: Line, wait: graph.Wait, patience: float = SLICE) -> None:
        """`graph.check` for a wait that stands in the table. As `begin`. patience: seconds for the guard."""
        if wait.timed or not self._is_stuck(wait.on) or not self._have_guard(patience):
            return
        try:
            graph.check(wait)
        except BaseException:
            line.erase()
            raise
        finally:
            self._leave_guard(None, None, None)

    def _is_stuck(self, on: graph.On) -> bool:
        return any(
            graph.waiting(who) or (isinstance(who, graph.Far) and self.waits_of(who)) for who in on.resolvers() or ()
        )

    def _have_guard(self, patience: float = SLICE) -> bool:
        """Have the guard, or look again with the next slice: its owner may be stopped, or wait for a renewal."""
        try:
            code = self._guard.lock(patience)
            if code == DEAD:
                self._guard.consistent()
        except BaseException:
            self._guard.let_go()
            raise
        return code in {0, DEAD}

    # Reading: what `graph` asks for

    def entries(self) -> Iterator[Entry]:
        """Every wait that stands in the table now."""
        for index, tid in self.taken():
            if (entry := self._read(index, tid)) is not None:
                yield entry

    def _read(self, index: int, tid: int) -> Entry | None:
        """A line, unless it is being written, or its thread has another by now."""
        offset = LINES_AT + index * SIZE
        words = self.memory.view(offset + 64, 64).cast("Q").tolist()
        if not words[NUMBER] or words[WHO] & 0xFFFFFFFF != tid:
            return None
        size = self.memory.view(offset + HEAD, 2).cast("H")[0]
        text = bytes(self.memory.view(offset + HEAD + 2, min(size, TEXT - 2)))
        if self.memory.view(offset + 64 + 8 * NUMBER, 8).cast("Q")[0] != words[NUMBER]:
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
        for index, tid in self.taken():
            if tid == far.tid:
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
        word = Word(LINES_AT + entry.index * SIZE + 64 + 8 * ROUND)
        until = time.monotonic() + SLICE
        while word.value == fresh:
            if not word.wait(fresh, until - time.monotonic()) and time.monotonic() >= until:
                return False
        return True

    def holds(self, ident: int) -> bool:
        """Does this thread of ours hold a shared lock?"""
        tid = threads.holder_tid(ident)
        return tid != 0 and any(mutex.owner() == tid for mutex in list(self.locks.values()))

    def wait(self, wait: graph.Wait, ticket: Any) -> bool:
        """Block a thread that holds a shared lock in a local wait, with a summary of it in the table."""
        while wait.on.resolvers() is None:
            if not getattr(wait.on, "unsettled", False):
                return bool(ticket.wait(None))
            if ticket.wait(RENEW):  # a call that no worker has begun: who could end it is known later
                return True
        try:
            line = self.claim()
        except TableFull:  # it waits as well; a circle through it is found by the others in it, or not at all
            return bool(ticket.wait(None))
        try:
            line.write(THREAD, self._end_of(wait), wait.on.describe(), timed=False)
            while True:
                self.check(line, wait, 0.0)  # who has the guard may wait for this line to be renewed
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
