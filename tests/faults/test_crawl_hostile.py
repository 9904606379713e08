"""A crawl of sites that behave badly: it ends, says of each page what happened, and finds the rest of the site."""

from __future__ import annotations

import gzip
import resource
import zlib

import pytest
from tests.faults import hostile_site as bad
from tests.faults.hostile_crawl import MB, REST, around, crawled, failed, rest_is_found
from tests.faults.hostile_site import Site, answer, moved, page

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
    """128 MB in 125 kB on the wire: what counts is the size it unfolds to, and memory stays flat."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with around({"/bomb": bad.bomb(128 * MB)}) as site:
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
