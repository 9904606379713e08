"""The thread that serves a queue to its clients: their requests are steps on the maker's memory queue.

    clients ── pipes, sockets ──► one thread, one selector ── _offer_some, take, … ──► Held ◄── the maker's own threads
                                        ▲                                               │
                                        └── a client that must wait has its Turn ◄──────┘
                                            parked in the queue's own lot

So all waiters, near and far, stand in one line. The thread never blocks but in its selector, and ends with `stop`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections import deque
from time import monotonic
from typing import Any, Protocol

from duodao.channel import framing, handshake
from duodao.channel.framing import Stream
from duodao.channel.held import Held
from duodao.channel.peers import Place
from duodao.channel.requests import Desk, Peer
from duodao.children import lifeline
from duodao.errors import PeerLost

MOST = 4096
"""Clients at once."""
_PAUSE = 1.0  # seconds for which nobody is let in, when descriptors ran out and even the spare one didn't help


class Door(Protocol):
    """Where clients come in: peers.Listener, pipes.Control."""

    fd: int
    place: Place

    def accept(self) -> Stream | None: ...
    def turn_away(self) -> Stream | None: ...
    def replace_spare(self) -> None: ...
    def close(self) -> None: ...


class Broker:
    """Serves `held` to whoever comes in by `door`, until `stop`. seal: frames of our own tasks are marked."""

    def __init__(self, held: Held, door: Door, key: bytes, *, seal: bool) -> None:
        self._held = held
        self._door = door
        self._key = key
        self._desk = Desk(held, key, seal=seal, flush=self._flush, ring=self.look_again)
        self._peers: set[Peer] = set()
        self._waiting: deque[Peer] = deque()  # those with `until`, the earliest first: all get the same time
        self._woken: deque[Peer] = deque()
        self._awake = False
        self._stopping = False
        self._shut_until: float | None = None
        self._pid = os.getpid()
        self._reader, self._waker = lifeline.private_pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._reader, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ, None)
        self._selector.register(door.fd, selectors.EVENT_READ, door)
        self._thread = threading.Thread(target=self._run, name=f"duodao-queue-{held.name}", daemon=True)
        self._thread.start()

    # From any thread

    def look_again(self, peer: Peer) -> None:
        """Something changed for this client."""
        self._woken.append(peer)
        if not self._awake and threading.current_thread() is not self._thread:
            self._wake()

    def _wake(self) -> None:
        self._awake = True
        with contextlib.suppress(OSError):  # full: it will look; closed: it has ended
            os.write(self._waker, b"!")

    def stop(self) -> None:
        """Have the thread end, without waiting for it. In a forked copy it does nothing. Idempotent."""
        if os.getpid() == self._pid:
            self._stopping = True
            self._wake()

    def join(self) -> None:
        """Wait until it has ended."""
        if os.getpid() == self._pid and threading.current_thread() is not self._thread:
            self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(self._patience()):
                    self._attend(key.data)
                while self._woken:
                    peer = self._woken.popleft()
                    if peer.turn is not None and peer.turn.rung:
                        self._desk.resume(peer)
                self._expire()
        finally:
            self._held.close()
            self._door.close()
            for peer in list(self._peers):
                peer.stream.add(framing.CLOSED)
                with contextlib.suppress(OSError):
                    peer.stream.flush()
                self._drop(peer)
            self._selector.close()
            lifeline.close_private(self._waker)
            lifeline.close_private(self._reader)

    def _patience(self) -> float | None:
        """Seconds until somebody's time is over; None when nobody has one."""
        while self._waiting and (self._waiting[0].gone or self._waiting[0].until is None):
            self._waiting.popleft()
        ends = [peer.until for peer in list(self._waiting)[:1] if peer.until is not None]
        if self._shut_until is not None:
            ends.append(self._shut_until)
        return max(0.0, min(ends) - monotonic()) if ends else None

    def _expire(self) -> None:
        now = monotonic()
        while self._waiting and (self._waiting[0].until or 0.0) <= now:
            peer = self._waiting.popleft()
            if peer.gone or peer.until is None:
                continue
            if peer.leaving:
                self._drop(peer)
            else:
                self._refuse(peer, f"it said nothing for {handshake.SECONDS:g} s")
        if self._shut_until is not None and self._shut_until <= now:
            self._shut_until = None
            self._selector.register(self._door.fd, selectors.EVENT_READ, self._door)

    def _attend(self, what: Any) -> None:
        if what is None:
            self._awake = False
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)
        elif isinstance(what, Peer):
            if not what.gone:
                self._serve(what)
        else:
            self._admit()

    def _admit(self) -> None:
        for _ in range(64):  # then the others have their turn
            try:
                stream = self._door.accept()
            except OSError:
                self._turn_away()
                return
            if stream is None:
                return
            peer = Peer(stream, monotonic() + handshake.SECONDS)
            self._peers.add(peer)
            self._selector.register(stream.reader, peer.events, peer)
            if len(self._peers) > MOST:
                self._refuse(peer, f"it has {MOST} clients already")
                continue
            peer.nonce = handshake.greet(stream, self._key)
            self._waiting.append(peer)
            self._flush(peer)

    def _turn_away(self) -> None:
        stream = self._door.turn_away()
        if stream is not None:
            stream.add(framing.REFUSED, 0, [b"its process has no file descriptor left"])
            with contextlib.suppress(OSError):
                stream.flush()
            stream.close()
        try:
            self._door.replace_spare()
        except OSError:
            stream = None
        if stream is None:
            self._selector.unregister(self._door.fd)
            self._shut_until = monotonic() + _PAUSE

    def _serve(self, peer: Peer) -> None:
        try:
            if peer.leaving:
                if not os.read(peer.stream.reader, 65536):
                    self._drop(peer)
                return
            if peer.stream.unsent:
                self._flush(peer)
            for frame in () if peer.gone else peer.stream.read():
                self._desk.hear(peer, frame)
                if peer.gone or peer.leaving:
                    return
        except BlockingIOError:
            return
        except (EOFError, OSError) as error:
            if isinstance(error, PeerLost):
                self._refuse(peer, str(error))
            else:
                self._drop(peer)

    def _flush(self, peer: Peer) -> None:
        """Send what the client takes, and listen for when it takes the rest."""
        try:
            whole = peer.stream.flush()
        except OSError:
            self._drop(peer)
            return
        wanted = selectors.EVENT_READ if whole else selectors.EVENT_READ | selectors.EVENT_WRITE
        if wanted == peer.events:
            return
        peer.events = wanted
        if peer.stream.reader == peer.stream.writer:
            self._selector.modify(peer.stream.reader, wanted, peer)
        elif whole:
            self._selector.unregister(peer.stream.writer)
        else:
            self._selector.register(peer.stream.writer, selectors.EVENT_WRITE, peer)

    def _refuse(self, peer: Peer, why: str) -> None:
        """Say why, and let it go. A socket that is closed with something unread would take the words back (RST)."""
        self._desk.let_go(peer)
        peer.stream.unsent.clear()
        peer.stream.seal_out = None
        peer.stream.add(framing.REFUSED, 0, [why.encode("utf-8", "replace")[: framing.GREETING]])
        self._flush(peer)
        if peer.gone:
            return
        if peer.stream.reader != peer.stream.writer:
            self._drop(peer)
            return
        peer.leaving = True
        peer.until = monotonic() + handshake.SECONDS
        self._waiting.append(peer)
        sock = socket.socket(fileno=peer.stream.writer)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.detach()

    def _drop(self, peer: Peer) -> None:
        """The client is gone: the others get what it had not acknowledged, and its turn."""
        if peer.gone:
            return
        self._desk.let_go(peer)
        peer.gone = True
        self._peers.discard(peer)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.stream.reader)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.stream.writer)
        peer.stream.close()
