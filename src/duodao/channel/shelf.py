"""An open journal: the SQLite side of it. Everything here belongs to the engine's thread; the writer's is writer.py.

Invariant: the row of input `i` of this run has the id base + i, where base is above all ids of the runs before. So a
row is found by the number of its input without a map in memory, and rows are appended, not scattered.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from duodao.channel import journal_file
from duodao.channel.identity import Identity
from duodao.channel.journal_file import explain, explained
from duodao.channel.rows import COLUMNS, FAILED, JOINED, JOINED_FAILED, Row, pack, pack_joined, unpack, verify
from duodao.channel.seen import Seen, has_digest
from duodao.channel.writer import Group, Writer, write
from duodao.errors import NotPicklable
from duodao.outcome import Outcome

_INDEX = " (its index among the temporary files; SQLITE_TMPDIR says where)"
_AT_ONCE = 256
_BETWEEN = f"SELECT {COLUMNS} FROM item WHERE id BETWEEN ? AND ?"  # noqa: S608 - constants
_AMONG = f"SELECT {COLUMNS} FROM item WHERE id IN ({','.join('?' * _AT_ONCE)})"  # noqa: S608 - constants


def _keyless(number: int) -> bytes:
    """In the place of a key: shorter than any, see seen.has_digest."""
    return b"?%d" % number


class Finished:
    """What the journal has of an input."""

    __slots__ = ("_path", "_row")

    def __init__(self, row: Row, path: str) -> None:
        self._row = row
        self._path = path

    @property
    def id(self) -> int:
        """Of the row."""
        return self._row.id

    @property
    def failed(self) -> bool:
        """It failed, by itself or with its group."""
        return self._row.state in (FAILED, JOINED_FAILED)

    @property
    def joined(self) -> bool:
        """It has no outcome of its own."""
        return self._row.state in (JOINED, JOINED_FAILED)

    def outcome(self, id: int, item: Any) -> Outcome[Any]:
        """As that of input `id`."""
        return unpack(self._row, id, self._path, item)


class Shelf:
    """Opening it is what Journal.open says."""

    def __init__(
        self, path: str, identity: Identity, *, keyed: str, fresh: bool, accept_code: bool, keep_code: bool,
        notes: dict[str, Any], on_committed: Callable[[list[int]], None], on_error: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._path = path
        about = {"names": list(identity.names), "code": identity.code, "shape": identity.shape, "key": keyed}
        with contextlib.ExitStack() as undo:
            self._lock = journal_file.Lock(path)
            undo.callback(self._lock.release)
            with explained(path):
                exists = journal_file.is_ours(path, any_version=fresh) and not fresh
                if not exists:
                    journal_file.create(path, {**about, **notes})
                self._db = journal_file.connect(path)
                undo.callback(self._db.close)
                self._reader = journal_file.connect(path)
                undo.callback(self._reader.close)
                self._seen = Seen()
                undo.callback(self._seen.close)
                if exists:
                    self._adopt(about, identity, notes, accept_code=accept_code, keep_code=keep_code)
                self._prepare()
                (top,) = self._db.execute("SELECT ifnull(max(id), 0) FROM item").fetchone()
                self._base: int = top + 1
                self._writer = Writer(self._db, path, on_committed, on_error)
                stale = self._learn() if exists else []
            self._writer.start()
            undo.pop_all()
        self._inbox = self._writer.inbox
        if stale:
            self._inbox.put(replaced=stale)

    def _adopt(
        self, about: dict[str, Any], identity: Identity, notes: dict[str, Any], *, accept_code: bool, keep_code: bool
    ) -> None:
        journal_file.check(self._db, self._path)
        written = journal_file.read_about(self._db, self._path)
        journal_file.compare(self._path, written, identity, about["key"], accept_code=accept_code)
        if keep_code:  # a retry of what failed doesn't vouch for the rest
            about = {**about, "code": written["code"]}
        new = {name: value for name, value in {**about, **notes}.items() if written.get(name) != value}
        if new:
            write(self._db, Group(notes=new))

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA wal_autocheckpoint=4000")
        self._reader.execute("PRAGMA query_only=1")

    def _learn(self) -> list[int]:
        stale: list[int] = []

        def entries() -> Iterator[tuple[bytes, int]]:
            for key, row in self._reader.execute("SELECT key, id FROM item ORDER BY key"):  # appended, not scattered
                if has_digest(key):
                    yield key, row
                else:
                    stale.append(row)

        self._seen.learn(entries())
        return stale

    # -- the engine's ------------------------------------------------------------------------------------------------

    def seen_keys(self, first: int, digests: Sequence[bytes]) -> list[bytes]:
        """The keys of the next inputs."""
        with explained(self._path + _INDEX):
            return self._seen.keys(first, digests)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Key -> row id of those the journal has."""
        with explained(self._path + _INDEX):
            return self._seen.find(keys)

    def finished(
        self, ids: Sequence[int], keys: Sequence[bytes], found: dict[bytes, int]
    ) -> Iterator[tuple[int, bytes, Finished]]:
        """What the journal has of those inputs; their places are brought up to date."""
        rows = self._rows(list(found.values()))
        moves = []
        for id, key in zip(ids, keys, strict=True):
            number = found.get(key)
            if number is None:
                continue
            row = rows.get(number)
            if row is None or row.key != key:
                raise journal_file.damaged(self._path, f"row {number} is not where it was")
            if row.state in (JOINED, JOINED_FAILED):
                verify(row, self._path)
            if row.position != id:
                moves.append((id, number))
            yield id, key, Finished(row, self._path)
        if moves:
            self._inbox.put(moves=moves)

    def record(
        self, outcomes: list[Outcome[Any]], joined: dict[int, list[int]], pending: dict[int, tuple[bytes, int | None]]
    ) -> list[tuple[int, BaseException]]:
        """See Journal.record."""
        rows: list[Row] = []
        ids: list[int] = []
        replaced: list[int] = []
        refused: list[tuple[int, BaseException]] = []
        base = self._base
        for outcome in outcomes:
            id = outcome.index
            # One that was never admitted, a malformed line, has no key either.
            key, old = pending.get(id) or (_keyless(id), None)
            try:
                row = pack(outcome, key, base + id)
            except NotPicklable as error:
                refused.append((id, error))
                continue
            rows.append(row)
            ids.append(id)
            pending.pop(id, None)
            if old is not None:
                replaced.append(old)
            for member in joined.get(id, ()):
                key, old = pending.pop(member)
                rows.append(pack_joined(key, base + member, member, failed=outcome.error is not None))
                ids.append(member)
                if old is not None:
                    replaced.append(old)
        self._inbox.put(rows, ids, replaced=replaced)
        return refused

    def unkeyed(self, outcomes: list[Outcome[Any]]) -> None:
        """Failures of inputs that can't be known again: kept for the reader, forgotten by the next run."""
        rows = [pack(outcome, _keyless(outcome.index), self._base + outcome.index) for outcome in outcomes]
        self._inbox.put(rows)

    def load(self, ids: Sequence[int]) -> dict[int, Outcome[Any]]:
        """See Journal.load."""
        base = self._base
        rows = self._rows([base + id for id in ids])
        return {
            id: unpack(rows[base + id], id, self._path)
            for id in ids
            if rows[base + id].state not in (JOINED, JOINED_FAILED)
        }

    def note(self, name: str, value: Any) -> None:
        """See Journal.note."""
        self._inbox.put(notes={name: value})

    def _rows(self, numbers: list[int]) -> dict[int, Row]:
        found: dict[int, Row] = {}
        numbers.sort()
        with explained(self._path):
            for at in range(0, len(numbers), _AT_ONCE):
                part: list[int | None] = list(numbers[at : at + _AT_ONCE])
                first, last = numbers[at], numbers[at + len(part) - 1]
                if last - first < len(part):
                    entries = self._reader.execute(_BETWEEN, (first, last))
                else:
                    part.extend([None] * (_AT_ONCE - len(part)))
                    entries = self._reader.execute(_AMONG, part)
                for entry in entries.fetchall():
                    found[entry[0]] = Row._make(entry)
        return found

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, *, complete: bool) -> int:
        """Write what is queued, drop what is gone (complete), make it one file, unlock. Returns the dropped."""
        dropped = 0
        try:
            self._writer.end()
            if self._writer.error is None:
                dropped = self._tidy(complete=complete)
        finally:
            for db in (self._seen, self._reader, self._db):
                with contextlib.suppress(sqlite3.Error):
                    db.close()
            self._lock.release()
        return dropped

    def _tidy(self, *, complete: bool) -> int:
        dropped = 0
        try:
            if complete:
                gone = list(self._seen.gone())
                if gone:
                    write(self._db, Group(replaced=gone))
                dropped = len(gone)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._reader.close()
            # A plain file: it can be copied, and read where nothing can be written. Refused while somebody reads it.
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA busy_timeout=0")
                self._db.execute("PRAGMA journal_mode=DELETE").fetchall()
        except sqlite3.Error as error:
            raise explain(error, self._path) from error
        return dropped
