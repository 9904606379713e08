"""A queue's SQLite file, and this process's share in it.

    turn(): our own lock (a mutex here, flock between processes) ─► BEGIN IMMEDIATE … COMMIT ─► unlock

The flock stands before SQLite's own locks, so that waiting for a turn is the kernel's and not SQLite's busy loop, and
ends with a killed holder. What changes for waiters is told by a touch (bell.py) inside the turn.

    item.taker: a user who has it and is not done with it. user: a process that has the file open. user.let_go: items of
    it that count as unfinished and are gone.

A fork closes the connection first: SQLite's knowledge of its locks must not be copied
(https://www.sqlite.org/howtocorrupt.html, 2.6). Both sides open it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from duodao.channel.bell import Listener
from duodao.channel.held import SOFT
from duodao.channel.owners import check_ours, check_place, check_sides, check_there, damaged, explain, space, start_of
from duodao.children import lifeline
from duodao.errors import DuodaoError, ShutDown, UsageError
from duodao.sync import lot

APPLICATION = 0x64645155  # "ddQU"
VERSION = 1
KEPT = 1000
"""The last items that a process which never says task_done is taken to have in hand."""
_TABLES = (
    "CREATE TABLE meta (maxsize INTEGER, sorted TEXT, shut INTEGER, ready INTEGER, unfinished INTEGER)",
    "CREATE TABLE item (id INTEGER PRIMARY KEY, rank BLOB, body BLOB NOT NULL, sum INTEGER NOT NULL, taker INTEGER)",
    "CREATE TABLE user (id INTEGER PRIMARY KEY, pid INTEGER, start INTEGER, space TEXT, let_go INTEGER)",
    "CREATE INDEX next ON item (rank, id) WHERE taker IS NULL",
    "CREATE INDEX taken ON item (taker) WHERE taker IS NOT NULL",
)
_ORDERS = {"fifo": "id", "lifo": "id DESC", "priority": "rank, id"}


class Tray:
    """The file at `path`, opened on first need."""

    def __init__(self, path: str, maxsize: int, order: str) -> None:
        self.path = path
        self.order = order
        self.maxsize = maxsize
        self.getters: lot.Parked = deque()
        self.putters: lot.Parked = deque()
        self.joiners: lot.Parked = deque()
        self.left = False
        self._mutex = threading.Lock()
        self._reset()
        _trays.add(self)

    def _reset(self) -> None:
        self.pid = os.getpid()
        self._db: sqlite3.Connection | None = None
        self._fd = -1
        self._synced = True
        self._user = 0
        self._leases: deque[int] = deque()
        self._acknowledges = False
        self._listener: Listener | None = None
        self._said: list[str] = []

    # ------------------------------------------------------------------------------------------------------- a turn

    @contextlib.contextmanager
    def turn(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, alone; without `synced` a power failure may undo it. Damaged, UsageError: as `_open`;
        Broken: the disk refused, or the file was removed."""
        with self._mutex:
            try:
                if self._db is None:
                    self._open()
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                try:
                    check_there(self._fd, self.path)
                    db = self._db
                    assert db is not None
                    if synced != self._synced:
                        db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                        self._synced = synced
                    db.execute("BEGIN IMMEDIATE")
                    try:
                        yield db
                        db.execute("COMMIT")
                    except BaseException:
                        if db.in_transaction:
                            db.execute("ROLLBACK")
                        raise
                finally:
                    if self._fd >= 0:
                        fcntl.flock(self._fd, fcntl.LOCK_UN)
            except sqlite3.Error as error:
                raise explain(error, self.path) from error
            except (TypeError, UnicodeDecodeError, OverflowError) as error:  # where a number should be there is a text
                raise damaged(self.path, str(error)) from error
        while self._said:
            warnings.warn(self._said.pop(), RuntimeWarning, stacklevel=2)

    # ---------------------------------------------------------------------------------------------------- opening it

    def _open(self) -> None:
        """Damaged: the file isn't a whole queue. UsageError: it isn't safely ours, or made with other options."""
        check_place(self.path)
        with lifeline.unforked() as private:
            try:
                self._fd = private(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise UsageError(f"the queue file {self.path} can't be opened: {error.strerror}") from error
        try:
            check_ours(os.fstat(self._fd), self.path)
            check_sides(self.path)  # before, too: for root SQLite makes them root's as it opens them
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
            self._db = db
            self._adopt(db)
        except BaseException:
            self._close()
            raise
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _adopt(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application and os.fstat(self._fd).st_size == 0:
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={VERSION}")
            for table in _TABLES:
                db.execute(table)
            db.execute("INSERT INTO meta VALUES (?, ?, 0, 0, 0)", (self.maxsize, self.order))
            db.execute("COMMIT")
        elif application != APPLICATION:
            raise damaged(self.path, "another program wrote it")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise UsageError(f"{self.path} has format {version}, this Duodao reads format {VERSION}")
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.execute("PRAGMA synchronous=FULL")
        self._synced = True
        db.execute("BEGIN IMMEDIATE")
        try:
            self._join_in(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _join_in(self, db: sqlite3.Connection) -> None:
        check_sides(self.path)  # made by now, by us or by somebody else
        row = db.execute("SELECT maxsize, sorted FROM meta").fetchone()
        if row is None:
            raise damaged(self.path, "it doesn't say what it holds")
        if tuple(row) != (self.maxsize, self.order):
            raise UsageError(
                f"{self.path} was made with maxsize={row[0]} and order={row[1]!r}: open it with the same, not with "
                f"maxsize={self.maxsize} and order={self.order!r}"
            )
        if self._user:  # it was open before a fork
            return
        self._meta(db)
        self._recover(db)
        if not db.execute("SELECT count(*) FROM user").fetchone()[0]:
            db.execute("UPDATE meta SET shut = 0")  # a shutdown ends with the last who had it open
        me = os.getpid(), start_of(os.getpid()) or 0, space()
        self._user = db.execute("INSERT INTO user (pid, start, space, let_go) VALUES (?, ?, ?, 0)", me).lastrowid or 0

    def _recover(self, db: sqlite3.Connection) -> list[tuple[int, int]]:
        """Put back what ended processes had in hand. Returns those that live, as (pid, start)."""
        alive = []
        for user, pid, start, where, let_go in db.execute("SELECT id, pid, start, space, let_go FROM user").fetchall():
            if user == self._user:
                continue
            here, there = space().split(" "), str(where).split(" ")
            if here[0] == there[0] and (here != there or start_of(pid) == start):
                alive.append((pid, start))  # one in another namespace can't be looked for
                continue
            count = db.execute("UPDATE item SET taker = NULL WHERE taker = ?", (user,)).rowcount
            db.execute("DELETE FROM user WHERE id = ?", (user,))
            self._count(db, count, -let_go)
            os.utime(self._fd)
            if count:
                self._said.append(
                    f"process {pid} ended with {count} items of the queue {self.path} in hand, got and not task_done: "
                    "they stand in front and will be got again"
                )
        return alive

    @staticmethod
    def _count(db: sqlite3.Connection, ready: int, unfinished: int) -> None:
        db.execute(
            "UPDATE meta SET ready = max(0, ready + ?), unfinished = max(0, unfinished + ?)", (ready, unfinished)
        )

    # --------------------------------------------------------------------------------------------------------- steps

    def look(self) -> tuple[int, int, bool]:
        """(ready, unfinished, is it shut down)."""
        with self.turn(synced=False) as db:
            return self._meta(db)

    def _meta(self, db: sqlite3.Connection) -> tuple[int, int, bool]:
        ready, unfinished, shut = db.execute("SELECT ready, unfinished, shut FROM meta").fetchone()
        if not isinstance(ready, int) or not isinstance(unfinished, int):
            raise damaged(self.path, "its counts are no numbers")
        return ready, unfinished, bool(shut)

    def put(self, rows: Sequence[tuple[bytes | None, bytes]]) -> int:
        """Put as many of these (rank, body) as there is room for; how many."""
        with self.turn() as db:
            ready, _, shut = self._meta(db)
            if shut:
                raise ShutDown(f"the queue {self.path} was shut down: it takes no more items")
            part = rows[: max(0, self.maxsize - ready)]
            if part:
                db.executemany(
                    "INSERT INTO item (rank, body, sum) VALUES (?, ?, ?)",
                    [(rank, body, zlib.crc32(body)) for rank, body in part],
                )
                self._count(db, len(part), len(part))
                if not ready:
                    os.utime(self._fd)
            elif self._listener is not None:
                self._listener.mind(self._recover(db))
        return len(part)

    def take(self, n: int) -> list[bytes]:
        """Up to n bodies that are there, of some SOFT bytes together. ShutDown: there is none and will be none."""
        with self.turn(synced=False) as db:
            ready, _, shut = self._meta(db)
            if not ready:
                alive = self._recover(db)
                if self._listener is not None:
                    self._listener.mind(alive)
                ready = self._meta(db)[0]
            if not ready:
                if shut:
                    raise ShutDown(f"the queue {self.path} was shut down, and holds no item")
                return []
            found, size = [], 0
            query = f"SELECT id, body, sum FROM item WHERE taker IS NULL ORDER BY {_ORDERS[self.order]} LIMIT ?"  # noqa: S608
            for row in db.execute(query, (n,)):
                if not isinstance(row[1], bytes) or zlib.crc32(row[1]) != row[2]:
                    raise damaged(self.path, f"item {row[0]} is not what was put")
                found.append(row)
                size += len(row[1])
                if size > SOFT:
                    break
            db.executemany("UPDATE item SET taker = ? WHERE id = ?", [(self._user, row[0]) for row in found])
            self._count(db, -len(found), 0)
            over = 0 if self._acknowledges else max(0, len(self._leases) - KEPT)
            old = [self._leases[at] for at in range(over)]
            if old:
                db.executemany("DELETE FROM item WHERE id = ?", [(id,) for id in old])
                db.execute("UPDATE user SET let_go = let_go + ? WHERE id = ?", (len(old), self._user))
            if ready >= self.maxsize:
                os.utime(self._fd)
        for _ in old:
            self._leases.popleft()
        self._leases.extend(row[0] for row in found)
        return [row[1] for row in found]

    def give_back(self, count: int) -> None:
        """The last `count` that were taken were not wanted."""
        with self.turn(synced=False) as db:
            ids = [self._leases.pop() for _ in range(min(count, len(self._leases)))]
            db.executemany("UPDATE item SET taker = NULL WHERE id = ?", [(id,) for id in ids])
            self._count(db, len(ids), 0)
            os.utime(self._fd)

    def done(self) -> None:
        """One is done with: the one this process took first, if it has one. ValueError: more often than were put."""
        with self.turn(synced=False) as db:
            unfinished = self._meta(db)[1]
            if not unfinished:
                raise ValueError("task_done() called too many times")
            if self._leases:
                db.execute("DELETE FROM item WHERE id = ?", (self._leases[0],))
            else:
                db.execute("UPDATE user SET let_go = max(0, let_go - 1) WHERE id = ?", (self._user,))
            self._count(db, 0, -1)
            if unfinished == 1:
                os.utime(self._fd)
        if self._leases:
            self._leases.popleft()
        self._acknowledges = True

    def all_done(self) -> bool:
        """Is none unfinished?"""
        with self.turn(synced=False) as db:
            unfinished = self._meta(db)[1]
            if unfinished and self._listener is not None:
                self._listener.mind(self._recover(db))
            return not unfinished

    def shutdown(self, immediate: bool) -> None:
        """For all who have the file open."""
        with self.turn() as db:
            db.execute("UPDATE meta SET shut = 1")
            if immediate:
                count = db.execute("DELETE FROM item WHERE taker IS NULL").rowcount
                self._count(db, -count, -count)
            os.utime(self._fd)

    # ------------------------------------------------------------------------------------------------ waiting, ending

    def listen(self) -> None:
        """Have those who are parked woken when something changes."""
        with self._mutex:
            if self._listener is None and not self.left:
                self._listener = Listener(self.path, self.wake)

    def wake(self) -> None:
        """Let all who are parked look again."""
        for parked in (self.getters, self.putters, self.joiners):
            if parked:
                lot.wake_all(parked)

    def leave(self) -> None:
        """This process is done with the file: what it has in hand is settled; its last user leaves one plain file."""
        if self.left or self.pid != os.getpid():
            return
        self.left = True
        if self._listener is not None:
            self._listener.stop()
        if self._user:
            with contextlib.suppress(DuodaoError), self.turn() as db:
                self._settle(db)
        with self._mutex:
            self._close()

    def _settle(self, db: sqlite3.Connection) -> None:
        row = db.execute("SELECT let_go FROM user WHERE id = ?", (self._user,)).fetchone()
        let_go = row[0] if row is not None else 0
        if self._acknowledges:
            count = db.execute("UPDATE item SET taker = NULL WHERE taker = ?", (self._user,)).rowcount
            self._count(db, count, -let_go)
        else:
            count = db.execute("DELETE FROM item WHERE taker = ?", (self._user,)).rowcount
            self._count(db, 0, -let_go - count)
        db.execute("DELETE FROM user WHERE id = ?", (self._user,))
        os.utime(self._fd)

    def _close(self) -> None:
        """The connection first: closing any other descriptor of the file would drop its locks."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error, OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX)  # of two that close at once, each would take the other for a user
                db.close()
        fd, self._fd = self._fd, -1
        lifeline.close_private(fd)


_trays: weakref.WeakSet[Tray] = weakref.WeakSet()


class _Forking:
    held: tuple[Tray, ...] = ()


def _before_fork() -> None:
    trays = sorted(_trays, key=id)
    _Forking.held = tuple(trays)
    for tray in trays:
        tray._mutex.acquire()
        tray._close()


def _after_fork_in_parent() -> None:
    for tray in _Forking.held:
        tray._mutex.release()
    _Forking.held = ()


def _after_fork_in_child() -> None:
    for tray in _Forking.held:
        tray._mutex = threading.Lock()
        for parked in (tray.getters, tray.putters, tray.joiners):
            parked.clear()
        tray._reset()
    _Forking.held = ()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
