"""The one thread that writes a journal: it commits what has gathered, then says so.

Invariant: `on_committed` names only what a completed COMMIT holds; after an error nothing is named any more.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from duodao.channel.journal_file import explain, note
from duodao.channel.rows import COLUMNS, WIDTH, Row
from duodao.clock import SYSTEM

GROUP_ROWS = 256
GROUP_SECONDS = 0.020
"""A commit is made when either has gathered; what came in meanwhile goes with it."""

MOST_ROWS = 16_384
MOST_BYTES = 64 * 1024 * 1024
"""What may wait to be written; beyond it the engine waits for the disk."""

_OVERHEAD = 200  # bytes a row costs besides its body
_INSERT = f"INSERT INTO item ({COLUMNS}) VALUES "  # noqa: S608 - constants
_ONE = "(" + ",".join("?" * WIDTH) + ")"
_STEPS = (1024, 256, 64, 16, 4, 1)
# Many rows per statement: sqlite3 gives the GIL up once per statement, and a thread lane full of running functions may
# take 5 ms to give it back.
_STATEMENTS = {rows: _INSERT + ",".join([_ONE] * rows) for rows in _STEPS}


@dataclass
class Group:
    """What one commit writes. replaced: rows that go. moves: (position, row id) of inputs that stand elsewhere now."""

    rows: list[Row] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    moves: list[tuple[int, int]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    size: int = 0

    @property
    def count(self) -> int:
        """How much it is, in rows."""
        return len(self.rows) + len(self.replaced) + len(self.moves) + len(self.notes)


class Inbox:
    """Where the engine leaves what is to be written. Bounded by rows and bytes; a single large row always fits."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._group = Group()
        self._stopped = False
        self._failed = False

    def put(
        self, rows: list[Row] = [], ids: list[int] = [], *, replaced: Iterable[int] = (),  # noqa: B006 - only read
        moves: Iterable[tuple[int, int]] = (), notes: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add to the next group; waits while too much is waiting. After an error of the writer it does nothing."""
        size = sum(len(row.body) for row in rows) + len(rows) * _OVERHEAD
        with self._condition:
            while not self._failed and self._group.count and self._over(len(rows), size):
                self._condition.wait()
            if self._failed:
                return
            group = self._group
            before = group.count
            group.rows += rows
            group.ids += ids
            group.replaced += replaced
            group.moves += moves
            group.notes |= notes or {}
            group.size += size
            if not before or (before < GROUP_ROWS <= group.count):
                self._condition.notify_all()

    def _over(self, rows: int, size: int) -> bool:
        return self._group.count + rows > MOST_ROWS or self._group.size + size > MOST_BYTES

    def take(self) -> Group | None:
        """The next group, gathered for at most GROUP_SECONDS; None after `stop` when nothing is left."""
        with self._condition:
            while not (self._group.count or self._stopped):
                self._condition.wait()
            if not self._group.count:
                return None
            until = SYSTEM.now() + GROUP_SECONDS
            while self._group.count < GROUP_ROWS and not self._stopped and self._group.size < MOST_BYTES:
                left = until - SYSTEM.now()
                if left <= 0:
                    break
                self._condition.wait(left)
            group, self._group = self._group, Group()
            self._condition.notify_all()
            return group

    def stop(self) -> None:
        """No more is coming."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def fail(self) -> None:
        """The writer has ended: drop what waits and let nobody wait for it."""
        with self._condition:
            self._failed = True
            self._group = Group()
            self._condition.notify_all()


class Writer(threading.Thread):
    """Owner of the writing connection until it has ended. error: what ended it, else None."""

    def __init__(
        self, db: sqlite3.Connection, path: str, on_committed: Callable[[list[int]], None],
        on_error: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        super().__init__(name="duodao-journal", daemon=True)  # ended by Journal.finish; a program that forgets may exit
        self.inbox = Inbox()
        self.error: BaseException | None = None
        self._db = db
        self._path = path
        self._on_committed = on_committed
        self._on_error = on_error

    def run(self) -> None:
        """Write until the inbox is stopped and empty."""
        try:
            while (group := self.inbox.take()) is not None:
                write(self._db, group)
                if group.ids:
                    self._on_committed(group.ids)
        except Exception as error:
            self.error = explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            self.inbox.fail()
            self._on_error(self.error)

    def end(self) -> None:
        """Write what is left, then stop."""
        self.inbox.stop()
        self.join()


def write(db: sqlite3.Connection, group: Group) -> None:
    """One transaction: all of the group or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if group.replaced:
            db.executemany("DELETE FROM item WHERE id = ?", [(row,) for row in group.replaced])
        at = 0
        for step in _STEPS:
            while at + step <= len(group.rows):
                db.execute(_STATEMENTS[step], list(itertools.chain.from_iterable(group.rows[at : at + step])))
                at += step
        if group.moves:
            db.executemany("UPDATE item SET position = ? WHERE id = ?", group.moves)
        if group.notes:
            note(db, group.notes)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk rolls back by itself
            db.execute("ROLLBACK")
        raise
