"""What moves through a crawl: a Request goes out, a Body comes from the net, a Page comes from the parser."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """One attempt at one URL; what a journal knows it by, so it holds nothing that depends on the order of a crawl.

    attempt: from 1. robots: it is the robots.txt of its host.
    """

    url: str
    attempt: int = 1
    robots: bool = False


class Body(NamedTuple):
    """What came back for a Request. Fields as in Page; `status` None: there was no answer.

    charset: of the Content-Type header. tags: of X-Robots-Tag. again: the error may be gone in a while, after `wait`
    seconds where the server said so.
    """

    request: Request
    status: int | None = None
    type: str = ""
    charset: str = ""
    body: bytes = b""
    size: int | None = None
    redirect: str | None = None
    tags: str = ""
    seconds: float = 0.0
    error: str | None = None
    again: bool = False
    wait: float | None = None


class Page(NamedTuple):
    """One URL's end, the line of a crawl's output.

    url: canonical. status: of the answer, None without one. type: media type. title, links: of an HTML page; links are
    canonical URLs, each once, in the order of the page. size: bytes of the body as decoded, or as announced where it
    was not read (only HTML is). hash: BLAKE2b-128 of the body, in hex. same_as: the first page of the crawl with that
    hash. redirect: where the answer points to; that page has its own line, whose `via` lists who pointed to it.
    depth: links from a seed, on the shortest way that was known when it came. seconds: of the last attempt.
    attempts: 1 without retries, 0 where none was allowed. error: why there is no page, or why it isn't whole.
    noindex, nofollow: what the page asks of robots; a crawl obeys the second, and rel=nofollow of single links.
    """

    url: str
    status: int | None
    type: str
    title: str
    links: list[str]
    size: int | None
    hash: str | None
    redirect: str | None
    depth: int
    seconds: float
    attempts: int
    error: str | None
    same_as: str | None = None
    via: tuple[str, ...] = ()
    noindex: bool = False
    nofollow: bool = False


class Parsed(NamedTuple):
    """A Page as the parser makes it, with what the crawl needs to know beyond.

    unfollowed: those of its links that say rel=nofollow. text: of a robots.txt.
    """

    request: Request
    page: Page
    unfollowed: frozenset[str] = frozenset()
    again: bool = False
    wait: float | None = None
    text: str = ""
