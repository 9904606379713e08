"""What clients ask of a queue, as steps on the maker's memory queue that never block.

Invariants:
  1. A client has one request at a time, and has read its answer before the next; only ACK and CANCEL may come
     meanwhile. So what is kept for one that doesn't read is one answer.
  2. An entry is in the queue or in one client's `sent`, until that client's ACK. When the client ends, by any cause,
     what is in `sent` goes back to the front.
  3. A Turn that was rung for a client which didn't use it (it ended, or gave up) is rung for the next.
"""

from __future__ import annotations

import contextlib
import json
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, cast

from duodao.channel import codec, framing, handshake
from duodao.channel.framing import NOW, Frame, Stream
from duodao.channel.held import Held
from duodao.errors import Closed, NotPicklable, PeerLost, ShutDown
from duodao.pickling import said
from duodao.sync import lot
from duodao.sync.units import Far


class Turn(lot.Ticket):
    """A client parked in a lot of the queue. Signalling it lets the thread look again for that client."""

    __slots__ = ("_peer", "_tell")

    def __init__(self, peer: Peer, tell: Callable[[Peer], None]) -> None:
        super().__init__()
        self.unit = Far(peer.pid)
        self._peer = peer
        self._tell = tell

    def _ring(self) -> bool:
        self._tell(self._peer)
        return True


class Peer:
    """One client. sent: the entries it has not acknowledged. request: what it waits for, with its Turn in `lot`."""

    def __init__(self, stream: Stream, until: float) -> None:
        self.stream = stream
        self.until: float | None = until  # of the greeting, or of its leaving
        self.nonce = b""
        self.greeted = self.leaving = self.gone = False
        self.ours = False
        self.pid = 0
        self.sent: list[Any] = []
        self.request: Frame | None = None
        self.entries: list[Any] = []
        self.done = 0
        self.turn: Turn | None = None
        self.lot: lot.Parked = deque()
        self.events = selectors.EVENT_READ


