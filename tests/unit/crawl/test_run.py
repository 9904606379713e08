"""The crawl as a program holds it: an iterable of Pages that ends when it is left."""

import threading
import warnings

import pytest
from tests.faults.hostile_site import Site, answer, moved, page

from duodao.errors import SetupFailed, UsageError
from duodao_crawl import crawl

QUICK = {"rate": None, "per_host": 4}


def endless():
    """Each page links to two others."""

    async def others(request, wire):
        at = int(request.target[1:] or 0)
        return page(f"/{2 * at + 1}", f"/{2 * at + 2}")

    return Site({"/robots.txt": answer(b"", "404 Not Found")}, others=others)


def test_leaving_the_loop_ends_the_crawl():
    """Without a `with`, too: no thread of it is left when the loop has been left."""
    with endless() as site:
        before = set(threading.enumerate())
        for number, _ in enumerate(crawl(site.url, **QUICK)):
            if number == 20:
                break
        left = [thread.name for thread in set(threading.enumerate()) - before]
        assert [name for name in left if not name.startswith("duodao-guard")] == []


def test_drain_takes_what_is_under_way():
    """Nothing is fetched after it; the report counts what is left."""
    with endless() as site, crawl(site.url, **QUICK) as pages:
        found = 0
        for found, _ in enumerate(pages, 1):  # noqa: B007 - it is looked at below
            if found == 10:
                pages.drain()
        assert 10 <= found < 100
        assert pages.report.pages == found
        assert pages.report.left > 0
        assert site.hits.total() <= found + 1
        assert "found and not fetched" in str(pages.report)


def test_a_crawl_is_iterated_once():
    """A second loop would find nothing, and says so; a crawl that is never iterated needs only to be closed."""
    with Site({"/": page()}) as site, crawl(site.url, **QUICK) as pages:
        assert len(list(pages)) == 1
        with pytest.raises(UsageError, match="iterated already"):
            iter(pages)
    with warnings.catch_warnings(), crawl("http://x/"):
        warnings.simplefilter("error")


@pytest.mark.parametrize(
    ("seeds", "options", "text"),
    [
        ([], {}, "no URL to start from"),
        (["ftp://x/"], {}, "'ftp://x/' is no URL to start from"),
        ([3], {}, "3 is no URL"),
        (None, {}, "None is no URL"),
        (b"http://x/", {}, "b'http://x/' is no URL"),
        ("http://x/", {"depht": 3}, "unknown option 'depht' (valid: scope, "),
        ("http://x/", {"depth": -1}, "depth=-1: a whole number from 0 or None"),
        ("http://x/", {"per_host": True}, "per_host=True"),
        ("http://x/", {"rate": 0}, "rate=0: a number over 0"),
        ("http://x/", {"rate": 1e-300}, "rate=1e-300: a number over 0"),
        ("http://x/", {"timeout": float("inf")}, "timeout=inf"),
        ("http://x/", {"scope": "all"}, "scope='all'"),
        ("http://x/", {"user_agent": None}, "user_agent=None"),
        ("http://x/", {"user_agent": "a\nb"}, "user_agent='a\\nb'"),
    ],
)
def test_refusals(seeds, options, text):
    """Before anything is fetched, naming what is valid."""
    with pytest.raises(UsageError) as caught:
        crawl(seeds, **options)
    assert text in str(caught.value)


def test_a_redirect_and_its_page_are_two_lines():
    """The page says who led to it; its copy names it; depth counts links, not redirects."""
    pages = {"/": moved("/1"), "/1": moved("/2"), "/2": page("/3", title="x"), "/3": page("/3", title="x")}
    with Site(pages) as site:
        found = {p.url.removeprefix(site.url): p for p in crawl(site.url, **QUICK)}
        assert found["/2"].via == (f"{site.url}/", f"{site.url}/1")
        assert [found[path].depth for path in ("/", "/1", "/2", "/3")] == [0, 0, 0, 1]
        assert (found["/2"].same_as, found["/3"].same_as) == (None, f"{site.url}/2")


def test_bytes_are_those_that_were_read():
    """The size that a film announces is no part of them."""
    with Site({"/": page("/film"), "/film": answer(b"x" * 5000, kind="video/mp4")}) as site:
        pages = crawl(site.url, **QUICK)
        sizes = {p.url.removeprefix(site.url): p.size for p in pages}
        assert sizes["/film"] == 5000
        assert pages.report.bytes == sizes["/"]


def test_a_client_that_can_not_be_made(monkeypatch):
    """The crawl ends with the reason; nothing is left to wait for."""
    monkeypatch.setattr("ssl.create_default_context", lambda: 1 / 0)
    with pytest.raises(SetupFailed, match="ZeroDivisionError"):
        list(crawl("http://127.0.0.1:9/", **QUICK))
