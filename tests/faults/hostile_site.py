"""A web site for crawlers, with pages that no server should send: functions that write to the socket themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

PATIENCE = 10.0
CHUNK = bytes(64 * 1024)
RESET = struct.pack("ii", 1, 0)


@dataclass
class Request:
    """What a client asked for. `number`: how often this target was asked for, this time included."""

    method: str
    target: str
    headers: dict[str, str]
    number: int


@dataclass(eq=False)
class Wire:
    """The connection, for pages that write to it as they like. It is closed when the page's function returns."""

    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    sent: int = 0

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)

    async def closed(self) -> None:
        """Wait until the client has had enough."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """End the connection with RST: SO_LINGER of 0 s."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()


Answer = bytes | Callable[[Request, Wire], Awaitable[bytes | None]]


def answer(
    body: bytes = b"", status: str = "200 OK", kind: str | None = "text/html", headers: Iterable[str] = ()
) -> bytes:
    """A whole, honest response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def html(*links: str, title: str = "", head: str = "") -> bytes:
    """A page as text that links to others."""
    anchors = "".join(f'<a href="{link}">x</a>\n' for link in links)
    return f"<html><head><title>{title}</title>{head}</head><body>{anchors}</body></html>".encode()


def page(*links: str, title: str = "", head: str = "", status: str = "200 OK", headers: Iterable[str] = ()) -> bytes:
    """A response whose body is such a page."""
    return answer(html(*links, title=title, head=head), status=status, headers=headers)


def moved(to: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, None, [f"Location: {to}"])


@dataclass
class Site:
    """Listens on a port of its own, in a thread of its own, for as long as its `with` block.

    pages: target -> response; a function gets (request, wire), and bytes that it returns are sent. others: the rest.
    raw: called with each new connection, before a byte of it is read. `hits` counts requests by target, `sent` the
    bytes that functions sent.
    """

    pages: dict[str, Answer] = field(default_factory=dict)
    others: Answer = answer(b"none", "404 Not Found", "text/plain")
    tls: ssl.SSLContext | None = None
    raw: Callable[[Wire], Awaitable[None]] | None = None
    hits: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Site:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="hostile-site")
        self._thread.start()
        assert ready.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    async def leave(self) -> None:
        """From a page's function: nobody listens any more, and all connections end."""
        await self._shut()
        for wire in list(self._wires):
            wire.reset()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._tasks = asyncio.get_running_loop(), asyncio.Event(), set()
        self._wires: set[Wire] = set()
        self._loop.set_exception_handler(lambda loop, context: None)  # failed handshakes are what tests are about
        self._server = await asyncio.start_server(self._connected, sock=self._listening, ssl=self.tls)
        ready.set()
        await self._stop.wait()
        await self._shut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _shut(self) -> None:
        """Stop listening. What was accepted gets its transport first: a closed asyncio.Server refuses it, loudly."""
        if self._server.is_serving():
            self._loop.remove_reader(self._listening)
            await asyncio.sleep(0)
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        wire = Wire(writer, reader)
        self._wires.add(wire)
        try:
            if self.raw is not None:
                await self.raw(wire)
                return
            while await self._one(wire):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:  # by _serve; asyncio's own callback would log it
            pass
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            self._tasks.discard(task)
            self._wires.discard(wire)

    async def _one(self, wire: Wire) -> bool:
        """Answer one request. False: the connection ends."""
        head = (await wire.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        self.hits[target] += 1
        request = Request(method, target, headers, self.hits[target])
        self.requests.append(request)
        found = self.pages.get(target, self.others)
        if isinstance(found, bytes):
            await wire.send(found)
            return True
        try:
            returned = await found(request, wire)
            if returned is None:
                return False
            await wire.send(returned)
            return True
        finally:
            self.sent[target] += wire.sent
            wire.sent = 0


# Pages that no server should send.


async def endless(request: Request, wire: Wire) -> None:
    """A body of 10 GB, as long as somebody reads it."""
    await wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 10737418240\r\n\r\n<title>big</title>"
    )
    while True:
        await wire.send(CHUNK)


async def endless_chunks(request: Request, wire: Wire) -> None:
    """The same without saying how long it is."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await wire.send(b"10000\r\n" + CHUNK + b"\r\n")


async def drip(request: Request, wire: Wire) -> None:
    """A byte now and then: never silent for as long as a time-out between bytes would want, and never done."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.1)


async def drip_head(request: Request, wire: Wire) -> None:
    """The same, before the headers are over."""
    await wire.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.1)


async def silent(request: Request, wire: Wire) -> None:
    """No answer at all."""
    await wire.closed()


async def header_flood(request: Request, wire: Wire) -> None:
    """Headers without end."""
    await wire.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await wire.send(b"X-More: and more\r\n" * 1000)


async def huge_header(request: Request, wire: Wire) -> None:
    """One header of 10 MB."""
    await wire.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    for _ in range(160):
        await wire.send(b"x" * 65536)
    await wire.send(b"\r\nContent-Length: 0\r\n\r\n")


async def reset_in_body(request: Request, wire: Wire) -> None:
    """Half of the body, then RST."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n" + b"y" * 500)
    wire.reset()


async def reset_at_once(request: Request, wire: Wire) -> None:
    wire.reset()


async def hang_up(request: Request, wire: Wire) -> None:
    """The connection is closed without a byte of an answer."""


async def too_short(request: Request, wire: Wire) -> None:
    """Content-Length says 1,000, then the connection ends after 10."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n0123456789")


async def too_long(request: Request, wire: Wire) -> None:
    """Content-Length says 39, and more follows, that could be taken for the next answer."""
    await wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 39\r\n\r\n"
        b'<title>short</title><a href="/next">x</HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong'
    )


async def cut_chunk(request: Request, wire: Wire) -> None:
    """The connection ends inside a chunk."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nshort")


async def no_http(request: Request, wire: Wire) -> None:
    await wire.send(b"220 mail.example ESMTP\r\n\x00\xff\xfe\r\n\r\n")


def bomb(size: int) -> bytes:
    """`size` zero bytes, about a thousandth of them on the wire."""
    packer = zlib.compressobj(9, wbits=31)
    packed = [packer.compress(CHUNK) for _ in range(size // len(CHUNK))]
    return answer(b"".join([*packed, packer.flush()]), headers=["Content-Encoding: gzip"])


def broken_gzip() -> bytes:
    """Compressed data cut in half, its length honest."""
    whole = gzip.compress(html("/lost", title="never read") * 100)
    return answer(whole[: len(whole) // 2], headers=["Content-Encoding: gzip"])


def flapping(times: int, then: bytes, status: str = "500 Internal Server Error", headers: Iterable[str] = ()) -> Answer:
    """Fails that often, then answers."""

    async def flap(request: Request, wire: Wire) -> bytes:
        return answer(b"failed", status, "text/plain", headers) if request.number <= times else then

    return flap
