"""The file of a journal: whose it is, whether it is whole, how it comes to be, and the lock that keeps others out.

Invariants:
  1. A file that isn't ours is never written to. A new journal is built beside its name and renamed into place, so a
     file with the name is either whole or not ours.
  2. A write-ahead log outlives no journal: SQLite would replay it into the next file of that name.
  3. One process at a time: a lock file, held with fcntl, because a lock on the journal itself would be dropped by the
     kernel when SQLite closes any descriptor of it. fcntl locks aren't inherited, so a forked child can't hold one on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import stat
import struct
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from duodao.channel.identity import Identity
from duodao.channel.rows import COLUMNS
from duodao.errors import (
    DuodaoError,
    JournalBusy,
    JournalDamaged,
    JournalError,
    JournalFull,
    JournalMismatch,
    UsageError,
)

APPLICATION = 0x44756F4A  # "DuoJ"
VERSION = 1
CHECKED = 64 * 1024 * 1024
"""Bytes up to which a journal is examined whole when opened (0.2 s); beyond it each record is when it is read."""

_MAGIC = b"SQLite format 3\0"
_ABOUT = "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"
_ITEM = """CREATE TABLE item (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, position INTEGER NOT NULL, state INTEGER NOT NULL,
    attempts INTEGER NOT NULL, seconds REAL NOT NULL, lane TEXT NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL
) STRICT"""
_SIDES = ("-wal", "-shm", "-journal")

_held: set[str] = set()
_held_guard = threading.Lock()


class Lock:
    """The right to write a journal. Raises JournalBusy, or UsageError when no file can be made there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = path + "-lock"
        with _held_guard:
            if path in _held:
                raise JournalBusy(f"the journal {path} is open in this program already")
            _held.add(path)
        try:
            self._fd = self._acquire()
        except BaseException:
            with _held_guard:
                _held.discard(path)
            raise

    def _acquire(self) -> int:
        while True:
            try:
                fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise UsageError(f"the journal {self._path} can't be written: {error.strerror}") from error
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its holder unlinks it in the end: what was opened just before is another file than the next one's.
                if os.fstat(fd).st_ino == os.stat(self._file).st_ino:
                    with contextlib.suppress(OSError):  # the number is for the message only, and the disk may be full
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, str(os.getpid()).encode(), 0)
                    return fd
            except FileNotFoundError:
                pass
            except OSError as error:
                holder = os.pread(fd, 20, 0).decode("ascii", "replace")
                os.close(fd)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise JournalBusy(
                        f"the journal {self._path} is open in process {holder or 'unknown'}: wait for it, or give this "
                        f"run a journal of its own"
                    ) from None
                raise JournalError(f"the journal {self._path} can't be locked: {error.strerror}") from error
            os.close(fd)

    def release(self) -> None:
        """Let others in. Idempotent."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._file)
        os.close(self._fd)
        self._fd = -1
        with _held_guard:
            _held.discard(self._path)


def explain(error: sqlite3.Error, path: str) -> DuodaoError:
    """SQLite's error as ours: whose fault it is and what to do."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    kind = code & 0xFF
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISMATCH) or (
        code == sqlite3.SQLITE_IOERR_SHORT_READ
    ):
        return damaged(path, str(error))
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) and code != sqlite3.SQLITE_IOERR_READ:
        return JournalFull(
            f"the disk refused a write to the journal {path} ({error}). What was committed before is safe: "
            f"make room and run the same command again"
        )
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalBusy(f"another program holds the journal {path} ({error})")
    return JournalError(f"the journal {path} can't be used: {error}")


