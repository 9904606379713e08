"""duodao.Queue(via="pipe" | "unix:PATH" | "tcp://HOST:PORT"): the maker keeps the items, the others ask it for them.

    maker: Home ── memory queue (held.py) ◄── one thread (broker.py, requests.py) ◄─ pipes, sockets ─ Away: the clients

Promises:
- A put returns when the item is in. A get returns when the server has been told that it came.
- Any client may be killed at any instant: what was sent to it and not acknowledged stands in front again at once, what
  was acknowledged was in its hands. Its task_done is missing then, as that of any reader which died in a get.
- When the maker closes, its clients get Closed; when it dies, PeerLost, both at once. The items go with it.
- Only what our own tasks wrote is unpickled: see handshake.py for how they are known. Other programs that open the same
  unix: or tcp: address speak plain values (codec.py); whatever else is put or asked for is refused at both ends.
- TCP frames of our own tasks are marked against change (framing.py), and not encrypted: anybody on the way can read
  them. A unix socket's file is 0600.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, Full
from typing import Any, ClassVar, NoReturn, TypeVar

from duodao.channel import handshake, peers
from duodao.channel.away import Away, Link
from duodao.channel.base import Order, Queue, QueueStatistics, at_least_one, deadline
from duodao.channel.broker import Door
from duodao.channel.held import Held
from duodao.channel.home import Home
from duodao.channel.peers import Place
from duodao.channel.pipes import Control
from duodao.errors import Closed, PeerLost, UsageError

T = TypeVar("T")
_PIECE = 1000
"""Items of a put_many in one frame."""
_TRIES = 5


End = Home | Away
_ends: weakref.WeakValueDictionary[tuple[Place, bytes | None, int], End] = weakref.WeakValueDictionary()


def _known(place: Place, key: bytes | None) -> End | None:
    """What this process, not the one it was forked from, has of that queue."""
    end = _ends.get((place, key, os.getpid()))
    return end if end is not None and end._end.alive else None


def _reach(place: Place, key: bytes | None) -> End:
    end = _known(place, key)
    if end is None:
        end = _ends[place, key, os.getpid()] = Away(place, key)
    return end


class StreamQueue(Queue[T]):
    """What the pipe and socket queues have in common: a handle of an End."""

    _core: End

    def __init__(self, maxsize: int = 0, *, order: Order = "fifo", via: str = "pipe", name: str | None = None) -> None:
        super().__init__(maxsize, order=order, via=via, name=name)
        self._begin()
        self._hold(self._make())

    def _make(self) -> End:
        raise NotImplementedError

    def _begin(self) -> None:
        self._links: set[Link] = set()
        self._is_closed = False

    def _hold(self, core: End) -> None:
        self._core = core
        self._place, self._key = core.place, core.key
        users = vars(core).setdefault("users", set())
        token = object()
        users.add(token)
        self._release = weakref.finalize(self, _let_go, core, token)
        self._release.atexit = False

    def _home(self, door: Door, key: bytes) -> Home:
        held = Held(self.maxsize, order=self.order, name=self.name)
        home = _ends[door.place, key, os.getpid()] = Home(held, door, key)
        return home

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed(f"Queue {self.name!r} was closed here")

    def _end(self) -> Any:
        """What to ask. In a forked copy that is a connection of its own."""
        self._check_open()
        if self._core.pid != os.getpid():
            self._links = set()
            self._hold(_reach(self._place, self._key))
        return self._core

    @property
    def address(self) -> str:
        """Where it is served, in full: with the port that was picked for tcp://HOST:0."""
        return str(self._place)

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, waiting for room up to `timeout` seconds; see Queue.put. NotPicklable: it can't travel."""
        until = deadline(timeout) if block else 0.0
        if not self._end().put(self, (item,), until):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item, waiting for one up to `timeout` seconds; see Queue.get."""
        until = deadline(timeout) if block else 0.0
        found = self._end().get(self, 1, until)
        if not found:
            raise Empty
        return found[0]  # type: ignore[no-any-return]

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """Put all items in their order, many in one frame; see Queue.put_many."""
        until, count = deadline(timeout), 0
        end = self._end()
        try:
            for piece in self._pieces(items, end):
                put = end.put(self, piece, until)
                count += put
                if put < len(piece):
                    _full()
        except Exception as error:
            count += vars(error).get("put_count", 0)
            vars(error)["put_count"] = count
            error.add_note(f"the first {count} items had been put")
            raise
        return count

    def _pieces(self, items: Iterable[T], end: End) -> Iterator[Sequence[T]]:
        """The items, as many at a time as there is room for. What reading them raises comes after those before it."""
        if isinstance(items, list | tuple):
            for at in range(0, len(items), _PIECE):
                yield items[at : at + _PIECE]
            return
        iterator, failed, over = iter(items), None, False
        while not over:
            piece: list[T] = []
            room = end.room(self, _PIECE)
            try:
                while len(piece) < room:
                    piece.append(next(iterator))
            except StopIteration:
                over = True
            except BaseException as error:
                failed, over = error, True
            if piece:
                yield piece
        if failed is not None:
            raise failed

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Wait for an item, then take what is there up to `n`, in one frame; see Queue.get_many."""
        n = at_least_one(n)
        end, until = self._end(), deadline(timeout)
        found: list[T] = end.get(self, n, until)
        if not found:
            raise Empty
        while len(found) < n:
            try:
                more = end.get(self, n - len(found), 0.0)
            except Exception:
                break
            if not more:
                break
            found += more
        return found

    def qsize(self) -> int:
        """Items in it at some moment of the call."""
        return int(self._end().look(self)[0])

    def task_done(self) -> None:
        """Say that one item that was got is done with. ValueError: more often than items were put."""
        self._end().done(self)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every item that was put is done with. True, or False after `timeout` seconds."""
        return bool(self._end().join(self, deadline(timeout)))

    def shutdown(self, immediate: bool = False) -> None:
        """No more puts; gets until it is empty, or no more with `immediate`. For all who have the queue."""
        self._end().shutdown(self, immediate)

    @property
    def is_shutdown(self) -> bool:
        """Shutdown() was called, by anyone who has this queue."""
        return bool(self._end().look(self)[2])

    def statistics(self) -> QueueStatistics:
        """Its size, limits, and who waits, in all processes: those of others as far as the maker knows them."""
        size, unfinished, shut, getters, putters = self._end().look(self)
        return QueueStatistics(
            self.name, self.via, self.order, size, self.maxsize, unfinished, tuple(getters), tuple(putters), shut
        )

    def close(self) -> None:
        """End this handle. The maker's last one ends the queue: its clients get Closed, and a socket's file goes."""
        if self._is_closed:
            return
        self._is_closed = True
        core = self._core
        if core.pid == os.getpid():
            core.wake(self)
        self._release()
        if not core._end.alive and core.pid == os.getpid():
            core.settle()

    def __reduce__(self) -> Any:
        self._check_open()
        return _rebuild, (type(self), self._place, self._key, self.maxsize, self.order, self.via, self.name)


def _full() -> NoReturn:
    raise Full


def _let_go(core: End, token: object) -> None:
    """A handle is closed or collected. With the last one its end goes."""
    users = vars(core)["users"]
    users.discard(token)
    if not users and core.pid == os.getpid():
        core.leave()


def _rebuild(
    kind: type[StreamQueue[Any]], place: Place, key: bytes | None, maxsize: int, order: Order, via: str, name: str
) -> StreamQueue[Any]:
    queue = object.__new__(kind)
    Queue.__init__(queue, maxsize, order=order, via=via, name=name)
    queue._begin()
    queue._hold(_reach(place, key))
    return queue


class PipeQueue(StreamQueue[T]):
    """duodao.Queue(via="pipe"): for tasks of this program; Linux. See the module."""

    VIA: ClassVar[str] = "pipe"

    def _make(self) -> End:
        key = handshake.secret()
        return self._home(Control(key), key)


class SocketQueue(StreamQueue[T]):
    """duodao.Queue(via="unix:PATH" | "tcp://HOST:PORT"): for any process. See the module.

    Whoever makes the address first serves it; a later Queue of the same address, in any program, is its client and must
    have the same maxsize and order (else UsageError). PeerLost: what is there is no queue of ours.
    """

    VIA: ClassVar[str] = "socket"

    def _make(self) -> End:
        place, key = peers.parse(self.via), handshake.secret()
        known = _known(place, key)
        if known is not None:
            if isinstance(known, Home):
                self._compare(known.held.maxsize, known.held.order)
            return known
        for tries in range(_TRIES):
            listener = peers.serve(place)
            if listener is not None:
                return self._home(listener, key)
            away = Away(place, key, sure=False)
            try:
                facts = away.connect()
            except PeerLost as error:  # it ended in between, perhaps
                if tries == _TRIES - 1 or not ("nobody serves" in str(error) or "is gone" in str(error)):
                    raise
                continue  # the error isn't kept: it holds this frame, and that holds the queue
            self._compare(facts.maxsize, facts.order)
            _ends[place, away.key, os.getpid()] = away
            return away
        raise PeerLost(f"nobody serves {place}")

    def _compare(self, maxsize: int, order: str) -> None:
        if (maxsize, order) != (self.maxsize, self.order):
            raise UsageError(
                f"{self.via} is served with maxsize={maxsize} and order={order!r}: make it with the same, not with "
                f"maxsize={self.maxsize} and order={self.order!r}"
            )
