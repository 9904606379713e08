"""duodao.Queue(via="file:PATH"): a durable queue in one SQLite file, for any processes of this machine and this user.

Promises:
- A put returns when its items are on the disk (WAL, synchronous=FULL); put_many writes many with one sync.
- kill -9 of anybody at any instant loses nothing: a change is whole or not there. A power failure may undo the last
  gets and task_dones, which are not synced one by one: their items are got again.
- A get takes the item for its process; it leaves the file with task_done. What a process that was killed had got and
  not yet task_done stands in front again and is got again, by another or after a restart, which a RuntimeWarning says.
  So: at least once, and exactly once for who calls task_done as the last thing it does with an item.
- A program that never calls task_done sees no item twice while it lives, nor after a normal end (close, or the end of
  the interpreter): what it had got then counts as done. If it is killed, its last 1,000 items are got again.
  One that does call it gets again, after a normal end, what it had not said task_done for.
- Items left, the count of unfinished ones, and what is in hand survive restarts; a shutdown lasts until the last
  process has closed the file. The last one leaves one plain file, without -wal and -shm.
- Items are unpickled, so the file must be ours: regular, owned by the effective user, not writable by group or others,
  and so its -wal and -shm. It is made with mode 0600.
- order="priority" sorts by numbers, texts, bytes and tuples of these (sortable.py); others are a TypeError.

Not for network file systems. A process that is stopped (SIGSTOP) in the middle of its transaction holds up the others.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from queue import Empty, Full
from typing import Any, ClassVar, TypeVar

from duodao.channel import codec
from duodao.channel.base import Awaited, Order, Queue, QueueStatistics, at_least_one, cut_short, deadline, left
from duodao.channel.held import SOFT
from duodao.channel.sortable import sort_key
from duodao.channel.tray import Tray
from duodao.errors import Closed, UsageError
from duodao.sync import lot

T = TypeVar("T")
_PIECE = 1000
"""Items of a put_many in one transaction."""

_known: weakref.WeakValueDictionary[tuple[str, int], Tray] = weakref.WeakValueDictionary()


def _end_all() -> None:
    for tray in list(_known.values()):
        tray.leave()


atexit.register(_end_all)


class FileQueue(Queue[T]):
    """duodao.Queue(via="file:PATH"). See the module."""

    VIA: ClassVar[str] = "file"

    def __init__(self, maxsize: int = 0, *, order: Order = "fifo", via: str = "file:", name: str | None = None) -> None:
        super().__init__(maxsize, order=order, via=via, name=name)
        if not via[5:]:
            raise UsageError(f"via={via!r}: file:PATH needs a path")
        self.path = os.path.realpath(via[5:])  # one name for one file: closing it by a second drops SQLite's locks
        self._is_closed = False
        self._hold()
        self._tray.look()

    def _hold(self) -> None:
        key = self.path, os.getpid()
        tray = _known.get(key)
        if tray is None or tray.left:
            tray = _known[key] = Tray(self.path, self.maxsize, self.order)
        if (tray.maxsize, tray.order) != (self.maxsize, self.order):
            raise UsageError(
                f"{self.path} was made with maxsize={tray.maxsize} and order={tray.order!r}: open it with the same, "
                f"not with maxsize={self.maxsize} and order={self.order!r}"
            )
        self._tray = tray
        token = object()
        vars(tray).setdefault("users", set()).add(token)
        self._release = weakref.finalize(self, _let_go, tray, token)
        self._release.atexit = False

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed(f"Queue {self.name!r} was closed here")

    def _open(self) -> Tray:
        self._check_open()
        if _known.get((self.path, os.getpid())) is not self._tray:  # a forked copy: a user of its own
            self._hold()
        return self._tray

    def _wait(self, on: Awaited, parked: lot.Parked, step: Any, until: float | None) -> Any:
        found = step()
        if found or (until is not None and not left(until)):
            return found
        self._tray.listen()

        def ready() -> Any:
            self._check_open()
            return step()

        return lot.wait(on, parked, ready, left(until))

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item on the disk, waiting for room up to `timeout` seconds; see Queue.put. Damaged: see the module."""
        until = deadline(timeout) if block else 0.0
        tray = self._open()
        if not self._wait(self.on_room, tray.putters, partial(tray.put, [self._row(item)]), until):
            raise Full

    def _row(self, item: T) -> tuple[bytes | None, bytes]:
        rank = sort_key(item) if self.order == "priority" else None
        return rank, codec.pack(item)[1]

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item, waiting for one up to `timeout` seconds; see Queue.get. Damaged: see the module."""
        return self._get(1, deadline(timeout) if block else 0.0)[0]

    def _get(self, n: int, until: float | None) -> list[T]:
        tray = self._open()
        bodies = self._wait(self.on_item, tray.getters, partial(tray.take, n), until)
        if not bodies:
            raise Empty
        items: list[T] = []
        for at, body in enumerate(bodies):
            try:
                items.append(codec.unpack((codec.PICKLED, body)))
            except Exception as error:
                tray.give_back(len(bodies) - at - (not items))
                if items:
                    break
                error.add_note(f"an item of Queue {self.name!r} can't be unpickled here: it was taken out")
                raise
        return items

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """Put all items in their order, a thousand with one sync; see Queue.put_many."""
        until, count = deadline(timeout), 0
        tray = self._open()
        iterator, over = iter(items), False
        try:
            while not over:
                room = _PIECE if isinstance(items, list | tuple) else max(1, min(_PIECE, self.maxsize - self.qsize()))
                rows, failed = self._rows(iterator, room)
                over = not rows or failed is not None
                put = 0
                while put < len(rows):
                    step = partial(tray.put, rows[put:])
                    done = self._wait(self.on_room, tray.putters, step, until)
                    put += done
                    count += done
                    if not done:
                        raise Full  # noqa: TRY301  # put_count belongs to it, too
                if failed is not None:
                    raise failed  # noqa: TRY301  # it gets put_count, too
        except Exception as error:
            cut_short(error, count)
            raise
        return count

    def _rows(self, iterator: Any, room: int) -> tuple[Sequence[tuple[bytes | None, bytes]], BaseException | None]:
        """The next items as rows, and what reading or pickling the one after them raised."""
        rows: list[tuple[bytes | None, bytes]] = []
        size = 0
        try:
            for item in islice(iterator, room):
                rows.append(self._row(item))
                size += len(rows[-1][1])
                if size > SOFT:
                    break
        except BaseException as error:
            return rows, error
        return rows, None

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Wait for an item, then take what is there up to `n`, with one sync; see Queue.get_many."""
        n = at_least_one(n)
        found = self._get(n, deadline(timeout))
        while len(found) < n:
            try:
                found += self._get(n - len(found), 0.0)
            except Exception:
                break
        return found

    def qsize(self) -> int:
        """Items in it at some moment of the call."""
        return self._open().look()[0]

    def task_done(self) -> None:
        """One item is done with, and leaves the file: the first that this process has got. ValueError: too often."""
        self._open().done()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every item that was put, by anybody at any time, is done with. True, or False after `timeout`."""
        until, tray = deadline(timeout), self._open()
        return bool(self._wait(self.on_done, tray.joiners, tray.all_done, until))

    def shutdown(self, immediate: bool = False) -> None:
        """No more puts; gets until it is empty, or no more with `immediate`. For all who have the file open."""
        self._open().shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Shutdown() was called, by anyone who has this queue."""
        return self._open().look()[2]

    def statistics(self) -> QueueStatistics:
        """Its size, limits, and who waits in this process."""
        tray = self._open()
        size, unfinished, shut = tray.look()
        waiters = lot.names(tray.getters), lot.names(tray.putters)
        return QueueStatistics(self.name, self.via, self.order, size, self.maxsize, unfinished, *waiters, shut)

    def close(self) -> None:
        """End this handle. With the last of this process, what it has in hand is settled; items stay in the file."""
        if not self._is_closed:
            self._is_closed = True
            if self._tray.pid == os.getpid():
                self._tray.wake()
            self._release()

    def __reduce__(self) -> Any:
        self._check_open()
        return _rebuild, (self.path, self.maxsize, self.order, self.name)


def _let_go(tray: Tray, token: object) -> None:
    """A handle is closed or collected. With the last one this process leaves the file."""
    users = vars(tray)["users"]
    users.discard(token)
    if not users:
        tray.leave()


def _rebuild(path: str, maxsize: int, order: Order, name: str) -> FileQueue[Any]:
    return FileQueue(maxsize, order=order, via=f"file:{path}", name=name)