def damaged(path: str, why: str) -> JournalDamaged:
    """The error for a journal that is ours and broken."""
    return JournalDamaged(
        f"the journal {path} is damaged ({why}). Restore it from a copy, or start over with --fresh (fresh=True)"
    )


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """SQLite's errors of this block as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def is_ours(path: str, *, any_version: bool = False) -> bool:
    """True for a journal, False for no file or an empty one. Raises JournalDamaged for any other file, UsageError for
    what is no file: a new journal would take the place of a device, and a FIFO would never open."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a directory" if os.path.isdir(path) else "no regular file"
            raise UsageError(f"the journal {path} can't be written: it is {kind}")
        with open(path, "rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"the journal {path} can't be read: {error.strerror}") from error
    if not head:
        return False
    other = "It is left as it is: give the journal another name, or move that file away"
    if len(head) < 100 or not head.startswith(_MAGIC):
        raise JournalDamaged(f"{path} is not a journal, or only the rest of one. {other}")
    version, application = struct.unpack(">I4xI", head[60:72])
    if application != APPLICATION:
        raise JournalDamaged(f"{path} is an SQLite file, but not a journal. {other}")
    if version != VERSION and not any_version:
        raise JournalMismatch(
            f"the journal {path} has format {version}, this version of Duodao writes format {VERSION}: "
            f"finish it with the version that wrote it, or start over with --fresh (fresh=True)"
        )
    return True


def connect(path: str, mode: str = "rw") -> sqlite3.Connection:
    """A connection; mode "rw" or "ro". Statements are ours to begin and commit."""
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10, cached_statements=64
    )  # fmt: skip


def create(path: str, about: dict[str, Any]) -> None:
    """A new, empty journal in the place of whatever has the name."""
    new = path + "-new"
    _remove(new, *(new + side for side in _SIDES))
    with open(new, "xb"):
        pass
    db = connect(new)
    try:
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("BEGIN IMMEDIATE")
        db.execute(_ABOUT)
        db.execute(_ITEM)
        note(db, about)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        _remove(new, *(new + side for side in _SIDES))
        raise
    db.close()
    _remove(path, *(path + side for side in _SIDES))
    os.replace(new, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def note(db: sqlite3.Connection, about: dict[str, Any]) -> None:
    """Keep what a run says about itself."""
    entries = [(name, json.dumps(value)) for name, value in about.items()]
    db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", entries)


def read_about(db: sqlite3.Connection, path: str) -> dict[str, Any]:
    """What the runs said about themselves. Raises JournalDamaged where that can't be read any more."""
    db.text_factory = bytes
    try:
        return {name.decode(): json.loads(value) for name, value in db.execute("SELECT name, value FROM about")}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise damaged(path, f"what it says about its run is not what was written: {type(error).__name__}") from error
    finally:
        db.text_factory = str


def check(db: sqlite3.Connection, path: str) -> None:
    """Raise JournalDamaged unless the file is whole and has our tables."""
    if os.path.getsize(path) <= CHECKED:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, verdict.splitlines()[-1])
    try:
        db.execute(f"SELECT {COLUMNS} FROM item LIMIT 0")  # noqa: S608 - constants
        db.execute("SELECT name, value FROM about LIMIT 0")
    except sqlite3.OperationalError as error:
        if (error.sqlite_errorcode & 0xFF) == sqlite3.SQLITE_ERROR:
            raise damaged(path, str(error)) from error
        raise


def whose(about: dict[str, Any], path: str) -> Identity:
    """The run that wrote the journal, by what it said. Raises JournalDamaged where that is incomplete."""
    names, code, shape = (about.get(name) for name in ("names", "code", "shape"))
    if isinstance(names, list) and isinstance(code, str) and isinstance(shape, str):
        return Identity(tuple(map(str, names)), code, shape)
    raise damaged(path, "it doesn't say whose it is")


def compare(path: str, about: dict[str, Any], mine: Identity, keyed: str, *, accept_code: bool) -> None:
    """Raise JournalMismatch unless the journal belongs to this run."""
    fresh = "or start over with --fresh (fresh=True)"
    theirs = whose(about, path)
    other_key = about.get("key")
    if theirs.names != mine.names:
        raise JournalMismatch(
            f"the journal {path} belongs to {', '.join(theirs.names)}, this run is of {', '.join(mine.names)}: "
            f"give it a journal of its own, {fresh}"
        )
    if theirs.shape != mine.shape:
        raise JournalMismatch(
            f"the journal {path} belongs to the pipeline {theirs.shape!r}, this run is of {mine.shape!r}: "
            f"give it a journal of its own, {fresh}"
        )
    if other_key != keyed:
        raise JournalMismatch(
            f"the journal {path} was written with key={other_key}, this run has key={keyed}: use the same key, {fresh}"
        )
    if theirs.code != mine.code and not accept_code:
        raise JournalMismatch(
            f"the code of {', '.join(mine.changed(theirs))} has changed since the journal {path} was written: keep its "
            f"results with --accept-code (accept_code=True), {fresh}"
        )
