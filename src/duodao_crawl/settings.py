"""What a crawl was asked for, checked before anything is fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from duodao.errors import UsageError

AGENT = "duodao-crawl/0.1"
SCOPES = ("host", "prefix", "domain", "any")


class CrawlOptions(TypedDict, total=False):
    """Options of crawl. The defaults are polite: robots.txt, one connection and one request per second to a host.

    scope: "host", "prefix", "domain" or "any", from the seeds. include, exclude: regular expressions on the URL.
    depth: links from a seed, 0 for the seeds alone, None for no limit. max_pages: URLs fetched, None for no limit.
    rate: requests per second to one host, None for no limit; a longer Crawl-delay of its robots.txt holds, too.
    per_host: connections to one host. concurrency: connections in all. parsers: processes that parse.
    robots: obey robots.txt and meta robots nofollow. retries: further attempts after a network error, 429 or 5xx.
    max_size: bytes of a body; timeout: seconds for one answer in all, and for parsing it; idle: seconds without a byte.
    user_agent: whole; the part before its first slash is the name looked for in robots.txt. verify: check certificates.
    journal: a path; the same crawl goes on where it was, and another one with the same journal (deeper, wider) fetches
    only what it has not. fresh: forget what the journal holds. accept_code: go on although this package has changed.
    progress: as in duodao.map.
    """

    scope: str
    include: Sequence[str]
    exclude: Sequence[str]
    depth: int | None
    max_pages: int | None
    rate: float | None
    per_host: int
    concurrency: int
    parsers: int | None
    robots: bool
    retries: int
    max_size: int
    timeout: float
    idle: float
    user_agent: str
    verify: bool
    journal: str | os.PathLike[str] | None
    fresh: bool
    accept_code: bool
    progress: Callable[[Any], object] | bool | None


@dataclass(frozen=True, slots=True)
class Settings:
    """CrawlOptions, checked."""

    scope: str = "host"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    depth: int | None = 32
    max_pages: int | None = None
    rate: float | None = 1.0
    per_host: int = 1
    concurrency: int = 32
    parsers: int | None = None
    robots: bool = True
    retries: int = 2
    max_size: int = 10 << 20
    timeout: float = 60.0
    idle: float = 15.0
    user_agent: str = AGENT
    verify: bool = True

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UsageError(f"scope={self.scope!r}: there is no such scope (valid: {', '.join(SCOPES)})")
        for name, least in (("depth", 0), ("max_pages", 1), ("parsers", 1)):
            _whole(name, getattr(self, name), least, none=True)
        for name, least in (("per_host", 1), ("concurrency", 1), ("retries", 0), ("max_size", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("timeout", "idle"):
            _over_0(name, getattr(self, name))
        if self.rate is not None:
            _over_0("rate", self.rate)
        agent = self.user_agent
        if not isinstance(agent, str) or not agent.isprintable() or not agent.strip():
            raise UsageError(f"user_agent={agent!r}: a line of text is needed")

    @property
    def interval(self) -> float:
        """Seconds between the starts of two requests to a host."""
        return 0.0 if self.rate is None else 1.0 / self.rate


def _whole(name: str, value: object, least: int, *, none: bool = False) -> None:
    if value is None and none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}={value!r}: a whole number from {least}{' or None' if none else ''} is needed")


def _over_0(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-9 <= value <= 1e9:
        raise UsageError(f"{name}={value!r}: a number over 0 (1e-9 to 1e9) is needed")
