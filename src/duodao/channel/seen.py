"""Which inputs of a run were met before: in the run (occurrence) and by the journal (its row).

A private SQLite database, because the inputs may be endless and the memory is not. The file has no name, so it can't be
left behind; nothing in it needs to survive, so nothing in it is synced.
Rejected: an index on the journal's own table. Digests are random, so each commit would write as many pages as it has
rows: 15,000 rows a second in place of 150,000. Here the index is built once per open, in one pass.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from duodao.channel.keys import SIZE

_CACHE = 4 * 1024  # KiB
_WIDE = 256
# Few statements of many rows, because sqlite3 gives the GIL up at each, and a thread lane full of running functions may
# take 5 ms per thread to give it back. What is left of a statement is filled with its last row again, which is ignored,
# or with NULL, which equals nothing.
_ONE = "INSERT OR IGNORE INTO seen (half, at) VALUES (?,?)"
_INSERT = {wide: _ONE + ",(?,?)" * (wide - 1) for wide in (1, 8, 32, 128, 512)}
_FIND = f"SELECT key, row FROM known WHERE key IN ({','.join('?' * _WIDE)})"  # noqa: S608 - constants


class Seen:
    """Owned by one thread at a time. Raises sqlite3.Error when the disk of the temporary files is full."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False, cached_statements=16)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute(f"PRAGMA cache_size=-{_CACHE}")
        self._db.execute("CREATE TABLE seen (half INTEGER PRIMARY KEY, at INTEGER NOT NULL, again INTEGER)")
        self._db.execute("CREATE TABLE known (key BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID")
        self._db.execute("CREATE TABLE claimed (row INTEGER PRIMARY KEY)")
        self._db.execute("BEGIN")
        self._any_known = False

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def learn(self, entries: Iterable[tuple[bytes, int]]) -> None:
        """Keys and rows that the journal has."""
        done = self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", entries)
        self._any_known = done.rowcount > 0

    def keys(self, first: int, digests: Sequence[bytes]) -> list[bytes]:
        """The key of each digest: itself, and how often it was met before if it was. first: a number that grows by at
        least len(digests) from call to call.

        The first eight bytes count as the digest here; should two that differ agree in them, one gets a higher
        occurrence than it has, which is the same in every run.
        """
        halves = [int.from_bytes(digest[:8], "big", signed=True) for digest in digests]
        total = 0
        flat = list(itertools.chain.from_iterable(zip(halves, itertools.count(first), strict=False)))
        widest = max(_INSERT)
        for at in range(0, len(flat), 2 * widest):
            part = flat[at : at + 2 * widest]
            wide = next(width for width in _INSERT if 2 * width >= len(part))
            part += part[-2:] * (wide - len(part) // 2)
            total += self._db.execute(_INSERT[wide], part).rowcount
        if total == len(digests):
            return list(digests)
        return [self._again(half, first + at, digests[at]) for at, half in enumerate(halves)]

    def _again(self, half: int, at: int, digest: bytes) -> bytes:
        found = self._db.execute(
            "UPDATE seen SET again = ifnull(again, 0) + 1 WHERE half = ? AND at <> ? RETURNING again", (half, at)
        ).fetchall()
        if not found:
            return digest
        occurrence: int = found[0][0]
        return digest + occurrence.to_bytes((occurrence.bit_length() + 7) // 8, "big")

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The rows of those keys that the journal has. They count as claimed from now on."""
        if not self._any_known:
            return {}
        found: dict[bytes, int] = {}
        for at in range(0, len(keys), _WIDE):
            part: list[bytes | None] = list(keys[at : at + _WIDE])
            part.extend([None] * (_WIDE - len(part)))
            found.update(self._db.execute(_FIND, part).fetchall())
        self._db.executemany("INSERT OR IGNORE INTO claimed VALUES (?)", [(row,) for row in found.values()])
        return found

    def gone(self) -> Iterator[int]:
        """Rows of the journal that no input claimed."""
        for (row,) in self._db.execute("SELECT row FROM known WHERE row NOT IN (SELECT row FROM claimed)"):
            yield row


def has_digest(key: bytes) -> bool:
    """False for the row of an input that had no key: it can't be met again."""
    return len(key) >= SIZE
