"""What all handles of a Shared in one process have in common: the lock, what is assigned under it, and who read what.

The lock is a robust mutex; a thread may take it again. What is assigned while it is held waits in `pending`, which the
holder alone sees, and is written at once when the lock is given back: a holder that raises or dies has changed nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from typing import Any

from duodao.channel.facts import HOLDER, Fact, Facts, Write
from duodao.channel.segment import Segment
from duodao.errors import LostUpdate
from duodao.sync import graph, robust

ABSENT = 0
"""The version of a key that is not there."""


class Board:
    """What all handles of a Shared in this process have in common: its facts, its lock, and who read what."""

    reach = "program"

    def __init__(self, segment: Segment, name: str) -> None:
        self.facts = Facts(segment)
        self.segment = segment
        self.name = name
        self.closed = False
        self.forget()
        _boards.add(self)

    def forget(self) -> None:
        """A forked copy has read nothing, and holds nothing."""
        self.facts.forget()
        self.depth = 0
        self.holder = 0
        self.pending: dict[Any, Write] = {}
        self.threads = threading.local()
        self.tasks: weakref.WeakKeyDictionary[Any, dict[Any, int]] = weakref.WeakKeyDictionary()

    # ---------------------------------------------------------------------------------------------------- the lock

    def resolvers(self) -> tuple[graph.Unit, ...] | None:
        """Who holds it: a thread of this process, or of another."""
        owner = self.facts.mutex.owner()
        if not owner:
            return None
        for thread in threading.enumerate():
            if thread.native_id == owner and thread.ident is not None:
                return (thread.ident,)
        return (graph.Far(owner),)

    def describe(self) -> str:
        """As messages name it."""
        return f"Shared {self.name!r}"

    def signal(self) -> bool:
        """Of a waiter: it looks by itself after each slice."""
        return True

    def acquire(self) -> None:
        """Have the lock, once more if it is had already. Deadlock: the wait closed a circle."""
        ident = threading.get_ident()
        if self.holder == ident:
            self.depth += 1
            return
        mutex = self.facts.mutex
        code = 0
        try:
            code = mutex.trylock()
            if code and self._wait(mutex, code, ident) == robust.DEAD:
                mutex.consistent()  # nothing is half done: see facts.py
            self.holder, self.depth = ident, 1
            if self.facts.words[HOLDER]:
                self._tell()
            self.facts.catch_up()
        except BaseException:  # Ctrl-C too: nobody would give it back
            if code != robust.OWN:  # else a signal came in between taking it and saying so; it is not the handler's
                self.holder = self.depth = 0
                mutex.let_go()
            raise

    def _wait(self, mutex: robust.Mutex, code: int, ident: int) -> int:
        if code not in (robust.BUSY, robust.OVER):
            return self._sound(code)
        code = mutex.lock(0.002)  # single steps take microseconds
        if code not in (robust.BUSY, robust.OVER):
            return self._sound(code)
        edge = graph.begin(ident, self, timed=False, ticket=self)
        try:
            while code in (robust.BUSY, robust.OVER):
                if edge.doom is not None:
                    raise edge.doom
                code = mutex.lock(robust.SLICE)
        finally:
            graph.end(edge)
        return self._sound(code)

    @staticmethod
    def _sound(code: int) -> int:
        if code not in (0, robust.DEAD):
            raise robust._refusal(code)
        return code

    def _tell(self) -> None:
        holder, self.facts.words[HOLDER] = self.facts.words[HOLDER], 0
        if holder:
            warnings.warn(
                f"Shared {self.name!r}: process {holder} ended inside its `with` block; what it had assigned there was "
                "not done",
                RuntimeWarning,
                stacklevel=4,
            )

    def release(self, *, keep: bool) -> None:
        """Undo one `acquire`. With the last one, and keep: what was assigned since counts now, all at once."""
        if self.holder != threading.get_ident():
            return
        try:
            while keep and self.depth == 1 and self.pending:  # again: a signal handler may have assigned meanwhile
                self._commit()
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.pending = {}
                self.holder = 0
                self.facts.words[HOLDER] = 0
                self.facts.mutex.unlock()

    def _commit(self) -> None:
        writes, self.pending = self.pending, {}
        marks = self.marks()
        last = self.facts.write(writes.values(), writer())
        for number, key in enumerate(writes, last - len(writes) + 1):
            if key in marks:
                marks[key] = number if writes[key].value is not None else ABSENT

    # ------------------------------------------------------------------------------------------------- who read what

    def marks(self) -> dict[Any, int]:
        """Of the running task, or thread: key -> the version it read last."""
        unit = graph.unit()
        if isinstance(unit, asyncio.Task):
            found = self.tasks.get(unit)
            if found is None:
                found = self.tasks[unit] = {}
            return found
        try:
            return self.threads.marks  # type: ignore[no-any-return]
        except AttributeError:
            self.threads.marks = {}
            return self.threads.marks  # type: ignore[no-any-return]

    def check(self, key: Any) -> None:
        """LostUpdate when the value that the caller read last is not the one that is there. The lock is held."""
        marks = self.marks()
        read = marks.get(key)
        if read is None or key in self.pending:
            return
        now = self.facts.known.get(key)
        if read == (ABSENT if now is None else now.version):
            return
        del marks[key]
        by: Fact | None = now or self.facts.deleted.get(key)
        other = by.writer if by is not None else "another task"
        me = writer()
        what = "assigned to" if now is not None else "deleted"
        raise LostUpdate(
            f"Shared {self.name!r}: {me} has read {key!r} before {other} {what} it, and would undo that. Nothing was "
            "done: read again and repeat, or use update_key() or `with state:`",
            key,
            (me, other),
        )


def writer() -> str:
    """The caller, for messages."""
    return f"process {os.getpid()}, {graph.name_of(graph.unit())}"


def board_of(segment: Segment, name: str) -> Board:
    """The one of this process for the segment."""
    found = _opened.get((segment.offset, segment.stamp))
    if found is None:
        found = _opened[segment.offset, segment.stamp] = Board(segment, name)
    return found


_opened: weakref.WeakValueDictionary[tuple[int, int], Board] = weakref.WeakValueDictionary()
_boards: weakref.WeakSet[Board] = weakref.WeakSet()


def _after_fork() -> None:
    for board in list(_boards):
        board.forget()


os.register_at_fork(after_in_child=_after_fork)
