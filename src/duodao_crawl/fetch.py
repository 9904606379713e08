"""One request, one answer: a hop, a bounded body, and an error's text in place of an exception.

Redirects are not followed here: each hop goes back to the frontier, where scope, robots.txt, pacing and "seen before"
hold for it too. A body is read up to `max_size`, counted as decompressed, and the connection is closed beyond.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import perf_counter, time
from typing import TYPE_CHECKING

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
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, ssl=settings.verify),
        timeout=aiohttp.ClientTimeout(total=settings.timeout, sock_connect=idle, sock_read=idle),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # ours is bounded
        headers={
            "User-Agent": settings.user_agent,
            "Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
        },
    )


class Fetcher:
    """`fetch` is the first stage of the run; `landed` is told of each request whose connection is free again."""

    def __init__(self, settings: Settings, landed: Callable[[Request], None]) -> None:
        self._settings = settings
        self._landed = landed

    async def fetch(self, request: Request, client: aiohttp.ClientSession) -> Body:
        """Ask for it. Never raises for what a server or the net can do."""
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
            charset=answer.charset or "", size=answer.content_length, tags=headers.get("X-Robots-Tag", ""),
        )  # fmt: skip
        if status in REDIRECTS and "Location" in headers:
            target = canonical(headers["Location"], request.url)
            error = None if target else f"redirects to what is no web address: {headers['Location'][:200]!r}"
            return body._replace(redirect=target, error=error)
        if status in TRANSIENT:
            wait = _retry_after(headers.get("Retry-After", ""))
            asks = f", and asks to come back in {wait:.0f} s" if wait else ""
            return body._replace(error=f"answered {status}{asks}", again=wait <= PATIENCE, wait=wait)
        if not request.robots and body.type not in MARKUP:
            answer.close()
            return body
        most = MOST if request.robots else self._settings.max_size
        reader = Decoded(headers.get("Content-Encoding", ""), most)
        try:
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
                return body._replace(error=f"the body is over {most:,} bytes", size=body.size or len(data))
        return body._replace(body=data, size=len(data))


class Decoded:
    """A body as it comes in, decompressed and bounded. over: there is more of it than `most` bytes."""

    def __init__(self, encoding: str, most: int) -> None:
        self.over = False
        self._most = most
        self._parts: list[bytes] = []
        self._size = 0
        self._inflate = _inflater(encoding.strip().lower())

    def feed(self, chunk: bytes) -> bool:
        """Take what has come; False: enough."""
        if self._inflate is not None:
            chunk = self._inflate(chunk, self._most - self._size + 1)  # bounded: a megabyte may stand for a thousand
        self._size += len(chunk)
        self._parts.append(chunk)
        self.over = self._size > self._most
        return not self.over

    def data(self) -> bytes:
        """What came, up to the bound."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return data[: self._most] if self.over else data


def _inflater(encoding: str) -> Callable[[bytes, int], bytes] | None:
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if encoding == "deflate":
        return _deflated()
    raise ValueError(f"Content-Encoding {encoding[:50]!r}, which was not asked for")


def _deflated() -> Callable[[bytes, int], bytes]:
    """Either of the two things that servers call deflate: zlib's format, or the bare stream."""
    found: list[Callable[[bytes, int], bytes]] = []

    def inflate(chunk: bytes, most: int) -> bytes:
        if not found:
            zlike = chunk[:1] and chunk[0] & 0x0F == 8
            found.append(zlib.decompressobj(zlib.MAX_WBITS if zlike else -zlib.MAX_WBITS).decompress)
        return found[0](chunk, most)

    return inflate


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks for; 0 without one that can be read."""
    text = text.strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no reason given"


def _detail(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f": {text}" if text else ""
