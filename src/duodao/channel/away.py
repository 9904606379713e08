"""A queue that another process serves, as its clients use it.

Each call has a connection to itself: an idle one, or a new one. So a thread that waits in get() keeps no other from
putting, and nothing has to tell answers apart. Whatever ends a call in the middle (Ctrl-C, a circle, close) ends its
connection with it: the server then takes back what was on its way, and nothing is left half said.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import select
import weakref
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from duodao.channel import codec, framing, handshake, peers, pipes
from duodao.channel.base import Awaited
from duodao.channel.framing import NOW, Frame, Stream
from duodao.channel.held import SOFT
from duodao.channel.peers import Place
from duodao.children import lifeline
from duodao.errors import Closed, NotPicklable, PeerLost, RemoteError, ShutDown, UsageError
from duodao.sync import graph

if TYPE_CHECKING:
    from duodao.channel.stream import StreamQueue

_IDLE = 8
"""Connections kept for the next calls."""
_SOON = 0.001
"""Seconds. A call that takes longer is published as a wait."""


class Link:
    """One connection, used by one call at a time. `signal` wakes that call, from any thread."""

    def __init__(self, stream: Stream, where: str) -> None:
        self.stream = stream
        self._where = where
        self._frames: deque[Frame] = deque()
        self._woken, self._waker = lifeline.private_pipe()
        os.set_blocking(self._waker, False)

    def signal(self) -> bool:
        """Have the call look around."""
        with contextlib.suppress(OSError):
            os.write(self._waker, b"!")
        return True

    def close(self) -> None:
        """End the connection. Idempotent."""
        if os.getpid() == self.stream._pid:
            self.stream.close()
            for fd in (self._woken, self._waker):
                lifeline.close_private(fd)
            self._woken = self._waker = -1

    def next(self, until: float | None) -> Frame | None:
        """The next frame; None when the time is over or the call was woken. PeerLost: the server is gone."""
        stream = self.stream
        try:
            while not self._frames:
                done = stream.flush()
                poll = select.poll()
                poll.register(stream.reader, select.POLLIN)
                poll.register(self._woken, select.POLLIN)
                if not done and stream.writer != stream.reader:
                    poll.register(stream.writer, select.POLLOUT)
                elif not done:
                    poll.register(stream.reader, select.POLLIN | select.POLLOUT)
                span = None if until is None else max(0.0, until - monotonic()) * 1000
                ready = dict(poll.poll(span))
                if self._woken in ready:
                    os.read(self._woken, 4096)
                    return None
                if ready.get(stream.reader, 0) & ~select.POLLOUT:
                    self._frames.extend(stream.read())
                elif not ready:
                    return None
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._last_words()
        return self._frames.popleft()

    def _last_words(self) -> None:
        """What the server said before it went, if it said something; else PeerLost."""
        with contextlib.suppress(EOFError, OSError):
            self._frames.extend(self.stream.read())
        if not self._frames:
            raise PeerLost(f"{self._where} is gone: its process closed it, ended, or was killed") from None

    def tell(self, kind: int, number: int) -> None:
        """Say something that has no answer. When the server is gone nobody needs it."""
        self.stream.add(kind, number)
        with contextlib.suppress(OSError):
            while not self.stream.flush():
                poll = select.poll()
                poll.register(self.stream.writer, select.POLLOUT)
                poll.poll(handshake.SECONDS * 1000)


class Away:
    """The client's side of the queue at `place`, shared by this process's handles of it."""

    def __init__(self, place: Place, key: bytes | None, *, sure: bool = True) -> None:
        """key: the secret of the program that serves it, None for a stranger. sure: see Greeter."""
        self.place = place
        self.key = key
        self.pid = os.getpid()
        self._sure = sure
        self._idle: deque[Link] = deque()
        self._end = weakref.finalize(self, _close_all, self._idle)

    def connect(self) -> handshake.Facts:
        """Make a connection and keep it. PeerLost: nobody serves that place, or somebody else."""
        link, facts = self._connect()
        self._idle.append(link)
        return facts

    def _connect(self) -> tuple[Link, handshake.Facts]:
        place = self.place
        stream = pipes.call(place, self.key or b"") if place.kind == "pipe" else peers.connect(place)
        link = Link(stream, str(place))
        try:
            seal = place.kind == "tcp"
            greeter = handshake.Greeter(stream, self.key, str(place), seal=seal, sure=self._sure)
            until = monotonic() + handshake.SECONDS
            while True:
                frame = link.next(until)
                if frame is None:
                    _silent(place)
                facts = greeter.hear(frame)
                if facts is not None:
                    self.key, self._sure = greeter.key, True
                    return link, facts
        except BaseException:
            link.close()
            raise

    def room(self, queue: StreamQueue[Any], most: int) -> int:
        """How many items to read ahead: as many as fit, `most` at most, one at least."""
        return min(most, max(1, queue.maxsize - int(self.look(queue)[0])))

    # Calls

    def put(self, queue: StreamQueue[Any], items: Sequence[Any], until: float | None) -> int:
        """Put items; how many went in before the time was over. What ends it early has `put_count`."""
        put = 0
        while put < len(items):
            parcels: list[codec.Parcel] = []
            size = 0
            for item in items[put:]:
                try:
                    parcel = self._pack(item)
                except Exception as error:
                    if parcels:
                        break  # those before it are put first
                    raise _counted(error, put) from error.__cause__
                parcels.append(parcel)
                size += len(parcel[1])
                if size > SOFT:
                    break
            frame = self._ask(
                queue, framing.PUT, len(parcels), codec.join(parcels), on=queue.on_room, until=until, before=put
            )
            put += frame.number
            if frame.kind == framing.FULL:
                return put
        return put

    def _pack(self, item: Any) -> codec.Parcel:
        parcel = codec.pack_plain(item) if self.key is None else codec.pack(item)
        most = (framing.STRANGERS if self.key is None else framing.OURS) - 16
        if len(parcel[1]) > most:
            raise UsageError(f"an item of {len(parcel[1])} bytes is larger than the {most} that {self.place} takes")
        return parcel

    def get(self, queue: StreamQueue[Any], n: int, until: float | None) -> list[Any]:
        """1 to n items; none when the time was over."""
        link = self._link(queue)
        try:
            frame = self._talk(link, queue, framing.GET, min(n, 0xFFFFFFFF), (), on=queue.on_item, until=until)
            if frame.kind == framing.EMPTY:
                self._keep(link, queue)
                return []
            items: list[Any] = []
            failed = self._unpack(codec.split(frame.body, frame.number), items)
            link.tell(framing.ACK, len(items) or 1)
        except BaseException:
            self._discard(link, queue)
            raise
        self._keep(link, queue)
        if failed is not None and not items:
            failed.add_note(f"an item of Queue {queue.name!r} can't be unpickled here: it was taken out")
            raise failed
        return items

    def _unpack(self, parcels: list[codec.Parcel], items: list[Any]) -> Exception | None:
        """As many as can be read; why the next one can't. It stands in front again, unless it is the first."""
        for parcel in parcels:
            if self.key is None and parcel[0] != codec.PLAIN:
                raise PeerLost(f"{self.place} is served by another program, and sent a pickle: that was not read")
            try:
                items.append(codec.unpack(parcel))
            except Exception as error:
                return error
        return None

    def done(self, queue: StreamQueue[Any]) -> None:
        """One item is done with."""
        self._ask(queue, framing.DONE, until=monotonic())

    def join(self, queue: StreamQueue[Any], until: float | None) -> bool:
        """Are all done, by then?"""
        return self._ask(queue, framing.JOIN, on=queue.on_done, until=until).kind == framing.OK

    def shutdown(self, queue: StreamQueue[Any], immediate: bool) -> None:
        """End it for all."""
        self._ask(queue, framing.SHUTDOWN, int(immediate), until=monotonic())

    def look(self, queue: StreamQueue[Any]) -> list[Any]:
        """[size, unfinished, is it shut down, getters, putters]."""
        frame = self._ask(queue, framing.LOOK, until=monotonic())
        try:
            size, unfinished, shut, getters, putters = json.loads(bytes(frame.body))
            return [int(size), int(unfinished), bool(shut), tuple(map(str, getters)), tuple(map(str, putters))]
        except (ValueError, TypeError):
            raise PeerLost(f"{self.place} answered what is not an answer") from None

    def wake(self, queue: StreamQueue[Any]) -> None:
        """Let the calls of this handle see that it was closed."""
        for link in list(queue._links):
            link.signal()

    def leave(self) -> None:
        """The last handle of this process is gone."""
        self._end()

    def settle(self) -> None:
        """After `leave` there is nothing to wait for."""

    # Connections

    def _link(self, queue: StreamQueue[Any]) -> Link:
        try:
            link = self._idle.popleft()
        except IndexError:
            link = self._connect()[0]
        queue._links.add(link)
        return link

    def _keep(self, link: Link, queue: StreamQueue[Any]) -> None:
        queue._links.discard(link)
        if len(self._idle) < _IDLE and self._end.alive:
            self._idle.append(link)
        else:
            link.close()

    @staticmethod
    def _discard(link: Link, queue: StreamQueue[Any]) -> None:
        queue._links.discard(link)
        link.close()

    def _ask(
        self,
        queue: StreamQueue[Any],
        kind: int,
        number: int = 0,
        pieces: Sequence[bytes] = (),
        *,
        until: float | None,
        on: Awaited | None = None,
        before: int = 0,
    ) -> Frame:
        link = self._link(queue)
        try:
            frame = self._talk(link, queue, kind, number, pieces, on=on, until=until, before=before)
        except (ShutDown, ValueError, TypeError, NotPicklable, RemoteError):
            self._keep(link, queue)  # they are answers
            raise
        except BaseException:
            self._discard(link, queue)
            raise
        self._keep(link, queue)
        return frame

    def _talk(
        self,
        link: Link,
        queue: StreamQueue[Any],
        kind: int,
        number: int,
        pieces: Sequence[bytes],
        *,
        until: float | None,
        on: Awaited | None,
        before: int = 0,
    ) -> Frame:
        """One request and its answer. Without a time (`until`) it waits for ever, else it is cancelled then."""
        now = until is not None and until <= monotonic()
        link.stream.add(kind, number, pieces, flags=NOW if now else 0)
        soon = monotonic() + _SOON
        frame = None if now else link.next(soon if until is None else min(soon, until))
        if frame is None and not now:
            frame = self._wait(link, queue, on or queue.on_done, until)
            if frame is None:
                link.stream.add(framing.CANCEL)
        last = monotonic() + handshake.SECONDS
        while frame is None:
            frame = link.next(last)
            queue._check_open()
            if frame is None and monotonic() >= last:
                _silent(self.place)
        return self._judge(queue, frame, before)

    def _wait(self, link: Link, queue: StreamQueue[Any], on: Awaited, until: float | None) -> Frame | None:
        edge = graph.begin(_thread.get_ident(), on, timed=until is not None, ticket=link)
        try:
            while True:
                frame = link.next(until)
                if edge.doom is not None:
                    raise edge.doom
                queue._check_open()
                if frame is not None or (until is not None and monotonic() >= until):
                    return frame
        finally:
            graph.end(edge)

    def _judge(self, queue: StreamQueue[Any], frame: Frame, before: int) -> Frame:
        """The answer, or what it says went wrong."""
        kind = frame.kind
        if kind in (framing.OK, framing.ITEMS, framing.FULL, framing.EMPTY, framing.SEEN):
            return frame
        put = before + frame.number
        if kind == framing.SHUT:
            raise _counted(ShutDown(f"Queue {queue.name!r} was shut down"), put)
        if kind == framing.CLOSED:
            raise _counted(Closed(f"Queue {queue.name!r} was closed by the process that made it"), put)
        if kind == framing.REFUSED:
            raise PeerLost(f"{self.place} refused this client: {bytes(frame.body).decode(errors='replace')}")
        if kind != framing.FAILED:
            raise PeerLost(f"{self.place} speaks another language")
        try:
            name, text = map(str, json.loads(bytes(frame.body)))
        except (ValueError, TypeError):
            name, text = "", "it said something unreadable"
        raise _counted(_ERRORS.get(name, RemoteError)(text), put)


_ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError, "NotPicklable": NotPicklable}


def _counted(error: Exception, put: int) -> Exception:
    vars(error)["put_count"] = put
    return error


def _silent(place: Place) -> NoReturn:
    raise PeerLost(
        f"{place} has not answered for {handshake.SECONDS:g} s: its process is stopped or overloaded. Whether the call "
        "was done is not known"
    )


def _close_all(links: deque[Link]) -> None:
    while links:
        links.pop().close()
