"""What a server takes as its handler, and what it says about the rest."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

import duodao
from duodao.errors import UsageError
from duodao.servers.handler import Handler
from duodao.servers.options import check


def handler(work: Any, **options: Any) -> Handler:
    """As a server makes it."""
    return Handler(work, check("tcp://127.0.0.1:0", options))


def plain(message: bytes) -> bytes:
    """Of bytes."""
    return message


def text(message: str) -> str:
    """Of text, by its annotation."""
    return message


async def waits(message: bytes) -> bytes:
    """A coroutine."""
    return message


async def chat(session: duodao.Session) -> None:
    """A session, by name and by annotation."""


async def other(client: duodao.Session) -> None:
    """A session by annotation only."""


@pytest.mark.parametrize(
    ("work", "kind", "is_text"),
    [(plain, "message", False), (text, "message", True), (waits, "message", False), (chat, "session", False),
     (other, "session", False), (bytes.upper, "message", False), (functools.partial(plain), "message", False)],
)  # fmt: skip
def test_kinds(work: Any, kind: str, is_text: bool) -> None:
    """A parameter's annotation and name say what the handler wants; a builtin is called with bytes."""
    made = handler(work)
    assert (made.kind, made.text) == (kind, is_text)


def test_text_is_an_option_too() -> None:
    """text= overrules the annotation."""
    assert handler(plain, text=True).text
    assert not handler(text, text=False).text


@pytest.mark.parametrize(
    ("work", "options", "says"),
    [
        (3, {}, "a handler is a function of one message, not 3"),
        (duodao.Pipeline(plain), {}, "a server takes one function"),
        (lambda session: None, {}, "takes a session, so it must be a coroutine"),
        (waits, {"lane": "process"}, "runs on lane='coroutine', not 'process'"),
        (plain, {"lane": "coroutine"}, "would block the loop"),
        (lambda a, b: a, {}, "takes 2 arguments"),
        (functools.partial(plain, lock=threading.Lock()), {"lane": "process"}, "can't travel"),
    ],
)
def test_what_is_no_handler(work: Any, options: dict[str, Any], says: str) -> None:
    """Each thing that can't be served is refused before anything listens, and the error says why."""
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        handler(work, **options)


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("localhost", {}, "no address"),
        ("ftp://127.0.0.1:1", {}, "no address to serve at"),
        ("tcp://127.0.0.1", {}, "no address"),
        ("tcp://user@127.0.0.1:0", {}, "no address to serve at"),
        (None, {}, "no address"),
        ("tcp://127.0.0.1:0", {"framing": "lines"}, "valid: line, length, raw"),
        ("tcp://127.0.0.1:0", {"lane": "greenlet"}, "there is no such lane"),
        ("tcp://127.0.0.1:0", {"framming": "line"}, "did you mean 'framing'"),
        ("tcp://127.0.0.1:0", {"idle": 0}, "idle=0: seconds over 0"),
        ("tcp://127.0.0.1:0", {"max_frame": 0}, "max_frame=0: a whole number from 1"),
        ("tcp://127.0.0.1:0", {"max_connections": True}, "max_connections=True"),
        ("tcp://127.0.0.1:0", {"grace": -1}, "grace=-1: seconds from 0"),
        ("tcp://127.0.0.1:0", {"proxy_from": ["10.0.0.0/40"]}, "proxy_from="),
        ("tcp://127.0.0.1:0", {"proxy_from": 5}, "proxy_from=5"),
        ("tcp://127.0.0.1:0", {"backlog": 1 << 31}, "backlog=2147483648"),
        ("tcp://127.0.0.1:0", {"tls": (__file__,)}, "certificate file, key file"),
        ("tcp://127.0.0.1:0", {"tls": (__file__, None)}, "certificate file, key file"),
        ("tcp://127.0.0.1:0", {"framing": "raw", "text": True}, "cuts it anywhere"),
    ],
)
def test_options_are_checked(address: str, options: dict[str, Any], says: str) -> None:
    """A wrong option or address is a UsageError that names what is valid."""
    with pytest.raises(UsageError, match=says):
        duodao.Server(plain, address, **options)
