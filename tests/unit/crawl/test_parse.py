"""From bytes to a Page: what is found, and what never fails."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao_crawl.page import Body, Request
from duodao_crawl.parse import LINKS_ROOM, charset, parse

URL = "http://a.example/dir/page"


def parsed(text, **fields):
    body = text if isinstance(text, bytes) else text.encode()
    return parse(Body(Request(URL), 200, "text/html", body=body, size=len(body), **fields))


def test_a_page():
    """Title on one line, links canonical and once each in their order, the hash of the bytes."""
    page = parsed(
        "<title> A\n b </title><a href='x#1'>1</a><a href='x#2'>2</a><a name=none>3</a><a href=''>4</a>"
        "<AREA HREF=/map><iframe src=frame></iframe><link rel='x next' href=n><link rel=stylesheet href=s.css>"
        "<a href='mailto:a@b'>5</a><svg><title>not this</title></svg>"
    ).page
    assert page.title == "A b"
    assert page.links == [f"http://a.example{p}" for p in ("/dir/x", "/dir/page", "/map", "/dir/frame", "/dir/n")]
    assert len(page.hash) == 32
    assert (page.url, page.status, page.error, page.nofollow, page.noindex) == (URL, 200, None, False, False)


def test_base_and_refresh():
    """The first base counts, relative to the page; a meta refresh is a link."""
    head = "<base href='/b/'><base href='/c/'><meta http-equiv=Refresh content='3; URL=later'>"
    assert parsed(f"{head}<a href=x>").page.links == ["http://a.example/b/x", "http://a.example/b/later"]
    assert parsed("<base href='javascript:1'><a href=x>").page.links == ["http://a.example/dir/x"]


def test_short_links_below_a_long_base():
    """They stand for far more characters than the page has: what is over the room for them is left out, and said."""
    links = "".join(f"<a href={n}>" for n in range(30_000))
    page = parsed(f"<base href='/{'b' * 1900}/'>{links}").page
    assert sum(map(len, page.links)) <= LINKS_ROOM
    assert len(page.links) > 10_000
    assert f"the first {len(page.links):,} are kept" in page.error


@pytest.mark.parametrize(
    ("text", "tags", "found"),
    [
        ("<meta name=robots content=noindex>", "", (True, False)),
        ("<meta name=ROBOTS content='a, NoFollow'>", "", (False, True)),
        ("<meta name=robots content=none>", "", (True, True)),
        ("", "noindex, nofollow", (True, True)),
        ("<meta name=other content=nofollow>", "archive", (False, False)),
    ],
)
def test_what_a_page_asks_of_robots(text, tags, found):
    """In a meta element or in the X-Robots-Tag header."""
    page = parsed(text, tags=tags).page
    assert (page.noindex, page.nofollow) == found


def test_rel_nofollow():
    """A link that is only found with rel=nofollow is among the links, and is named."""
    found = parsed("<a href=x rel='a NOFOLLOW'></a><a href=y rel=nofollow></a><a href=y></a>")
    assert found.page.links == ["http://a.example/dir/x", "http://a.example/dir/y"]
    assert found.unfollowed == {"http://a.example/dir/x"}


@pytest.mark.parametrize(
    ("data", "declared", "codec"),
    [
        ("ü".encode(), "", "utf-8"),
        ("ü".encode("latin-1"), "", "cp1252"),
        ("ü".encode("latin-1"), "utf-8", "utf-8"),
        (b"x", "ISO-8859-1", "cp1252"),
        (b"x", "iso-8859-15", "iso8859-15"),
        (b"x", "klingon", "utf-8"),
        (b"x", "rot13", "utf-8"),
        (b"x", "utf-7", "utf-8"),
        (b"x", "a\0b", "utf-8"),
        (b"<meta charset=gb18030>", "", "gb18030"),
        (b"<META http-equiv=content-type content='text/html; charset=shift_jis'>", "", "shift_jis"),
        (b"<meta charset=utf-16>\xff", "", "utf-8"),
        (codecs.BOM_UTF8 + b"x", "latin-1", "utf-8"),
        ("x".encode("utf-16"), "latin-1", "utf-16-le"),
    ],
)
def test_charset(data, declared, codec):
    """Byte order mark, header, meta element, and what the bytes look like, in this order; only what the web uses."""
    assert charset(data, declared) == codec


@given(st.binary(max_size=400), st.sampled_from(["", "utf-8", "utf-16", "shift_jis", "iso-2022-jp", "gb18030"]))
def test_any_bytes(data, declared):
    """Whatever the body is: a page whose title and links are text that can be written."""
    page = parsed(b"<title>t" + data + b"</title><a href='" + data + b"'>", charset=declared).page
    "".join([page.title, *page.links]).encode()


def test_what_is_not_parsed():
    """Errors, redirects, statuses from 400 and other types keep what they came with."""
    text = b"<title>t</title><a href=x>"
    for changes in ({"error": "cut"}, {"redirect": "http://a/"}, {"status": 404}, {"type": "text/plain"}):
        page = parse(
            Body(Request(URL), **{"status": 200, "type": "text/html", "body": text, "size": 26, **changes})
        ).page
        assert (page.title, page.links, page.hash, page.size) == ("", [], None, 26)


def test_robots_txt_stays_text():
    """Its text is what comes back, whatever its bytes."""
    request = Request("http://a.example/robots.txt", robots=True)
    assert parse(Body(request, 200, "text/plain", body=b"\xef\xbb\xbfUser\xff")).text == "User\ufffd"