class Desk:
    """Hears the clients of `held`. flush: sends what a client's stream has. ring: has `resume` called for a client."""

    def __init__(
        self, held: Held, key: bytes, *, seal: bool, flush: Callable[[Peer], None], ring: Callable[[Peer], None]
    ) -> None:
        self._held = held
        self._key = key
        self._seal = seal
        self._facts = handshake.Facts(held.maxsize, held.order, held.name)
        self._flush = flush
        self._ring = ring

    def hear(self, peer: Peer, frame: Frame) -> None:
        kind = frame.kind
        if not peer.greeted:
            peer.ours, peer.pid = handshake.judge(
                peer.stream, frame, peer.nonce, self._key, self._facts, seal=self._seal
            )
            peer.greeted, peer.until = True, None
            self._flush(peer)
        elif kind == framing.ACK:
            sent, peer.sent = peer.sent, []
            self._held.take_back(sent[frame.number :])
        elif kind == framing.CANCEL:
            if peer.request is not None:
                self._unpark(peer, used=False)
                self._give_up(peer, peer.request)
        elif peer.request is not None or peer.sent or peer.stream.unsent:
            raise PeerLost("the client sent a request before the end of its last one")
        else:
            self._ask(peer, frame)

    def _ask(self, peer: Peer, frame: Frame) -> None:
        held = self._held
        try:
            if frame.kind in (framing.PUT, framing.GET, framing.JOIN):
                peer.done = 0
                if frame.kind == framing.PUT:
                    parcels = codec.split(frame.body, frame.number)
                    if not peer.ours and any(form != codec.PLAIN for form, _ in parcels):
                        _refuse("the client is of another program, and sent a pickle: that was not read")
                    if not peer.ours:  # what can't be read is the fault of who sent it, and not to meet the reader
                        for parcel in parcels:
                            codec.unpack_plain(parcel[1])
                    peer.entries = [held.entry(parcel) for parcel in parcels]
                peer.request = frame._replace(body=memoryview(b""))
                self._step(peer, peer.request)
                return
            if frame.kind == framing.DONE:
                held.task_done()
                self._answer(peer, framing.OK)
            elif frame.kind == framing.SHUTDOWN:
                held.shutdown(bool(frame.number))
                self._answer(peer, framing.OK)
            elif frame.kind == framing.LOOK:
                self._answer(peer, framing.SEEN, 0, json.dumps(look(held)).encode())
            else:
                _refuse(f"the client sent an unknown request, {frame.kind}")
        except (PeerLost, Closed) as error:
            if isinstance(error, PeerLost) and (frame.kind != framing.PUT or not peer.ours):
                raise
            self._fail(peer, error)
        except Exception as error:
            self._fail(peer, error)

    def resume(self, peer: Peer) -> None:
        request = peer.request
        if request is None:
            self._unpark(peer, used=False)
            return
        self._step(peer, request, again=True)

    def _step(self, peer: Peer, request: Frame, *, again: bool = False) -> None:
        """As far as it goes now. What is not finished parks, and looks once more: what was freed since woke nobody."""
        before = peer.done
        try:
            finished = self._try(peer, request)
            if not finished and not request.flags & NOW:
                used = again and peer.done > before
                if again:
                    self._unpark(peer, used=True)
                self._park(peer, request, first=again and not used)
                finished = self._try(peer, request)
        except Exception as error:
            self._unpark(peer, used=False)
            self._fail(peer, error)
            return
        if finished:
            self._unpark(peer, used=again)
            peer.request = None
            self._flush(peer)
        elif request.flags & NOW:
            self._give_up(peer, request)

    def _try(self, peer: Peer, request: Frame) -> bool:
        """Do what can be done now; True when the answer is on its way."""
        held = self._held
        if request.kind == framing.PUT:
            while peer.done < len(peer.entries):
                count = held._offer_some(peer.entries, peer.done)
                if not count:
                    return False
                peer.done += count
            peer.entries = []
            peer.stream.add(framing.OK, peer.done)
            return True
        if request.kind == framing.JOIN:
            if not held._all_done():
                return False
            peer.stream.add(framing.OK)
            return True
        entries = held.take(max(1, request.number))
        if not entries:
            return False
        try:
            parcels = [self._for(peer, held.parcel(entry)) for entry in entries]
        except BaseException:
            held.take_back(entries)
            raise
        peer.sent = entries
        peer.stream.add(framing.ITEMS, len(parcels), codec.join(parcels))
        return True

    def _for(self, peer: Peer, parcel: codec.Parcel) -> codec.Parcel:
        """A parcel as this client may read it. NotPicklable: there is no such form of it."""
        if peer.ours or parcel[0] == codec.PLAIN:
            return parcel
        return codec.pack_plain(codec.unpack(parcel))

    def _park(self, peer: Peer, request: Frame, *, first: bool) -> None:
        held = self._held
        peer.turn = Turn(peer, self._ring)
        peer.lot = {framing.PUT: held._putters, framing.GET: held._getters}.get(request.kind, held._joiners)
        (peer.lot.appendleft if first else peer.lot.append)(peer.turn)

    def _unpark(self, peer: Peer, *, used: bool) -> None:
        turn, peer.turn = peer.turn, None
        if turn is None:
            return
        rung = not turn.close()
        with contextlib.suppress(ValueError):  # it was taken out by who rang it
            peer.lot.remove(cast("Any", turn))
        if rung and not used:
            lot.wake(peer.lot)

    def _give_up(self, peer: Peer, request: Frame) -> None:
        self._answer(peer, framing.FULL if request.kind == framing.PUT else framing.EMPTY, peer.done)

    def _fail(self, peer: Peer, error: BaseException) -> None:
        if isinstance(error, ShutDown):
            self._answer(peer, framing.SHUT, peer.done)
        elif isinstance(error, Closed):
            self._answer(peer, framing.CLOSED, peer.done)
        else:
            kind = next((base.__name__ for base in _TOLD if isinstance(error, base)), "")
            text = str(error) if kind else said(error)
            self._answer(peer, framing.FAILED, peer.done, json.dumps([kind, text]).encode())

    def _answer(self, peer: Peer, kind: int, number: int = 0, body: bytes = b"") -> None:
        peer.request = None
        peer.entries = []
        peer.stream.add(kind, number, [body])
        self._flush(peer)

    def let_go(self, peer: Peer) -> None:
        sent, peer.sent = peer.sent, []
        self._held.take_back(sent)
        self._unpark(peer, used=False)
        peer.request = None


def _refuse(why: str) -> NoReturn:
    raise PeerLost(why)


_TOLD: tuple[type[Exception], ...] = (NotPicklable, ValueError, TypeError)
"""Errors that a client raises as the same class."""


def look(held: Held) -> list[Any]:
    """What a client may ask about the queue."""
    seen = held.statistics()
    return [seen.size, seen.unfinished, seen.is_shutdown, seen.getters, seen.putters]
