"""The URLs of one crawl that wait for their turn, first in first out per host: in memory up to a limit, then on disk.

The disk is SQLite's private temporary database: it has no name, and is gone when it is closed or the process dies.
A million waiting URLs take some 40 MB here, whatever their number: LIMIT of them in memory.
"""

from __future__ import annotations

import sqlite3
from collections import deque

from duodao.errors import Broken

LIMIT = 100_000
"""URLs in memory, of all hosts together."""
REFILL = 500
_TABLE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE waiting (line INTEGER, id INTEGER, url TEXT, PRIMARY KEY (line, id)) WITHOUT ROWID;
"""


class Backlog:
    """Not thread-safe: its frontier's lock is held around every call."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._held = 0
        self._db: sqlite3.Connection | None = None

    def line(self) -> Line:
        """A new queue, for one host."""
        return Line(self)

    def close(self) -> None:
        """Drop what waits. Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _disk(self, statement: str, *values: object) -> list[tuple[str]]:
        try:
            if self._db is None:
                self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                self._db.executescript(_TABLE)
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise Broken(
                f"the temporary database of the URLs that wait can't be used: {error}. It is made in SQLITE_TMPDIR, or "
                "TMPDIR, /var/tmp, /tmp: name a folder with room"
            ) from None


class Line:
    """One host's part. Once some of it is on disk, what comes goes there too, so that the order holds."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._memory: deque[str] = deque()
        self._first = self._next = 0  # ids on disk: from first, up to next

    def __len__(self) -> int:
        return len(self._memory) + self._next - self._first

    def put(self, url: str) -> None:
        """At the end."""
        shared = self._backlog
        if self._next == self._first and shared._held < shared._limit:
            shared._held += 1
            self._memory.append(url)
            return
        shared._disk("INSERT INTO waiting VALUES (?, ?, ?)", id(self), self._next, url)
        self._next += 1

    def peek(self) -> str | None:
        """The first one, None when there is none."""
        if not self._memory and self._next > self._first:
            self._refill()
        return self._memory[0] if self._memory else None

    def pop(self) -> str:
        """Take the first one away."""
        self.peek()
        self._backlog._held -= 1
        return self._memory.popleft()

    def _refill(self) -> None:
        disk, upto = self._backlog._disk, min(self._first + REFILL, self._next)
        part = "FROM waiting WHERE line = ? AND id >= ? AND id < ?"
        self._memory.extend(url for (url,) in disk(f"SELECT url {part} ORDER BY id", id(self), self._first, upto))
        disk(f"DELETE {part}", id(self), self._first, upto)
        self._backlog._held += len(self._memory)
        self._first = upto
