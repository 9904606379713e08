"""Reading a journal without touching it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from duodao.channel import journal_file
from duodao.channel.identity import Identity
from duodao.channel.journal_file import APPLICATION, VERSION, explain
from duodao.channel.rows import COLUMNS, DONE, FAILED, DeadLetter, Row, dead_letter, unpack
from duodao.errors import JournalDamaged, JournalMismatch, UsageError
from duodao.outcome import Outcome

if TYPE_CHECKING:
    from types import TracebackType

_IN_ORDER = f"SELECT {COLUMNS} FROM item WHERE id = ?"  # noqa: S608 - a constant


class Finished(NamedTuple):
    """Inputs in the journal: finished in all, those that succeeded, failed, and went into a group (joined)."""

    total: int
    succeeded: int
    failed: int
    joined: int


class Inspection:
    """A journal as a reader sees it. identity: whose it is. Raises UsageError for no file, JournalDamaged,
    JournalMismatch (another format)."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isfile(path):
            raise UsageError(f"there is no journal {path}")
        self._db = journal_file.connect(path, "ro")
        try:
            self._check()
            self.about: dict[str, Any] = journal_file.read_about(self._db, path)
            self.identity: Identity = journal_file.whose(self.about, path)
        except sqlite3.Error as error:
            self._db.close()
            raise explain(error, path) from error
        except BaseException:
            self._db.close()
            raise

    def _check(self) -> None:
        if self._db.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
            raise JournalDamaged(f"{self.path} is not a journal")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise JournalMismatch(f"the journal {self.path} has format {version}, this version reads format {VERSION}")

    @property
    def command(self) -> Any:
        """What the command line noted as "command", else None."""
        return self.about.get("command")

    def counts(self) -> Finished:
        """How many inputs are in which state."""
        found = dict(self._query("SELECT state, count(*) FROM item GROUP BY state"))
        total = sum(found.values())
        succeeded, failed = found.get(DONE, 0), found.get(FAILED, 0)
        return Finished(total, succeeded, failed, total - succeeded - failed)

    def outcomes(self) -> Iterator[Outcome[Any]]:
        """Every outcome, in input order."""
        for row in self._rows(f"state IN ({DONE}, {FAILED})"):
            yield unpack(row, row.position, self.path)

    def failures(self) -> Iterator[DeadLetter]:
        """Every failed input, in input order."""
        for row in self._rows(f"state = {FAILED}"):
            yield dead_letter(row, self.path)

    def _rows(self, where: str) -> Iterator[Row]:
        for (number,) in self._query(f"SELECT id FROM item WHERE {where} ORDER BY position, id"):  # noqa: S608
            for entry in self._query(_IN_ORDER, (number,)):
                yield Row._make(entry)

    def _query(self, statement: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            with contextlib.closing(self._db.execute(statement, values)) as cursor:
                yield from cursor
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
