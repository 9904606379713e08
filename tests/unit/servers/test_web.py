"""Requests, responses, and what kind of application something is."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.errors import UsageError
from duodao.servers.web import Request, Response, is_async, kind_of, render


class Pairs(list[tuple[str, str]]):
    """Headers as granian gives them."""

    def items(self) -> list[tuple[str, str]]:
        return list(self)


def request(**changes: Any) -> Request:
    """A request of a test."""
    given = {"method": "GET", "path": "/", "query_string": "", "pairs": Pairs(), "peer": "127.0.0.1:1", **changes}
    return Request(**given)


def test_headers_are_found_by_lower_case_name() -> None:
    """Several of one name are joined, as the standard has it."""
    made = request(pairs=Pairs([("Accept", "a"), ("X-One", "1"), ("accept", "b")]))
    assert made.headers == {"accept": "a, b", "x-one": "1"}


@given(st.dictionaries(st.text(), st.text()))
def test_the_query_is_what_was_asked(query: dict[str, str]) -> None:
    """What urlencode writes, `query` reads, empty values too."""
    from urllib.parse import urlencode

    assert request(query_string=urlencode(query)).query == query


def test_json_and_what_isnt() -> None:
    """A body that isn't JSON is a ValueError."""
    assert request(body=b'{"a": [1]}').json() == {"a": [1]}
    with pytest.raises(ValueError, match="Expecting value"):
        request(body=b"no").json()
    assert repr(request(path="/x")) == "<Request GET /x from 127.0.0.1:1>"


TEXT = ("content-type", "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("x", (200, [TEXT], "x")),
        (b"x", (200, [("content-type", "application/octet-stream")], b"x")),
        (bytearray(b"x"), (200, [("content-type", "application/octet-stream")], b"x")),
        ([], (200, [("content-type", "application/json")], "[]")),
        (None, (204, [], b"")),
        ((404, None), (404, [], b"")),
        ((200, "x", {"Content-Type": "text/css"}), (200, [("Content-Type", "text/css")], "x")),
        ((200, "x", [("a", "1"), ("a", "2")]), (200, [TEXT, ("a", "1"), ("a", "2")], "x")),
        (Response({"a": 1}, 201), (201, [("content-type", "application/json")], '{"a": 1}')),
    ],
)  # fmt: skip
def test_what_becomes_of_an_answer(given_: Any, expected: Any) -> None:
    """Status, headers and body of each kind of answer."""
    assert render(given_) == expected


@pytest.mark.parametrize("given_", [3, 3.5, {1, 2}, (1,), ("200", "x"), (200, "x", {}, 4), object()])
def test_what_is_no_answer(given_: Any) -> None:
    """The error names what is valid."""
    with pytest.raises(TypeError, match=r"it can answer with str, bytes, dict or list"):
        render(given_)


def test_statuses_and_headers_are_checked() -> None:
    """A status out of range and a header with a line's end, by which a response could be split, are errors."""
    for status in (99, 600, "200", 100):
        with pytest.raises(UsageError, match="from 200 to 599"):
            Response("", status)  # type: ignore[arg-type]
    for headers in ({"x": "a\nb"}, {"x\r": "a"}, [("x", "\0")]):
        with pytest.raises(ValueError, match="is no header"):
            render((200, "", headers))


def test_shared_headers_stay_as_they_are() -> None:
    """A response with headers of its own doesn't change those of others."""
    render((200, "x", {"a": "b"}))
    assert render("x") == (200, [TEXT], "x")


class App:
    """An ASGI application as frameworks have them."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class OldApp:
    """A WSGI application as frameworks have them."""

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def three(scope: Any, receive: Any, send: Any) -> None: ...
def one(request: Any, extra: int = 1) -> None: ...  # noqa: E302
def anything(*args: Any) -> None: ...
def two(environ: Any, start_response: Any) -> None: ...


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (App(), "asgi"), (App().__call__, "asgi"), (three, "asgi"), (OldApp(), "wsgi"), (two, "wsgi"), (one, "handler"),
        (anything, "handler"), (functools.partial(two, 1), "handler"), (json.dumps, "handler"),
    ],
)  # fmt: skip
def test_kinds(work: Any, kind: str) -> None:
    """Told by the number of arguments, of functions, methods and instances."""
    assert kind_of(work) == kind


def test_what_has_no_kind() -> None:
    """No callable, no argument, or four of them: the error names the three that there are."""
    for work in (3, lambda: None, lambda a, b, c, d: None):
        with pytest.raises(UsageError, match=r"ASGI.*WSGI.*handler"):
            kind_of(work)


def test_async_handlers() -> None:
    """Functions and instances that make coroutines."""
    assert is_async(App())
    assert not is_async(OldApp())
    assert not is_async(one)
