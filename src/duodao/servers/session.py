"""A connection as a coroutine sees it: messages come in, messages go out, and rooms connect it with the others.

    async def chat(session):                    connection ──► queue ──► async for message in session
        async for message in session:                             session.send ──► the peer, waits while it is slow
            session.broadcast(message)                       session.broadcast ──► room ──► every peer, waits for none

Invariants:
  1. The queue is bounded by pausing reading: at `QUEUED` messages the connection is read no further.
  2. A broadcast is framed once and written to all in one turn, so messages of one sender keep their order everywhere.
  3. Nobody waits for a peer that doesn't read: one whose unsent bytes exceed `CROWD` x write_high is dropped.
  4. All of it belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from duodao.errors import Closed, UsageError
from duodao.servers.rooms import EVERYONE, Rooms

if TYPE_CHECKING:
    from duodao.servers.connection import Connection

QUEUED = 64
"""Messages of one connection that wait for its coroutine."""
CROWD = 16
"""Times write_high that broadcasts may leave unsent for one peer."""


class Session:
    """One client of a server whose handler takes a session. Made by the server. Source: M27.

    peer: "127.0.0.1:51234". data: a dict for what the handler wants to keep. Use it from the handler's loop only.
    """

    __slots__ = ("_arrived", "_connection", "_rooms", "_waiters", "data", "hear", "peer")

    def __init__(self, connection: Connection, rooms: Rooms) -> None:
        self._connection = connection
        self._rooms = rooms
        self._arrived: deque[Any] = deque()
        self._waiters: list[asyncio.Future[None]] = []  # a handler may use it from several tasks
        self.hear = connection.hear
        self.peer = connection.peer
        self.data: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<Session {self.peer}>"

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Any:
        while self._rooms.crowded:  # what has been said to all goes out first
            await self._rooms.turn()
        while not self._arrived:
            self._connection.go_on()
            if self._arrived:
                break
            if self._connection.over:
                raise StopAsyncIteration
            await self._wait()
        return self._arrived.popleft()

    async def send(self, message: bytes | str) -> None:
        """Send to this client; waits while more than write_high is unsent.

        Raises Closed when the connection is gone.
        """
        self._connection.write(self._rooms.wrap(message))
        while self._connection.full and not self._connection.closed:
            await self._wait()
        if self._connection.closed:
            raise Closed(f"the connection to {self.peer} is closed")

    def broadcast(self, message: bytes | str, to: str = EVERYONE, *, including: bool = False) -> None:
        """Send to all clients in a room, "all" of the server at first; to this one too when `including`.

        Never waits: a client that doesn't read is dropped when its unsent bytes exceed 16 times write_high.
        """
        self._rooms.broadcast(to, self._rooms.wrap(message), None if including else self)

    def join(self, room: str) -> None:
        """From now on get what is broadcast to that room."""
        if room == EVERYONE:
            raise UsageError(f"every client is in the room {EVERYONE!r} for as long as it is connected")
        self._rooms.join(room, self)

    def leave(self, room: str) -> None:
        """No longer get what is broadcast to that room."""
        if room == EVERYONE:
            raise UsageError(f"every client is in the room {EVERYONE!r} for as long as it is connected")
        self._rooms.leave(room, self)

    def close(self) -> None:
        """End the connection when what was sent has gone out; `async for` ends."""
        self._arrived.clear()
        self._connection.finish()
        self.wake()

    # -- the connection's side ----------------------------------------------------------------------------------------

    def feed(self, messages: list[Any]) -> None:
        """Messages have come."""
        self._arrived += messages
        self.wake()

    def room(self) -> int:
        """How many more messages it may be fed."""
        return QUEUED - len(self._arrived)

    def wake(self) -> None:
        """Something has changed: a message, the end, or room to write."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter
