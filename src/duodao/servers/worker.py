"""What runs in one process of a TCP server, the same in the caller's process and in a child: all on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable
from math import inf
from typing import Any

from duodao.errors import Closed
from duodao.lanes.base import contain
from duodao.servers.connection import Connection
from duodao.servers.dispatch import Dispatch
from duodao.servers.figures import Figures
from duodao.servers.framing import FRAMERS, Framer
from duodao.servers.handler import Handler
from duodao.servers.options import Options
from duodao.servers.rooms import EVERYONE, Rooms
from duodao.servers.session import Session
from duodao.servers.timeouts import Timeouts

ACCEPTED = 16
"""Connections that asyncio accepts in a turn; when there is no descriptor left it fails, and says so, so many times."""
LOOKS = 4
"""Looks at a quiet connection within `idle`: it is closed at most a quarter of `idle` late."""
DRIP = 256
"""Bytes within `idle` that count as traffic while no message gets whole."""
LINGER = 1.0
"""Seconds that a peer gets to close its side of a connection which the server has ended."""
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds of silence, then so many questions so many seconds apart: where `idle` is None this alone finds the dead."""
FRESH = 0.25
"""Seconds of a drain in which who has just connected may send a first message."""
LOGGED, WINDOW = 50, 10.0
"""Errors that are logged in so many seconds; more are counted only."""
_log = logging.getLogger("duodao.servers")


