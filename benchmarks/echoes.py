"""Echo servers, one process each: python -m benchmarks.echoes NAME -> says its port, serves until stdin ends."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

BACKLOG = 4096


def ready(port: int, done: Callable[[], Any]) -> None:
    """Say the port; `done` is called, in a thread, when the end is asked for."""

    def wait() -> None:
        sys.stdin.buffer.read()
        done()

    threading.Thread(target=wait, daemon=True).start()
    print(port, flush=True)


async def until_asked(server: asyncio.Server) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    ready(server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(over.set))
    await over.wait()
    os._exit(0)  # 10,000 connections need no farewell


class Echo(asyncio.Protocol):
    """The least that a server can do: what comes goes back, with no idea of messages."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def protocol() -> None:
    await until_asked(await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=BACKLOG))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As the documentation of asyncio shows it, with drain."""
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def streams() -> None:
    await until_asked(await asyncio.start_server(answer, "127.0.0.1", 0, backlog=BACKLOG))


def on_uvloop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    import uvloop

    uvloop.run(main())


def gevent_server() -> None:
    from gevent.server import StreamServer

    def lines(sock: Any, _address: Any) -> None:
        file = sock.makefile("rb")
        for line in file:
            sock.sendall(line)

    server = StreamServer(("127.0.0.1", 0), lines, backlog=BACKLOG)
    server.start()
    ready(server.server_port, lambda: os._exit(0))
    server.serve_forever()


def plain(message: bytes) -> bytes:
    return message


async def waiting(message: bytes) -> bytes:
    return message


def ours(work: Callable[[Any], Any], address: str = "tcp://127.0.0.1:0", **options: Any) -> None:
    import duodao

    over = threading.Event()
    with duodao.Server(work, address, **options) as server:
        ready(int(server.address.rpartition(":")[2]), over.set)
        over.wait()
        server.close()


SERVERS: dict[str, Callable[[], Any]] = {
    "uvloop protocol": lambda: on_uvloop(protocol),
    "uvloop streams": lambda: on_uvloop(streams),
    "asyncio protocol": lambda: asyncio.run(protocol()),
    "asyncio streams": lambda: asyncio.run(streams()),
    "gevent": gevent_server,
    "ours": lambda: ours(plain),
    "ours, async": lambda: ours(waiting),
    "asgi": lambda: ours(app, "http://127.0.0.1:0", processes=int(sys.argv[2])),
    "request": lambda: ours(hello, "http://127.0.0.1:0", processes=int(sys.argv[2])),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The same application for every HTTP server."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Hello, world!"})


def hello(_request: Any) -> str:
    return "Hello, world!"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    SERVERS[sys.argv[1]]()
