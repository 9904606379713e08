"""Which URLs belong to a crawl."""

import pytest

from duodao.errors import UsageError
from duodao_crawl.scope import Scope

SEEDS = ["http://docs.example.com/guide/index.html?x=/y/", "http://[::1]:81/"]


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("host", ["http://docs.example.com/", "http://[::1]:81/x"],
         ["https://docs.example.com/", "http://docs.example.com:81/", "http://example.com/", "http://[::1]/"]),
        ("prefix", ["http://docs.example.com/guide/", "http://docs.example.com/guide/a/b"],
         ["http://docs.example.com/guide", "http://docs.example.com/guided/"]),
        ("domain", ["https://docs.example.com:444/", "http://old.docs.example.com/", "http://[::1]/"],
         ["http://example.com/", "http://xdocs.example.com/"]),
        ("any", ["http://elsewhere.example/"], []),
    ],
)  # fmt: skip
def test_kinds(kind, inside, outside):
    """Each kind with what is just inside and just outside."""
    scope = Scope(SEEDS, kind)
    assert [url for url in inside if not scope.allows(url)] == []
    assert [url for url in outside if scope.allows(url)] == []


def test_patterns():
    """One of `include` must be found, none of `exclude`; a string alone is one pattern."""
    scope = Scope(SEEDS, "any", include=[r"\.html$", "^http://a/"], exclude="print")
    assert scope.allows("http://b/x.html")
    assert scope.allows("http://a/x")
    assert not scope.allows("http://b/x")
    assert not scope.allows("http://a/print")


def test_patterns_are_apart():
    """Each has its own flags, groups and references."""
    scope = Scope(SEEDS, "any", include=[r"(?i)\.HTML$", r"/(?P<x>.)(.)\2$", r"/(?P<x>.)\1\1$"])
    assert scope.allows("http://a/x.html")
    assert scope.allows("http://a/xyy")
    assert not scope.allows("http://a/XYZ")


@pytest.mark.parametrize("given", ["(", 3, None])
def test_a_pattern_that_is_none(given):
    """The option and the reason are named."""
    for include in ([given], given):
        with pytest.raises(UsageError, match="include=['(3None]+: not a regular expression"):
            Scope(SEEDS, include=include)


def test_a_site_that_moved():
    """A seed that leads to https or to www. takes the scope with it; one that leads elsewhere doesn't."""
    scope = Scope(["http://example.com/"])
    scope.moved("http://example.com/", "https://www.example.com/start")
    scope.moved("http://example.com/", "http://other.example/")
    scope.moved("http://example.com/", "http://example.com:8080/")
    assert scope.allows("https://www.example.com/x")
    assert not scope.allows("http://other.example/")
    assert not scope.allows("http://example.com:8080/")
