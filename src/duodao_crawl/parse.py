"""From a Body to a Page: the CPU's share of the work, which runs in processes."""

from __future__ import annotations

import codecs
import re
from hashlib import blake2b
from typing import Any

from duodao_crawl.canonical import canonical
from duodao_crawl.fetch import MARKUP
from duodao_crawl.page import Body, Page, Parsed

LINKS = "a[href], area[href], iframe[src], frame[src], link[rel~=next][href], link[rel~=prev][href]"
LONGEST_TITLE = 1000
LINKS_ROOM = 32 << 20
"""Characters of a page's links: below a long base href each of a million short ones stands for a long URL."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_REFRESH = re.compile(r"^\s*[\d.]*\s*[;,]\s*url\s*=\s*[\"']?([^\"']+)", re.IGNORECASE)
_WEB_CODECS = frozenset((
    "utf-8", "utf-16-le", "utf-16-be", "utf-16", "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "cp874",
    *(f"iso8859-{n}" for n in range(2, 17)), *(f"cp125{n}" for n in range(9)),
    "gbk", "gb2312", "gb18030", "big5", "big5hkscs", "euc_jp", "iso2022_jp", "shift_jis", "cp932", "euc_kr", "cp949",
))  # fmt: skip
"""Encodings of the WHATWG's list under Python's names. No others: "punycode" and "utf-7" are codecs too."""


def parse(body: Body) -> Parsed:
    """Title, links, what the page asks of robots, and the body's hash."""
    request, data = body.request, body.body
    page = Page(
        request.url, body.status, body.type, "", [], body.size, None, body.redirect, 0, body.seconds, request.attempt,
        body.error,
    )  # fmt: skip
    parsed = Parsed(request, page, again=body.again, wait=body.wait)
    if request.robots:
        return parsed._replace(text=data.decode("utf-8-sig", "replace"))
    whole = body.error is None and body.redirect is None and body.status is not None and body.status < 400
    return _read(parsed, body) if whole and body.type in MARKUP else parsed


def _read(parsed: Parsed, body: Body) -> Parsed:
    from selectolax.lexbor import LexborHTMLParser

    data = body.body
    tree = LexborHTMLParser(data.decode(charset(data, body.charset), "replace"))
    title = tree.css_first("title")
    tags, refresh = _asked(tree)
    tags |= _words(body.tags)
    links, unfollowed, over = _links(tree, parsed.page.url, refresh)
    page = parsed.page._replace(
        error=f"its links have over {LINKS_ROOM:,} characters: the first {len(links):,} are kept" if over else None,
        title=" ".join(title.text().split())[:LONGEST_TITLE] if title is not None else "",
        links=links,
        hash=blake2b(data, digest_size=16).hexdigest(),
        noindex="noindex" in tags or "none" in tags,
        nofollow="nofollow" in tags or "none" in tags,
    )
    return parsed._replace(page=page, unfollowed=unfollowed)


def _links(tree: Any, url: str, more: list[str]) -> tuple[list[str], frozenset[str], bool]:
    """(all links, those of them that are only found with rel=nofollow, whether there are more than LINKS_ROOM)."""
    base = tree.css_first("base[href]")
    if base is not None:
        url = canonical(base.attributes["href"] or "", url) or url
    spelled: dict[str, bool] = {}  # as on the page, without fragments: most links of a page differ in nothing else
    for node in tree.css(LINKS):
        attributes = node.attributes
        href = (attributes.get("href") or attributes.get("src") or "").partition("#")[0]
        rel = attributes.get("rel")
        spelled[href] = (rel is None or "nofollow" not in rel.lower().split()) or spelled.get(href, False)
    spelled.update(dict.fromkeys(more, True))
    found: dict[str, bool] = {}
    room = LINKS_ROOM
    for href, follow in spelled.items():
        link = canonical(href, url)
        if link is not None:
            room -= 0 if link in found else len(link)
            if room < 0:
                break
            found[link] = follow or found.get(link, False)
    return list(found), frozenset(link for link, follow in found.items() if not follow), room < 0


def _asked(tree: Any) -> tuple[set[str], list[str]]:
    """(the words of meta robots, targets of meta refresh)."""
    words: set[str] = set()
    targets = []
    for node in tree.css("meta[content]"):
        attributes = node.attributes
        content = attributes.get("content") or ""
        if (attributes.get("name") or "").lower() == "robots":
            words |= _words(content)
        elif (attributes.get("http-equiv") or "").lower() == "refresh":
            found = _REFRESH.match(content)
            targets += [found[1].strip()] if found else []
    return words, targets


def _words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",")}


def charset(data: bytes, declared: str) -> str:
    """A Python codec for these bytes: from the byte order mark, the header, a meta element; else UTF-8 where they are
    that, else windows-1252. In this order, as browsers do it."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name
    codec = _codec(declared)
    if codec is None:
        found = _META.search(data, 0, 4096)
        codec = _codec(found[1].decode("ascii", "replace")) if found else None
        if codec is not None and codec.startswith("utf-16"):  # bytes in which ASCII could be read are not UTF-16
            codec = "utf-8"
    if codec is not None:
        return codec
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _codec(name: str) -> str | None:
    try:
        found = codecs.lookup(name.strip()).name
    except (LookupError, ValueError):
        return None
    if found in ("ascii", "iso8859-1"):
        return "cp1252"  # what browsers take them for
    return found if found in _WEB_CODECS else None
