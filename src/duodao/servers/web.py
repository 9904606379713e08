"""What a handler of HTTP requests gets and gives, and which of three kinds of application something is."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from duodao.errors import UsageError

Headers = list[tuple[str, str]]

_TEXT: Headers = [("content-type", "text/plain; charset=utf-8")]
_BYTES: Headers = [("content-type", "application/octet-stream")]
_JSON: Headers = [("content-type", "application/json")]
CLOSE = ("connection", "close")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_VALID = "str, bytes, dict or list (as JSON), None, (status, body), (status, body, headers) or a duodao.Response"


class Request:
    """One HTTP request. method: "GET"; path: decoded, without the query; body: bytes, whole; peer: "127.0.0.1:51234".

    Source: M27.
    """

    __slots__ = ("_headers", "_pairs", "body", "method", "path", "peer", "query_string")

    def __init__(self, method: str, path: str, query_string: str, pairs: Any, peer: str, body: bytes = b"") -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.peer = peer
        self.body = body
        self._pairs = pairs  # something with items(): most handlers never look
        self._headers: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path} from {self.peer}>"

    @property
    def headers(self) -> dict[str, str]:
        """By lower-case name; several of one name are joined by commas, as RFC 9110 has it."""
        if self._headers is None:
            found: dict[str, str] = {}
            for name, value in self._pairs.items():
                name = name.lower()  # noqa: PLW2901
                found[name] = f"{found[name]}, {value}" if name in found else value
            self._headers = found
        return self._headers

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values, decoded; of several with one name the last."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    def json(self) -> Any:
        """The body as JSON. ValueError when it isn't."""
        return json.loads(self.body)


class Response:
    """What a handler answers: body as str, bytes, dict, list or None. headers: a mapping, or pairs of name and value.

    Raises UsageError for a status that is none.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, body: Any = None, status: int = 200, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise UsageError(f"status={status!r}: a number from 200 to 599 is needed")
        self.body = body
        self.status = status
        self.headers = headers


def render(value: Any) -> tuple[int, Headers, str | bytes]:
    """Status, headers and body of what a handler returned. TypeError, naming what is valid, for anything else.

    The lists of headers are shared: never change one.
    """
    kind = type(value)
    if kind is str:
        return 200, _TEXT, value
    if kind is bytes:
        return 200, _BYTES, value
    if value is None:
        return 204, [], b""
    if isinstance(value, Response):
        return _answer(value)
    if isinstance(value, (dict, list)):
        return 200, _JSON, json.dumps(value)
    if isinstance(value, tuple) and len(value) in (2, 3) and isinstance(value[0], int):
        return _answer(Response(value[1], value[0], *value[2:]))
    if isinstance(value, (bytearray, memoryview, str, bytes)):
        return (200, _TEXT, str(value)) if isinstance(value, str) else (200, _BYTES, bytes(value))
    raise TypeError(f"a handler answered with {kind.__name__}; it can answer with {_VALID}")


def _answer(response: Response) -> tuple[int, Headers, str | bytes]:
    _, usual, body = (response.status, [], b"") if response.body is None else render(response.body)
    given = response.headers.items() if isinstance(response.headers, Mapping) else response.headers
    headers = [(str(name), str(value)) for name, value in given]
    for name, value in headers:
        if not _NAME.fullmatch(name) or _CONTROL.search(value):  # granian would leave it out in silence
            raise ValueError(f"{name!r}: {value!r} is no header: a name is a word, a value has no control characters")
    if any(name.lower() == "content-type" for name, _ in headers):
        usual = []
    return response.status, [*usual, *headers], body


def kind_of(work: Any) -> str:
    """What `work` is: "asgi", "wsgi" or "handler". Raises UsageError for what is none of them.

    An ASGI application takes (scope, receive, send), a WSGI application (environ, start_response), a handler a request.
    """
    if not callable(work):
        raise UsageError(f"what is served must be an ASGI or WSGI application or handler(request), not {work!r}")
    try:
        parameters = inspect.signature(work).parameters.values()
    except (ValueError, TypeError):  # many builtins don't tell
        return "handler"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = len([p for p in positional if p.default is p.empty])
    kinds = {3: "asgi", 2: "wsgi", 1: "handler", 0: "handler"}
    if needed in kinds and (needed or positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        return kinds[needed]
    raise UsageError(
        f"{getattr(work, '__qualname__', work)} can't be served: an ASGI application takes (scope, receive, send), a "
        "WSGI application (environ, start_response), a handler (request)"
    )


def is_async(work: Any) -> bool:
    """Does calling it make a coroutine?"""
    return inspect.iscoroutinefunction(work) or inspect.iscoroutinefunction(type(work).__call__)
