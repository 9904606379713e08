"""Who hears what is said to a room, in this process; and what this process says to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from duodao.errors import UsageError

if TYPE_CHECKING:
    from duodao.servers.session import Session

EVERYONE = "all"
"""The room in which every client is for as long as it is connected."""


class Rooms:
    """All rooms of a process. A room exists while somebody is in it.

    relay: told of every broadcast as (room, bytes as they go over the wire), for clients of other processes.
    crowded: in this turn of the loop so much was said that it should go out before more is.
    """

    def __init__(self, wrap: Callable[[Sequence[bytes]], bytes], budget: int) -> None:
        self._wrap = wrap
        self._budget = budget
        self._said = 0
        self._turn: asyncio.Future[None] | None = None
        self._members: dict[str, dict[Session, Callable[[bytes], None]]] = {}
        self.relay: Callable[[str, bytes], None] | None = None

    @property
    def crowded(self) -> bool:
        """A sender should wait for the next turn: fast readers must not look slow for one turn's haul."""
        return self._said > self._budget

    def wrap(self, message: bytes | str) -> bytes:
        """The bytes that carry a message. Raises UsageError for what is neither bytes nor str."""
        if isinstance(message, str):
            message = message.encode()
        elif not isinstance(message, (bytes, bytearray, memoryview)):
            raise UsageError(f"a message is bytes or str, not {type(message).__name__}: {message!r:.100}")
        return self._wrap([bytes(message)])

    def join(self, room: str, session: Session) -> None:
        """From now on it hears what is said there."""
        self._members.setdefault(room, {})[session] = session.hear

    def leave(self, room: str, session: Session) -> None:
        """It no longer hears what is said there."""
        members = self._members.get(room)
        if members is not None:
            members.pop(session, None)
            if not members:
                del self._members[room]

    def leave_all(self, session: Session) -> None:
        """It is gone."""
        for room in [room for room, members in self._members.items() if session in members]:
            self.leave(room, session)

    def broadcast(self, room: str, data: bytes, without: Session | None) -> None:
        """To all members here, and to those of other processes."""
        self.deliver(room, data, without)
        if self.relay is not None:
            self.relay(room, data)

    def deliver(self, room: str, data: bytes, without: Session | None = None) -> None:
        """To all members here."""
        self._said += len(data)
        if self._turn is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.create_future()
            loop.call_soon(self._next)
        for session, hear in tuple(self._members.get(room, {}).items()):  # one that is dropped leaves the room
            if session is not without:
                hear(data)

    async def turn(self) -> None:
        """Until the next turn of the loop."""
        if self._turn is not None:
            await asyncio.shield(self._turn)

    def _next(self) -> None:
        turn, self._turn, self._said = self._turn, None, 0
        if turn is not None:
            turn.set_result(None)