class Worker:
    """Serves the listening `sockets` on the running loop. start, then drain or abort; both end all there is.

    handler: what is called. The sockets are closed when it ends.
    """

    def __init__(self, handler: Handler, options: Options, sockets: list[socket.socket]) -> None:
        self.handler = handler
        self.options = options
        self.write_high = options.write_high
        self.framer: Callable[[], Framer] = functools.partial(FRAMERS[options.framing], options.max_frame)
        self.rooms = Rooms(FRAMERS[options.framing].wrap, options.write_high)
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._connections: dict[Connection, None] = {}
        self._sessions: dict[asyncio.Task[None], Connection] = {}
        self._gone = Figures(pid=os.getpid())  # the counts of connections that are over
        self._logged = 0
        self._window = 0.0
        self._empty: asyncio.Event | None = None
        self._draining = False

    # -- start and end ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Accepts when it returns."""
        options = self.options
        self.loop = loop = asyncio.get_running_loop()
        self.dispatch = Dispatch(self.handler, loop, self._refresh)
        self._empty = asyncio.Event()
        self.timeouts = Timeouts(loop)
        looks = None if options.idle is None else options.idle / LOOKS
        self._first = self.timeouts.limit(options.first_byte or looks, self._look_first)
        self._idle = self.timeouts.limit(looks, self._look_idle)
        self.stalls = self.timeouts.limit(options.stall, self._look_stalled)
        self.lingers = self.timeouts.limit(LINGER, self._look_lingering)
        self.awaited = self.timeouts.limit(options.first_byte or inf, self._look_awaited)  # all are kept: they count
        make, secure = self._door()
        for sock in self._sockets:
            _prepare(sock)
            server = await loop.create_server(make, sock=sock, backlog=min(ACCEPTED, options.backlog), **secure)
            self._servers.append(server)
            sock.listen(options.backlog)  # create_server has listened anew, with its own

    def _door(self) -> tuple[Callable[[], asyncio.Protocol], dict[str, Any]]:
        """What a new connection meets first, and how: itself, TLS, or the question who it is."""
        from duodao.servers import tls
        from duodao.servers.proxied import Proxied

        context = tls.context(self.options)
        if self.options.proxy_from:
            return lambda: Proxied(self, lambda peer: Connection(self, peer), context), {}
        if context is None:
            return lambda: Connection(self), {}
        return lambda: Connection(self), {"ssl": context, "ssl_handshake_timeout": self.options.first_byte}

    async def drain(self, grace: float) -> None:
        """Stop accepting, answer what has come, tell sessions, close; after `grace` seconds close what is left."""
        assert self._empty is not None
        self._draining = True
        await self._turn()  # who has connected already is accepted, and what they have sent is read
        for server in self._servers:
            server.close()
        await self._turn()
        ends = self.loop.time() + grace
        for connection in tuple(self._connections):
            if connection.received:
                connection.retire()
        await self._emptied(min(FRESH, grace))  # the others' first message is on its way: it would be lost
        for connection in tuple(self._connections):
            connection.retire()
        for unknown in tuple(self.awaited.due):
            unknown.abort()
        await self._emptied(ends - self.loop.time())
        await self.abort()

    async def _emptied(self, seconds: float) -> None:
        if (self._connections or self.awaited.due) and self._empty is not None and seconds > 0:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    async def abort(self) -> None:
        """End now."""
        for server in self._servers:
            server.close()
        for each in (*self._connections, *self.awaited.due):
            each.abort()
        tasks = list(self._sessions)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._turn()
        self.timeouts.stop()
        await self.dispatch.close(0.0)

    async def _turn(self) -> None:
        """Let everything that is ready have its turn, and what that makes ready too."""
        for _ in range(2):
            turned = self.loop.create_future()
            self.loop.call_soon(self.loop.call_soon, turned.set_result, None)
            await turned

    def _refresh(self) -> None:
        for connection in self._connections:
            connection.careful()

    # -- figures and the other processes ------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """Counts since the start. From the loop's thread."""
        total = self._gone + Figures()
        for connection in self._connections:
            _count(total, connection)
        total.connections = len(self._connections)
        total.lane, total.why = self.dispatch.lane, self.dispatch.why
        return total

    def on_broadcast(self, relay: Callable[[str, bytes], None]) -> None:
        """Call relay(room, data) for what sessions broadcast here; data as `deliver_broadcast` takes it elsewhere."""
        self.rooms.relay = relay

    def deliver_broadcast(self, room: str, data: bytes) -> None:
        """What another process broadcast, to the clients of this one."""
        self.rooms.deliver(room, data)

    # -- what connections tell ----------------------------------------------------------------------------------------

    def admit(self, connection: Connection, transport: Any) -> None:
        """A connection is there: serve it, or refuse it."""
        if self.crowded(transport):
            return
        self._gone.accepted += 1
        self._connections[connection] = None
        transport.set_write_buffer_limits(high=self.write_high)
        self._first.add(connection)
        if self.handler.kind == "session":
            self._open_session(connection)

    def crowded(self, transport: Any) -> bool:
        """Is it one over max_connections? Then it is refused."""
        if len(self._connections) + len(self.awaited.due) < self.options.max_connections:
            return False
        self._gone.accepted += 1
        self._gone.refused += 1
        transport.abort()
        return True

    def forget(self, connection: Connection) -> None:
        """A connection is lost; it is over when its session is too."""
        for limit in (self._first, self._idle, self.stalls, self.lingers):
            limit.drop(connection)
        if connection.session is None and connection in self._connections:
            del self._connections[connection]
            _count(self._gone, connection)
            if not self._connections and self._draining and self._empty is not None:
                self._empty.set()

    def refuse(self, why: str) -> None:
        """A connection that a listed proxy opened without saying whose it is."""
        self._gone.accepted += 1
        self._gone.refused += 1
        self._complain("%s: it is disconnected", why)

    def overran(self, connection: Connection) -> None:
        """A frame is over max_frame."""
        self._gone.overrun += 1
        self._complain("%s sent a message of more than %d bytes (max_frame): it is disconnected",
                       connection.peer, self.options.max_frame)  # fmt: skip

    def unreadable(self, connection: Connection, error: Exception) -> None:
        """A message isn't UTF-8."""
        self._gone.failed += 1
        self._complain("%s sent what is not UTF-8 (%s): it is disconnected", connection.peer, error)

    def drop(self, connection: Connection) -> None:
        """A peer doesn't read."""
        self._gone.dropped += 1
        if connection.session is not None:
            self.rooms.leave_all(connection.session)  # its loss is told a turn later: it isn't dropped twice
        connection.abort()

    def failed(self, connection: Connection, error: BaseException, message: Any) -> None:
        """A handler raised."""
        self._gone.failed += 1
        self._complain("%s failed for %s with message %s: the connection is closed", self.handler.work.name,
                       connection.peer, _short(message), error=error)  # fmt: skip

    def _complain(self, text: str, *args: Any, error: BaseException | None = None) -> None:
        now = self.loop.time()
        if now - self._window >= WINDOW:
            self._window, self._logged = now, 0
        self._logged += 1
        if self._logged <= LOGGED:
            _log.error(text, *args, exc_info=error)
        elif self._logged == LOGGED + 1:
            _log.error("more errors follow; until %.0f s are over they are only counted, in Figures", WINDOW)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _open_session(self, connection: Connection) -> None:
        session = connection.session = Session(connection, self.rooms)
        self.rooms.join(EVERYONE, session)
        task = self.loop.create_task(self._run_session(session), name=f"session {session.peer}")
        self._sessions[task] = connection
        task.add_done_callback(functools.partial(self._session_over, session))

    async def _run_session(self, session: Session) -> None:
        try:
            await self.handler.work.function(session)
        except (SystemExit, KeyboardInterrupt) as error:  # a task's would end the loop, and the server with it
            raise contain(error) from error

    def _session_over(self, session: Session, task: asyncio.Task[None]) -> None:
        connection = self._sessions.pop(task)
        self.rooms.leave_all(session)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (isinstance(error, Closed) and connection.closed):  # it spoke to one who has gone
            self.failed(connection, error, None)
        connection.session_over()

    # -- time limits --------------------------------------------------------------------------------------------------

    def _look_awaited(self, unknown: Any) -> None:
        unknown.expire()

    def _look_first(self, connection: Connection) -> None:
        if connection.received or connection.sent or self.options.first_byte is None:
            self._idle.add(connection)
        else:
            self._expire(connection)

    def _look_idle(self, connection: Connection) -> None:
        received, sent, messages = connection.mark
        moved = connection.sent != sent or connection.messages != messages or connection.received >= received + DRIP
        if moved or connection.owes_reply():
            connection.mark, connection.quiet = (connection.received, connection.sent, connection.messages), 0
        else:
            connection.quiet += 1
            if connection.quiet >= LOOKS:
                self._expire(connection)
                return
        self._idle.add(connection)

    def _expire(self, connection: Connection) -> None:
        self._gone.expired += 1
        connection.finish()

    def _look_stalled(self, connection: Connection) -> None:
        if not connection.unsent():
            self._look_lingering(connection)
        elif connection.took() < self.write_high:
            self.drop(connection)
        else:
            self.stalls.add(connection)

    def _look_lingering(self, connection: Connection) -> None:
        if connection.unsent():
            self.stalls.add(connection)  # it has ended, but its replies have not gone out
        elif connection.closed:
            connection.abort()


def _prepare(sock: socket.socket) -> None:
    """What accepted sockets inherit: replies leave at once, and a peer that is gone without a word is found out."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _count(total: Figures, connection: Connection) -> None:
    total.messages += connection.messages
    total.received += connection.received
    total.sent += connection.sent


def _short(message: Any) -> str:
    if message is None:
        return "(none)"
    text = repr(message[:200])
    return text if len(message) <= 200 else f"{text}… ({len(message)} in all)"
