"""One spelling for each URL, so that a page is fetched once whatever links to it look like.

ada-url resolves and parses as browsers do (the WHATWG standard): scheme and host in lower case, IDN in ASCII, default
ports and dot segments gone, a space or an umlaut percent-encoded. On top of that the percent-encoding gets its normal
form (RFC 3986, 6.2.2), and what no server sees or tells apart goes: fragment, user and password, an empty query.

Left as they are, because servers do tell them apart: the order of a query, a slash at the end, index.html, www.
"""

from __future__ import annotations

import re

import ada_url

LONGEST = 2000
"""Characters of a URL that is followed: pages that link to themselves with one more part each time end here."""

_WEB = ("http://", "https://")
_ENCODED = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def canonical(href: str, base: str | None = None) -> str | None:
    """The canonical form of `href`, found on a page whose URL is `base`; None for what is no web address."""
    if not href.isascii():
        href = _undecoded(href)
    try:
        url = ada_url.join_url(base, href) if base is not None else ada_url.normalize_url(href)
    except ValueError:
        return None
    if not url.startswith(_WEB):
        return None
    url = url.partition("#")[0]
    if "@" in url:
        url = _without_user(url)
    if "%" in url:
        url = _ENCODED.sub(_normal, url)
    if url.find("?") == len(url) - 1:
        url = url[:-1]
    return url if len(url) <= LONGEST else None


def origin(url: str) -> str:
    """Scheme, host and port of a canonical URL: "https://example.com". Who is asked for robots.txt, and paced."""
    return url[: url.index("/", 8)]  # a canonical URL always has a path


def _without_user(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _normal(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


def _undecoded(text: str) -> str:
    """Bytes that were no UTF-8, which are lone surrogates in a header, as the percent-encoding they stand for."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)
