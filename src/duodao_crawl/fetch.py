"""One request, one answer: a hop, a bounded body, and an error's text in place of an exception.

Redirects are not followed here: each hop goes back to the frontier, where scope, robots.txt, pacing and "seen before"
hold for it too. A body is read up to `max_size`, counted as decompressed, and the connection is closed beyond.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from duodao_crawl.canonical import canonical
from duodao_crawl.page import Body, Request
from duodao_crawl.robots import MOST
from duodao_crawl.settings import Settings

if TYPE_CHECKING:
    import aiohttp

MARKUP = ("text/html", "application/xhtml+xml", "")
"""Media types whose bodies are read. A missing one counts as HTML, as browsers have it."""
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (429, 500, 502, 503, 504)
"""Statuses that may be others in a while."""
PATIENCE = 300.0
"""Seconds: a Retry-After beyond this is not waited for."""


def client(settings: Settings) -> aiohttp.ClientSession:
    """What all fetches of a loop share: connections and DNS answers, no cookies."""
    import aiohttp

    idle = settings.idle
    # Not aiohttp's own, which is made when it is imported and knows nothing of a SSL_CERT_FILE that is set later.
    trust: ssl.SSLContext | bool = ssl.create_default_context() if settings.verify else False
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, ssl=trust, socket_factory=_Socket.of),
        timeout=aiohttp.ClientTimeout(total=settings.timeout, sock_connect=idle, sock_read=idle),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # ours is bounded
        headers={
            "User-Agent": settings.user_agent,
            "Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
        },
    )
    # It would ask once more by itself when a connection breaks: unpaced, uncounted, and beyond `retries`.
    session._retry_connection = False
    return session


class _Socket(socket.socket):
    """A client's socket. uvloop closes the descriptor of one that is reset as it is handed over, and doesn't tell it:
    when it is dropped it must not close that number again, which may be another file's by then."""

    @classmethod
    def of(cls, info: Any) -> _Socket:
        """For an address as getaddrinfo has it."""
        return cls(*info[:3])

    def __del__(self) -> None:
        self.detach()


class Fetcher:
    """`fetch` is the first stage of the run; tells when a request goes out, and when its connection is free."""

    def __init__(
        self, settings: Settings, started: Callable[[Request], None], landed: Callable[[Request], None]
    ) -> None:
        self._settings = settings
        self._started = started
        self._landed = landed

    async def fetch(self, request: Request, client: aiohttp.ClientSession) -> Body:
        """Ask for it. Never raises for what a server or the net can do."""
        self._started(request)
        began = perf_counter()
        try:
            body = await self._ask(request, client)
        finally:
            self._landed(request)
        return body._replace(seconds=round(perf_counter() - began, 6))

    async def _ask(self, request: Request, client: aiohttp.ClientSession) -> Body:
        import aiohttp
        from yarl import URL

        try:
            async with client.get(URL(request.url, encoded=True), allow_redirects=False) as answer:
                return await self._read(request, answer)
        except TimeoutError as error:
            limits = f"{self._settings.timeout:g} s in all or {self._settings.idle:g} s without a byte"
            return Body(request, error=f"timed out ({limits}){_detail(error)}", again=True)
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            return Body(request, error=f"TLS failed: {_text(error)}")
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            return Body(request, error=f"{type(error).__name__}: {_text(error)}", again=True)
        except ValueError as error:  # a URL or a header that aiohttp refuses
            return Body(request, error=f"{type(error).__name__}: {_text(error)}")

    async def _read(self, request: Request, answer: aiohttp.ClientResponse) -> Body:
        headers, status = answer.headers, answer.status
        body = Body(
            request, status, type=answer.content_type if "Content-Type" in headers else "",
            charset=answer.charset or "", size=answer.content_length, tags=",".join(headers.getall("X-Robots-Tag", ())),
        )  # fmt: skip
        if status in REDIRECTS and "Location" in headers:
            target = canonical(headers["Location"], request.url)
            error = None if target else f"redirects to what is no web address: {headers['Location'][:200]!r}"
            return body._replace(redirect=target, error=error)
        if status in TRANSIENT:
            wait = _retry_after(headers.get("Retry-After", ""))
            asks = f", and asks to come back in {wait:.0f} s" if wait else ""
            return body._replace(error=f"answered {status}{asks}", again=(wait or 0.0) <= PATIENCE, wait=wait)
        if not request.robots and body.type not in MARKUP:
            answer.close()
            return body
        most = MOST if request.robots else self._settings.max_size
        try:
            reader = Decoded(headers.get("Content-Encoding", ""), most)
            async for chunk in answer.content.iter_any():
                if not reader.feed(chunk):
                    break
        except (zlib.error, ValueError) as error:
            answer.close()
            return body._replace(error=f"the body can't be decoded: {error}")
        data = reader.data()
        if reader.over:
            answer.close()
            if not request.robots:
                return body._replace(error=f"the body is over max_size, {most:,} bytes", size=body.size or len(data))
        if reader.cut:
            return body._replace(error="the compressed body ends too early", again=True)
        return body._replace(body=data, size=len(data))


class Decoded:
    """A body as it comes in, decompressed and bounded. over: there is more of it than `most` bytes.

    Raises zlib.error; ValueError for an encoding that was not asked for.
    """

    def __init__(self, encoding: str, most: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in _ENCODINGS:
            raise ValueError(f"Content-Encoding {encoding[:50]!r} was not asked for")
        self.over = False
        self._most = most
        self._parts: list[bytes] = []
        self._size = 0
        self._wbits = _ENCODINGS[encoding]
        self._inflater: Any = None

    def feed(self, chunk: bytes) -> bool:
        """Take what has come; False: enough."""
        if self._wbits is not None:
            if self._inflater is None:
                self._inflater = zlib.decompressobj(self._wbits or _deflate(chunk))
            chunk = self._inflater.decompress(chunk, self._most - self._size + 1)  # a megabyte may stand for a thousand
        self._size += len(chunk)
        self._parts.append(chunk)
        self.over = self._size > self._most
        return not self.over

    @property
    def cut(self) -> bool:
        """Compressed data ended before its end."""
        return self._inflater is not None and not self._inflater.eof

    def data(self) -> bytes:
        """What came, up to the bound."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return data[: self._most] if self.over else data


_ENCODINGS = {"": None, "identity": None, "gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": 0}
"""Content-Encoding -> zlib's wbits; None: as it is, 0: see _deflate."""


def _deflate(chunk: bytes) -> int:
    """Servers call two things deflate: zlib's format, whose first byte ends with the bits 1000, and the bare stream."""
    return zlib.MAX_WBITS if chunk[0] & 0x0F == 8 else -zlib.MAX_WBITS


def _retry_after(text: str) -> float | None:
    """Seconds that a Retry-After header asks for; None without one that can be read, or with a time that is over."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no reason given"


def _detail(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f": {text}" if text else ""
