"""Crawls of hostile sites: what they are asked with, and the good rest of a site that must be found."""

from __future__ import annotations

from tests.faults.hostile_site import Site, page

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
