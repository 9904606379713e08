"""One request over a real socket: what comes back, and that nothing a server does is raised."""

import asyncio
import datetime
import gzip

import pytest
from tests.faults.hostile_site import Site, answer, moved

from duodao_crawl.fetch import Decoded, Fetcher, client
from duodao_crawl.page import Request
from duodao_crawl.settings import Settings


def fetched(site, path="/", settings=None, **fields):
    """(the Body of one request to that site, the requests that landed)."""
    settings, landed = settings or Settings(timeout=5.0, max_size=1000), []

    async def ask():
        async with client(settings) as session:
            started = [].append
            return await Fetcher(settings, started, landed.append).fetch(Request(site.url + path, **fields), session)

    return asyncio.run(ask()), landed


def test_a_page():
    """Status, type, charset, size, body; the seconds it took; its slot is given back."""
    with Site({"/": answer(b"<p>", kind="Text/HTML; charset=Latin-1")}) as site:
        body, landed = fetched(site)
        assert (body.status, body.type, body.charset, body.size, body.body) == (200, "text/html", "Latin-1", 3, b"<p>")
        assert (body.error, body.again, body.redirect) == (None, False, None)
        assert 0 < body.seconds < 5
        assert landed == [body.request]
        headers = site.requests[0].headers
        assert headers["user-agent"] == "duodao-crawl/0.1"
        assert "cookie" not in headers


def test_cookies_are_not_kept():
    """What a server sets is not sent to it again: a page doesn't depend on those before it."""
    settings = Settings()

    async def ask(site):
        async with client(settings) as session:
            fetcher = Fetcher(settings, lambda _: None, lambda _: None)
            for path in ("/", "/2"):
                named = site.url.replace("127.0.0.1", "localhost")  # numbers get no cookies anyway
                assert (await fetcher.fetch(Request(named + path), session)).status == 200

    with Site({"/": answer(headers=["Set-Cookie: a=b"]), "/2": answer()}) as site:
        asyncio.run(ask(site))
        assert [("cookie" in request.headers) for request in site.requests] == [False, False]


def test_a_redirect_is_one_hop():
    """The target is canonical, and nobody asked for it."""
    with Site({"/": moved("x/../caf\xc3\xa9#top")}) as site:
        body, _ = fetched(site)
        assert (body.status, body.error) == (302, None)
        assert body.redirect.startswith(f"{site.url}/caf%C3%")
        assert set(site.hits) == {"/"}


def test_a_header_that_comes_twice():
    """Both count."""
    with Site({"/": answer(headers=["X-Robots-Tag: noindex", "X-Robots-Tag: nofollow"])}) as site:
        assert fetched(site)[0].tags == "noindex,nofollow"


def test_other_types_are_not_read():
    """A film is a line with its type and the size it says."""
    with Site({"/": answer(b"x" * 5000, kind="video/mp4")}) as site:
        body, _ = fetched(site)
        assert (body.type, body.size, body.body, body.error) == ("video/mp4", 5000, b"", None)


def test_a_body_of_max_size_is_whole():
    """One byte more is too much."""
    with Site({"/ok": answer(b"x" * 1000), "/over": answer(b"x" * 1001)}) as site:
        assert fetched(site, "/ok")[0].error is None
        assert "max_size, 1,000 bytes" in fetched(site, "/over")[0].error


def test_a_compressed_body_that_ends_too_early_may_come_whole():
    """It is an error worth another attempt."""
    half = gzip.compress(b"x" * 500)[:-8]
    with Site({"/": answer(half, headers=["Content-Encoding: gzip"])}) as site:
        body, _ = fetched(site)
        assert ("ends too early" in body.error, body.again) == (True, True)


def test_robots_txt_is_read_whatever_its_type():
    """As text, and cut at its own limit without an error."""
    with Site({"/robots.txt": answer(b"#" * 600_000, kind="application/octet-stream")}) as site:
        body, _ = fetched(site, "/robots.txt", robots=True)
        assert (len(body.body), body.error) == (512_000, None)


@pytest.mark.parametrize("status", ["429 Too Many", "500 No", "503 Busy"])
def test_what_may_pass(status):
    """It is worth another attempt, after the time the server names."""
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    date = later.strftime("%a, %d %b %Y %H:%M:%S GMT")
    site = Site({
        "/": answer(b"", status), "/7": answer(b"", status, headers=["Retry-After: 7"]),
        "/date": answer(b"", status, headers=[f"Retry-After: {date}"]),
        "/year": answer(b"", status, headers=["Retry-After: 31536000"]),
    })  # fmt: skip
    with site:
        waits = {path: fetched(site, path)[0] for path in site.pages}
        assert [waits[path].again for path in waits] == [True, True, True, False]
        assert (waits["/"].wait, waits["/7"].wait) == (None, 7.0)
        assert 60 < waits["/date"].wait <= 90
        assert "31536000 s" in waits["/year"].error


def test_nobody_listens():
    """A refused connection is an error that may pass."""
    with Site() as site:
        pass
    body, landed = fetched(site)
    assert body.status is None
    assert "refused" in body.error.lower() or "connect" in body.error.lower()
    assert body.again
    assert len(landed) == 1


def test_decoding_is_bounded_piece_by_piece():
    """Byte by byte or at once, a compressed body is the same, and is never unfolded beyond its bound."""
    data = bytes(range(256)) * 1000
    packed = gzip.compress(data)
    for step in (1, 1000, len(packed)):
        whole = Decoded("gzip", len(data))
        assert all(whole.feed(packed[at : at + step]) for at in range(0, len(packed), step))
        assert whole.data() == data
        assert not whole.cut
        bound = Decoded("gzip", 999)
        assert not all(bound.feed(packed[at : at + step]) for at in range(0, len(packed), step))
        assert bound.over
        assert bound.data() == data[:999]
