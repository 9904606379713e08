"""Canonical URLs: one spelling for one page, and none for what is no page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao_crawl.canonical import LONGEST, canonical, origin

BASE = "http://example.com/a/b?q"


@pytest.mark.parametrize(
    ("href", "url"),
    [
        ("", "http://example.com/a/b?q"),
        ("#top", "http://example.com/a/b?q"),
        ("c", "http://example.com/a/c"),
        ("../../../c", "http://example.com/c"),
        ("?x=1#y", "http://example.com/a/b?x=1"),
        ("//other.example", "http://other.example/"),
        ("HTTP://EXAMPLE.com:80", "http://example.com/"),
        ("https://example.com:443/", "https://example.com/"),
        ("https://example.com:80/", "https://example.com:80/"),
        ("/%7euser/%41%2f%c3%a9", "/~user/A%2F%C3%A9"),
        ("/größe?x=ä", "/gr%C3%B6%C3%9Fe?x=%C3%A4"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("/a b\t c\n", "/a%20b%20c"),
        ("/c?", "/c"),
        ("/c?q=why?", "/c?q=why?"),
        ("/c??", "/c??"),
        ("/c?b=2&a=1", "/c?b=2&a=1"),
        ("http://me:secret@example.com/c@d", "http://example.com/c@d"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[0:0::1]:8080/x", "http://[::1]:8080/x"),
        ("/%zz%4", "/%zz%4"),
        ("/caf\udce9", "/caf%E9"),
    ],
)
def test_one_spelling(href, url):
    """What a browser would ask for, without what servers don't tell apart."""
    assert canonical(href, BASE) == (url if "://" in url else f"http://example.com{url}")


@pytest.mark.parametrize(
    "href",
    ["javascript:void(0)", "mailto:a@b.example", "data:,x", "ftp://example.com/", "http://", "http://[", "http://a b/",
     "http://example.com:99999/", "/" + "x" * LONGEST],
)  # fmt: skip
def test_no_page(href):
    """Other schemes, no URL at all, and one that is too long give None."""
    assert canonical(href, BASE) is None


def test_without_a_base():
    """A seed stands for itself, or for nothing."""
    assert canonical("http://example.com") == "http://example.com/"
    assert canonical("example.com/x") is None


@given(st.text(max_size=60))
def test_any_text(href):
    """Whatever is in an href: None, or an ASCII web address whose canonical form is itself."""
    url = canonical(href, BASE)
    if url is not None:
        assert url.isascii()
        assert url.startswith(("http://", "https://"))
        assert "#" not in url
        assert canonical(url) == url
        assert canonical("", url) == url


def test_origin():
    """Scheme, host and port."""
    assert origin("http://example.com:8080/a//b") == "http://example.com:8080"
