"""A crawl of servers that behave badly: connections, statuses, robots.txt, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
import trustme
from tests.faults import hostile_site as bad
from tests.faults.hostile_crawl import MB, QUICK, REST, around, crawled, failed, rest_is_found
from tests.faults.hostile_site import Site, answer, moved, page

from duodao_crawl import crawl

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
    """500 twice, 429 with Retry-After, a reset: the page comes with the attempt that works; three at most are made."""

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
    with around({**hostile, "/broken": bad.reset_in_body, "/hang-up": bad.hang_up}) as site:
        found = crawled(site, retries=2)
        for path in hostile:
            assert (found[path].status, found[path].title, found[path].error) == (200, "there", None)
        assert [found[path].attempts for path in hostile] == [3, 2, 3, 3]
        for path in ("/broken", "/hang-up"):
            assert failed(found, path).attempts == site.hits[path] == 3


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
