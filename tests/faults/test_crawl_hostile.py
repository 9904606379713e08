"""A crawl of sites that behave badly: it ends, says of each page what happened, and finds the rest of the site."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
import ssl
import zlib

import pytest
import trustme
from tests.faults import hostile_site as bad
from tests.faults.hostile_site import Site, answer, moved, page

from duodao_crawl import crawl

MB = 1 << 20
QUICK = {"rate": None, "per_host": 8, "retries": 0, "timeout": 20.0, "idle": 5.0, "max_size": 2 * MB}
REST = {"/", "/good", "/deep", "/last"}


def crawled(site, *starts, **options):
    """The pages of a crawl by path; each URL came once."""
    pages = list(crawl([site.url + start for start in starts or ("/",)], **{**QUICK, **options}))
    found = {p.url.removeprefix(site.url): p for p in pages}
    assert len(found) == len(pages), [p.url for p in pages]
    return found


def around(hostile, **more):
    """A small site with such pages in the middle of its links."""
    pages = {"/": page("/good", *hostile, "/last"), "/good": page("/deep"), "/deep": page("/"), "/last": page("/")}
    return Site({**pages, **hostile}, **more)


def rest_is_found(found):
    for path in REST:
        assert (found[path].status, found[path].error) == (200, None), found[path]


def failed(found, path, *words):
    """Nothing came of that page, and its error has these words."""
    rest_is_found(found)
    error = found[path].error
    assert error, found[path]
    assert all(word in error for word in words), error
    return found[path]


# Sites without an end.


def test_links_in_a_circle_are_fetched_once():
    """Pages that link to themselves and each other under every spelling of one URL: each is fetched once."""
    spellings = ["", "#top", "?", "/a", "/a#b", "/./a", "/x/../a", "/%61", "/a?", "/a?#", "  /a  ", "/\ta", "\\a"]
    with Site({"/a": page("/b", *spellings), "/b": page("/a", "/b", *spellings)}) as site:
        found = crawled(site, "/a")
        assert set(found) == {"/a", "/b"}
        assert site.hits == {"/robots.txt": 1, "/a": 1, "/b": 1}


async def calendar(request, wire):
    """Each day links to the next one and the one after, and to a day of the form ?day=."""
    day = int(request.target.strip("/").partition("?day=")[2] or 0)
    return page(f"?day={day + 1}", f"/?day={day + 2}", "/deep")


def test_a_calendar_without_end_is_bounded_by_depth():
    """depth=6: no page is fetched that is further away on the way on which it was found, and all near ones are."""
    with Site({"/deep": page()}, others=calendar) as site:
        found = crawled(site, depth=6)
        assert {"/", "/deep", *(f"/?day={n}" for n in range(1, 7))} <= set(found)
        assert set(found) <= {"/", "/deep", *(f"/?day={n}" for n in range(1, 13))}
        assert max(p.depth for p in found.values()) == 6


def test_a_calendar_without_end_is_bounded_by_max_pages():
    """max_pages=30: as many URLs are fetched, robots.txt beside them."""
    with Site({"/deep": page()}, others=calendar) as site:
        found = crawled(site, depth=None, max_pages=30)
        assert len(found) == 30
        assert site.hits.total() == 31


def test_a_path_that_grows_ends():
    """A page under every path that links to one folder below it: the default depth, or the longest URL, ends it."""

    async def deeper(request, wire):
        return page("deeper/", "/good")

    with Site({"/good": page()}, others=deeper) as site:
        found = crawled(site)
        assert 10 < len(found) < 100
        assert "/good" in found
        found = crawled(site, depth=None)
        assert 100 < len(found) < 1_000


# Redirects.


def test_redirects_in_a_circle():
    """Three URLs that lead to each other, and one to itself: each is fetched once and has its own line."""
    circle = {
        "/1": moved("/2"),
        "/2": moved("/3", "307 Temporary Redirect"),
        "/3": moved("/1"),
        "/self": moved("/self"),
    }
    with around(circle) as site:
        found = crawled(site)
        rest_is_found(found)
        assert {path: p.redirect for path, p in found.items() if p.redirect} == {
            "/1": site.url + "/2",
            "/2": site.url + "/3",
            "/3": site.url + "/1",
            "/self": site.url + "/self",
        }
        assert all(site.hits[path] == 1 for path in circle)


def test_chains_of_redirects():
    """Nine redirects lead to their page; thirty end with an error that says so. All that was fetched has its line."""
    chain = {f"/r{n}": moved(f"/r{n + 1}") for n in range(30)}
    with around({"/r0": moved("/r1")}) as site:
        site.pages.update(chain)
        site.pages.update({"/s0": moved("/r22"), "/r30": page("/behind"), "/behind": page()})
        found = crawled(site, "/s0")
        assert found["/r30"].status == found["/behind"].status == 200
        assert [found[f"/r{n}"].status for n in range(22, 30)] == [302] * 8
        found = crawled(site)
        rest_is_found(found)
        assert "/r30" not in found
        assert [p.url for p in found.values() if p.error and "redirects" in p.error] != []


def test_redirects_to_nowhere():
    """A Location that is no web address, an empty one, none at all: that page's line and nothing more."""
    nowhere = ["http://[", "javascript:alert(1)", "//", "http://", "http://x:99999/", "about:blank", ""]
    hostile = {f"/bad{n}": moved(to) for n, to in enumerate(nowhere)}
    hostile["/none"] = answer(b"", "302 Found", None)
    with around(hostile) as site:
        found = crawled(site)
        rest_is_found(found)
        assert {found[path].status for path in hostile} == {302}
        assert set(found) == {*REST, *hostile}


def test_redirects_and_links_to_other_hosts_are_not_followed():
    """scope="host": another port of the same machine is another host; nobody connects to it."""
    with Site() as other, around({"/away": moved("/")}) as site:
        site.pages["/away"] = moved(f"{other.url}/x")
        site.pages["/good"] = page("/deep", f"{other.url}/y", f"//127.0.0.1:{other.port}/z")
        found = crawled(site)
        rest_is_found(found)
        assert found["/away"].redirect == f"{other.url}/x"
        assert set(found) == {*REST, "/away"}
        assert other.hits == {}


# Bodies that are too much.


@pytest.mark.parametrize("endless", [bad.endless, bad.endless_chunks])
def test_a_body_of_10_gb_is_cut_at_max_size(endless):
    """The connection is closed soon after max_size bytes, and memory stays flat."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with around({f"/big{n}": endless for n in range(8)}) as site:
        found = crawled(site)
        for n in range(8):
            failed(found, f"/big{n}", "2,097,152 bytes")
    assert all(0 < site.sent[f"/big{n}"] < 20 * MB for n in range(8)), site.sent  # buffers of two sockets
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_gzip_bomb_is_cut_at_max_size():
    """256 MB in 250 kB on the wire: what counts is the size it unfolds to, and memory stays flat."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with around({"/bomb": bad.bomb(256 * MB)}) as site:
        before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        found = crawled(site)
        failed(found, "/bomb", "2,097,152 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("slow", [bad.drip, bad.drip_head, bad.silent])
def test_an_answer_that_does_not_end_is_timed_out(slow):
    """A byte every 0.1 s keeps no request open beyond `timeout`; nor does silence beyond `idle`."""
    with around({"/slow": slow, "/slow2": slow}) as site:
        found = crawled(site, timeout=1.0, idle=0.6)
        for path in ("/slow", "/slow2"):
            failed(found, path, "0.6 s" if slow is bad.silent else "1 s")
            assert found[path].attempts == 1


# Bodies that are wrong.


def encoded(body, encoding):
    return answer(body, headers=[f"Content-Encoding: {encoding}"])


def test_compressed_bodies():
    """What is compressed as it says is read; what isn't is that page's error."""
    text = bad.html("/linked", title="packed")
    hostile = {
        "/gzip": encoded(gzip.compress(text), "gzip"),
        "/deflate": encoded(zlib.compress(text), "deflate"),
        "/raw-deflate": encoded(zlib.compress(text, wbits=-15), "deflate"),
        "/linked": page(),
        "/cut": bad.broken_gzip(),
        "/plain": encoded(text, "gzip"),
        "/noise": encoded(bytes(range(256)) * 20, "gzip"),
        "/twice": encoded(gzip.compress(gzip.compress(text)), "gzip, gzip"),
        "/klingon": encoded(text, "klingon"),
        "/trailing": encoded(gzip.compress(text) + b"and more", "gzip"),
        "/empty": encoded(b"", "gzip"),
    }
    with around(hostile) as site:
        found = crawled(site)
        rest_is_found(found)
        for path in ("/gzip", "/deflate", "/raw-deflate"):
            assert (found[path].title, found[path].error, found[path].size) == ("packed", None, len(text))
        for path in ("/cut", "/plain", "/noise"):
            failed(found, path)
        assert set(found) == {*REST, *hostile}


def test_charsets_that_lie():
    """Whatever the bytes and whatever they are called, there is a title of valid text, and links are found."""
    link = b'<a href="/linked">x</a>'

    def titled(title, kind, meta=b""):
        return answer(b"<html><head>" + meta + b"<title>" + title + b"</title></head>" + link, kind=kind)

    hostile = {
        "/utf8": titled("größe 多道".encode(), "text/html; charset=utf-8"),
        "/latin": titled("größe".encode("latin-1"), "text/html; charset=iso-8859-1"),
        "/latin-as-utf8": titled("größe".encode("latin-1"), "text/html; charset=utf-8"),
        "/unknown": titled("größe".encode(), "text/html; charset=klingon-8"),
        "/quoted": titled("größe".encode(), 'text/html; charset="UTF-8"; x=y'),
        "/codec": titled("größe".encode(), "text/html; charset=rot13"),
        "/hex": titled(b"6162", "text/html; charset=hex"),
        "/idna": titled("größe".encode(), "text/html; charset=idna"),
        "/meta": titled("多道".encode("gb18030"), "text/html", b'<meta charset="gb18030">'),
        "/meta-lies": titled("größe".encode("latin-1"), "text/html", b'<meta charset="utf-16">'),
        "/sjis": titled("多重".encode("shift_jis"), "text/html; charset=shift_jis"),
        "/bom": answer(b"\xef\xbb\xbf" + bad.html("/linked", title="größe"), kind="text/html; charset=latin-1"),
        "/utf16": answer(bad.html("/linked", title="größe").decode().encode("utf-16"), kind="text/html"),
        "/invalid": titled(b"\xff\xfe\x00\x80\xc3(\xed\xa0\x80", "text/html; charset=utf-8"),
        "/surrogates": titled(b"&#xD800;&#xDFFF;&#0;&#x110000;", "text/html"),
    }
    with around({**hostile, "/linked": page()}) as site:
        found = crawled(site)
        rest_is_found(found)
        for path in hostile:
            assert (found[path].status, found[path].error) == (200, None), path
            assert found[path].links == [f"{site.url}/linked"], path
            found[path].title.encode()  # text that can be written
        titles = {path: found[path].title for path in hostile}
        assert titles["/utf8"] == "größe 多道"
        assert titles["/latin"] == titles["/quoted"] == titles["/bom"] == titles["/utf16"] == "größe"
        assert titles["/meta"] == "多道"
        assert titles["/sjis"] == "多重"
        assert "�" in titles["/latin-as-utf8"]
        assert titles["/hex"] == "6162"


def test_html_that_is_none():
    """Bytes of any kind, called HTML, are parsed or reported; so are trees 20,000 deep and tags that never close."""
    hostile = {
        "/noise": answer(bytes(range(256)) * 1_000),
        "/zeros": answer(bytes(100_000)),
        "/deep-tree": answer(b"<div>" * 20_000 + b'<a href="/linked">x</a>'),
        "/tables": answer(b"<table><tr><td>" * 10_000 + b'<a href="/linked">x</a>'),
        "/open": answer(b'<a href="/linked" ' + b"x" * 1_000_000),
        "/comment": answer(b"<!--" + b"-" * 1_000_000),
        "/formatting": answer(b"<b><i><u>" * 5_000 + b"<p>" * 5_000),
        "/script": answer(b'<script>document.write("<a href=/not>x</a>")</script><a href="/linked">x</a>'),
        "/empty": answer(b""),
        "/frames": answer(b"<html><frameset><frame src=/linked></frameset></html>"),
    }
    with around({**hostile, "/linked": page()}) as site:
        found = crawled(site)
        rest_is_found(found)
        assert set(found) == {*REST, *hostile, "/linked"}
        assert all(found[path].status == 200 for path in hostile)
        assert found["/deep-tree"].links == [f"{site.url}/linked"]


def test_a_page_that_keeps_its_parser_busy_is_timed_out():
    """A tree 300,000 deep takes minutes: `timeout` ends that parser, the page says so, and the rest is found."""
    with around({"/deep-tree": answer(b"<div>" * 300_000)}) as site:
        found = crawled(site, timeout=1.0)
        rest_is_found(found)
        assert "1 s" in found["/deep-tree"].error


def test_what_is_no_html_is_reported_and_not_parsed():
    """A picture, JSON, no type at all: a line with its type, no title, no links."""
    hostile = {
        "/png": answer(b"\x89PNG<a href=/not>x</a>", kind="image/png"),
        "/json": answer(b'{"a": "<a href=/not>x</a>"}', kind="application/json"),
        "/text": answer(b"<a href=/not>x</a>", kind="text/plain"),
        "/odd": answer(b"<a href=/not>x</a>", kind=";;/;charset=;"),
    }
    with around(hostile) as site:
        found = crawled(site)
        rest_is_found(found)
        assert set(found) == {*REST, *hostile}
        assert found["/png"].type == "image/png"


# Connections that break.

BROKEN = {
    "/reset": bad.reset_in_body,
    "/reset-at-once": bad.reset_at_once,
    "/hang-up": bad.hang_up,
    "/short": bad.too_short,
    "/cut": bad.cut_chunk,
    "/no-http": bad.no_http,
    "/flood": bad.header_flood,
    "/huge": bad.huge_header,
}


def test_connections_that_break_are_errors_of_their_page():
    """Resets, early ends, lengths that lie, floods of headers: each page has its error, the others are found."""
    with around(BROKEN) as site:
        found = crawled(site)
        for path in BROKEN:
            failed(found, path)
            assert found[path].attempts == 1
        assert all(site.sent[path] < 20 * MB for path in BROKEN), site.sent


def test_broken_connections_are_tried_again():
    """retries=2: three attempts; the last error is what is reported."""
    with around({"/reset": bad.reset_in_body, "/hang-up": bad.hang_up}) as site:
        found = crawled(site, retries=2)
        for path in ("/reset", "/hang-up"):
            assert failed(found, path).attempts == 3
            assert site.hits[path] == 3


def test_a_body_longer_than_it_says_is_no_answer_to_another_request():
    """What follows Content-Length is never taken for the next response, whoever asked for that."""
    with around({"/long": bad.too_long, "/next": page(title="right")}) as site:
        found = crawled(site, per_host=1, retries=1)
        rest_is_found(found)
        assert "/long" in found
        assert found.get("/next") is None or found["/next"].title == "right"
        assert all(p.size != 5 for p in found.values())


def test_a_server_that_goes_away():
    """From one moment on nobody listens: what is left gets an error each, and the crawl ends."""
    with Site({"/": page(*(f"/{n}" for n in range(20)))}) as site:

        async def leave(request, wire):
            await site.leave()

        site.others = leave
        site.pages["/robots.txt"] = answer(b"", "404 Not Found")
        found = crawled(site)
        assert len(found) == 21
        assert all(found[f"/{n}"].error for n in range(20))


# Statuses.


def test_statuses_are_reported_as_they_came():
    """Each status is its page's; what can't change is asked for once, what may pass is asked for again."""
    once = ["204 No Content", "304 Not Modified", "401 Unauthorized", "402 Pay", "403 Forbidden", "404 Not Found",
            "405 No", "410 Gone", "418 Teapot", "451 No", "599 What", "999 Denied"]  # fmt: skip
    again = ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Late", "429 Too Many"]
    hostile = {f"/{status[:3]}": answer(b"", status, None) for status in (*once, *again)}
    with around(hostile) as site:
        found = crawled(site, retries=1)
        rest_is_found(found)
        assert {path: found[path].status for path in hostile} == {path: int(path[1:]) for path in hostile}
        assert {s[:3]: site.hits[f"/{s[:3]}"] for s in once} == {s[:3]: 1 for s in once}
        assert {s[:3]: site.hits[f"/{s[:3]}"] for s in again} == {s[:3]: 2 for s in again}


def test_what_fails_for_a_while_is_found():
    """500 twice, 429 with Retry-After, a reset: the page comes with the attempt that works."""

    async def shy(request, wire):
        if request.number < 3:
            wire.reset()
            return None
        return page(title="there")

    there = page(title="there")
    hostile = {
        "/500": bad.flapping(2, there),
        "/503": bad.flapping(1, there, "503 Service Unavailable", ["Retry-After: 1"]),
        "/429": bad.flapping(2, there, "429 Too Many Requests", ["Retry-After: 0"]),
        "/reset": shy,
    }
    with around(hostile) as site:
        found = crawled(site, retries=2)
        rest_is_found(found)
        for path in hostile:
            assert (found[path].status, found[path].title, found[path].error) == (200, "there", None)
        assert [found[path].attempts for path in hostile] == [3, 2, 3, 3]


def test_retry_after_that_says_nothing():
    """A Retry-After that is no number of seconds and no date to come is left aside."""
    values = ["soon", "-5", "1e300", "", "Wed, 99 Foo 2099", "Sun, 06 Nov 1994 08:49:37 GMT", "0x10", "²"]
    busy = "429 Too Many Requests"
    hostile = {f"/{n}": bad.flapping(1, page(), busy, [f"Retry-After: {value}"]) for n, value in enumerate(values)}
    with around(hostile) as site:
        found = crawled(site, retries=1)
        rest_is_found(found)
        assert {(found[path].status, found[path].attempts) for path in hostile} == {(200, 2)}


@pytest.mark.parametrize("value", ["999999999", "Fri, 31 Dec 2199 23:59:59 GMT"])
def test_retry_after_in_years_is_not_waited_for(value):
    """A host that wants to be left alone for years is: the page is reported as it came, once, and the crawl ends."""
    with around({"/429": answer(b"", "429 Too Many Requests", None, [f"Retry-After: {value}"])}) as site:
        found = crawled(site, retries=2)
        rest_is_found(found)
        assert (found["/429"].status, site.hits["/429"]) == (429, 1)


# robots.txt.


def with_robots(answered, **options):
    with around({"/private": page("/private/more"), "/robots.txt": answered}) as site:
        site.pages["/"] = page("/good", "/private", "/last")
        return site, crawled(site, **options)


def text(body, status="200 OK"):
    return answer(body, status, "text/plain")


@pytest.mark.parametrize(
    "robots",
    [
        text(b"User-agent: *\nDisallow: /private"),
        text(b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /private\r\n"),
        text(b"User-agent: *\rDisallow: /private\r"),
        text(b"\x00\xff\xfe\n\xff\xff\nUser-agent: *\nDisallow: /private\n\xff"),
        text(b"# " + b"x" * 400_000 + b"\nUser-agent: *\nDisallow: /private\n" + b"Allow: /x\n" * 1_000_000),
        bad.flapping(1, text(b"User-agent: *\nDisallow: /private")),
    ],
    ids=["plain", "bom", "cr", "binary", "huge", "flapping"],
)
def test_robots_txt_is_obeyed_however_it_looks(robots):
    """A rule that can be read holds, and what it forbids is never asked for."""
    site, found = with_robots(robots, retries=1)
    rest_is_found(found)
    assert site.hits["/private"] == 0
    assert found.get("/private") is None or "robots.txt" in found["/private"].error


@pytest.mark.parametrize(
    "robots",
    [
        text(b"User-agent: *\nDisallow: /", "404 Not Found"),
        text(b"User-agent: *\nDisallow: /", "403 Forbidden"),
        text(b"\x00\xff\xfe" * 1_000),
        text(b""),
        moved("/robots.txt"),
    ],
    ids=["404", "403", "noise", "empty", "circle"],
)
def test_a_robots_txt_that_is_none_forbids_nothing(robots):
    """RFC 9309: a robots.txt that is not there, or that says nothing, allows everything."""
    site, found = with_robots(robots)
    rest_is_found(found)
    assert found["/private"].status == 200


@pytest.mark.parametrize(
    "robots",
    [text(b"", "500 Internal Server Error"), text(b"", "503 Service Unavailable"), bad.reset_at_once, bad.silent],
    ids=["500", "503", "reset", "silent"],
)
def test_a_robots_txt_that_can_not_be_had_forbids_all(robots):
    """RFC 9309: while a robots.txt is unreachable, nothing of its host is fetched; the crawl says so and ends."""
    site, found = with_robots(robots, timeout=1.0, idle=0.5)
    assert set(found) == {"/"}
    assert found["/"].status is None
    assert "robots.txt" in found["/"].error
    assert set(site.hits) == {"/robots.txt"}


@pytest.mark.parametrize("endless", [bad.endless_chunks, bad.endless])
def test_a_robots_txt_without_end_is_cut(endless):
    """What came of it up to the limit counts; the crawl goes on."""
    site, found = with_robots(endless)
    rest_is_found(found)
    assert site.sent["/robots.txt"] < 20 * MB


def test_robots_txt_is_not_asked_for_where_it_is_not_obeyed():
    """robots=False: no request for it, and no rule holds."""
    site, found = with_robots(text(b"User-agent: *\nDisallow: /"), robots=False)
    rest_is_found(found)
    assert site.hits["/robots.txt"] == 0


def test_nofollow_is_obeyed():
    """Links with rel=nofollow, pages with it as meta robots or X-Robots-Tag: what only they link to is not fetched."""
    pages = {
        "/": page("/meta", "/tag", "/none", "/rel"),
        "/meta": page("/hidden1", head='<meta name="ROBOTS" content="noindex, NoFollow">'),
        "/tag": page("/hidden2", headers=["X-Robots-Tag: nofollow"]),
        "/none": page("/hidden3", head="<meta content=none name=robots>"),
        "/rel": answer(b'<a rel="x NoFollow y" href="/hidden4">x</a>'),
    }
    with Site(pages, others=page()) as site:
        assert set(crawled(site)) == set(pages)
        assert set(crawled(site, robots=False)) == {*pages, "/hidden1", "/hidden2", "/hidden3", "/hidden4"}


# Links.


def test_links_that_lead_nowhere_are_left_aside():
    """Other schemes, other hosts, what is no URL at all: not fetched, and no error of the page."""
    nowhere = [
        "javascript:void(0)", "JaVaScRiPt:alert(1)", "mailto:a@b.example", "data:text/html,<a href=/not>x</a>",
        "tel:+49", "ftp://127.0.0.1/", "file:///etc/passwd", "about:blank", "ws://127.0.0.1/", "x-y:z",
        "http://", "http:///", "//", "///", "http://[::1", "http://[fe80::1%25eth0]/", "http://127.0.0.1:99999/",
        "http://127.0.0.1:port/", "http://.../", "http://a..b/", "http://bücher.invalid/", "http://xn--zz--zz/",
        "//other.invalid/x", "http://user:secret@other.invalid/", "https://" + "a" * 300 + ".invalid/",
        "/" + "x" * 100_000, "http://%zz/", "http://exa mple/", "http://127.0.0.1\\@other.invalid/",
    ]  # fmt: skip
    with around({"/bad": page(*nowhere)}) as site:
        found = crawled(site)
        rest_is_found(found)
        assert found["/bad"].error is None
        assert set(found) == {*REST, "/bad"}
        assert set(site.hits) == {*REST, "/bad", "/robots.txt"}


def test_links_in_odd_spellings_are_found():
    """White space, entities, umlauts, missing quotes, a scheme without slashes: they lead where a browser would go."""
    body = (
        '<a href="  /space ">x</a><a href="/a&amp;b">x</a><a href=/bare>x</a><A HREF=\'/upper\'>x</A>'
        '<a href="/größe">x</a><a href="/a b">x</a><a href="/line\n\tbreak">x</a><a href="?q=1&x=ä">x</a>'
        '<area href="/area"><a href="/%7Etilde">x</a><a href="/dir/../up">x</a><a href="/%2e%2e/root">x</a>'
    ).encode()
    paths = {"/space", "/a&b", "/bare", "/upper", "/gr%C3%B6%C3%9Fe", "/a%20b", "/linebreak", "/~tilde", "/up",
             "/root", "/area", "/odd?q=1&x=%C3%A4"}  # fmt: skip
    with Site({"/odd": answer(body, kind="text/html; charset=utf-8")}, others=page()) as site:
        found = crawled(site, "/odd")
        assert set(found) == {"/odd", *paths}
        assert all(p.status == 200 for p in found.values())


@pytest.mark.parametrize(
    ("head", "leads_to"),
    [
        ('<base href="/folder/">', "/folder/leaf"),
        ('<base href="folder/x.html">', "/folder/leaf"),
        ('<base href="/first/"><base href="/second/">', "/first/leaf"),
        ('<base target="x"><base href="/second/">', "/second/leaf"),
        ('<base href="javascript:alert(1)//">', "/leaf"),
        ('<base href="http://[">', "/leaf"),
        ('<base href="">', "/leaf"),
        ('<base href="https://other.invalid/">', None),
    ],
)
def test_base_says_where_links_start(head, leads_to):
    """The first base with an href that is a web address counts; one on another host takes the links with it."""
    with Site({"/": page("leaf", "/top", head=head)}, others=page()) as site:
        found = crawled(site)
        tops = {"/top"} if leads_to else set()
        assert set(found) == {"/", *tops, *({leads_to} if leads_to else ())}


def test_100_000_links_on_one_page():
    """All are links of the page; max_pages of them are fetched."""
    with Site({"/": page(*(f"/{n}" for n in range(100_000)))}, others=page("/")) as site:
        found = crawled(site, max_pages=40, max_size=20 * MB)
        assert len(found) == 40
        assert len(found["/"].links) == 100_000
        assert site.hits.total() == 41


def test_the_same_link_100_000_times():
    """It is fetched once, and is one link of the page."""
    with around({"/many": page(*["/once"] * 100_000), "/once": page()}) as site:
        found = crawled(site, max_size=20 * MB)
        rest_is_found(found)
        assert found["/many"].links == [f"{site.url}/once"]
        assert site.hits["/once"] == 1


# TLS.


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch):
    """What OpenSSL trusts by default is this authority alone."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


def context(authority, name="127.0.0.1", **options):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **options).configure_cert(made)
    return made


def test_tls_that_is_right(authority, trusted):
    """A certificate for this host by an authority that is trusted: the site is found whole."""
    with around({}, tls=context(authority)) as site:
        found = crawled(site)
        rest_is_found(found)
        assert set(found) == REST


def no_longer_valid(authority):
    import datetime

    return context(authority, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))


@pytest.mark.parametrize(
    "made",
    [
        lambda authority: context(trustme.CA()),
        lambda authority: context(authority, "other.example"),
        no_longer_valid,
    ],
    ids=["nobody's", "another host's", "expired"],
)
def test_a_certificate_that_proves_nothing(authority, trusted, made):
    """By an authority that nobody trusts, for another host, out of date: an error, and the other seed is crawled."""
    with around({}) as good, Site({"/": page()}, tls=made(authority)) as site:
        pages = {p.url: p for p in crawl([f"{site.url}/", f"{good.url}/"], **QUICK)}
        assert "certificate" in pages[f"{site.url}/"].error
        assert pages[f"{site.url}/"].status is None
        assert site.hits == {}
        rest_is_found({url.removeprefix(good.url): p for url, p in pages.items()})
        unverified = list(crawl(f"{site.url}/", verify=False, **QUICK))
        assert [p.status for p in unverified] == [200]


async def hangs(wire):
    """Reads the client's hello and says nothing."""
    await wire.closed()


async def resets(wire):
    wire.reset()


async def speaks_http(wire):
    """A port where plain HTTP is spoken."""
    await wire.reader.read(10)
    await wire.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def half_a_hello(wire):
    """The first bytes of a handshake, and no more."""
    await wire.send(b"\x16\x03\x03\x00\x7a\x02")
    await wire.closed()


@pytest.mark.parametrize("raw", [hangs, resets, speaks_http, half_a_hello])
def test_a_handshake_that_comes_to_nothing(raw, trusted):
    """Silence, a reset, plain HTTP in place of a handshake: an error, and the other seed is crawled."""
    with around({}) as good, Site(raw=raw) as site:
        there = f"https://127.0.0.1:{site.port}/"
        pages = {p.url: p for p in crawl([there, f"{good.url}/"], **{**QUICK, "timeout": 2.0, "idle": 1.0})}
        assert pages[there].error
        assert pages[there].status is None
        rest_is_found({url.removeprefix(good.url): p for url, p in pages.items()})


def test_http_on_a_tls_port(authority, trusted):
    """Plain HTTP asked of a port that speaks TLS."""
    with around({}) as good, Site(tls=context(authority)) as site:
        there = f"http://127.0.0.1:{site.port}/"
        pages = {p.url: p for p in crawl([there, f"{good.url}/"], **QUICK)}
        assert pages[there].error
        rest_is_found({url.removeprefix(good.url): p for url, p in pages.items()})


def test_seeds_that_nobody_answers_for(trusted):
    """A port without a listener, a name that is none: an error each, and the other seed is crawled."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    with around({}) as good:
        nowhere = [f"http://127.0.0.1:{closed}/", "http://name.invalid/"]
        pages = {p.url: p for p in crawl([*nowhere, f"{good.url}/"], **QUICK)}
        assert all(pages[url].error and pages[url].status is None for url in nowhere)
        rest_is_found({url.removeprefix(good.url): p for url, p in pages.items()})


def test_connections_kept_open_and_closed_by_the_server():
    """A server that closes each kept connection while the next request is on its way: nothing is lost."""

    async def and_leave(request, wire):
        await wire.send(page("/good"))
        await asyncio.sleep(0.02)

    with around({f"/{n}": and_leave for n in range(12)}) as site:
        found = crawled(site, per_host=4, retries=2)
        rest_is_found(found)
        assert all(found[f"/{n}"].status == 200 for n in range(12))
