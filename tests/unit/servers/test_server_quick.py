"""The short way of a line, in C and in Python: the same answers to everything."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from duodao.servers import quick

WAYS = [quick.in_python] if quick.answer is quick.in_python else [quick.in_python, quick.answer]
LIMIT = 20_000


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; the first doesn't block."""
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        two.settimeout(5.0)
        yield one, two


@pytest.fixture(params=WAYS, ids=["python", "c"][: len(WAYS)])
def answer(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """One of the two."""
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [0, 1, 32, 4094, 4095, 4096, LIMIT - 1])
def test_a_line_is_answered(answer: Callable[..., Any], size: int) -> None:
    """The handler gets the line without its end, its reply goes out with one; what is too long to copy is told back."""
    with pair() as (one, two):
        done = answer(lambda line: line.upper(), b"x" * size + b"\n", one.fileno(), LIMIT, 1.0)
        if isinstance(done, tuple):
            assert (done[0], done[1], size >= 4096) == (b"X" * size, 0, True)
        else:
            assert done == size + 1
            assert two.recv(LIMIT) == b"X" * size + b"\n"


@pytest.mark.parametrize(
    "data", [b"", b"part", b"a\nb\n", b"a\nb", b"telnet\r\n", b"\r\n", b"\n\n", b"x" * LIMIT + b"\n"]
)
def test_what_is_not_one_whole_line_is_left(answer: Callable[..., Any], data: bytes) -> None:
    """Parts, several lines, a carriage return and too long a line call nothing and write nothing."""
    with pair() as (one, _):
        assert answer(lambda line: pytest.fail(f"called with {line!r}"), data, one.fileno(), LIMIT, 1.0) is None


def test_what_is_not_plain_is_told_back(answer: Callable[..., Any]) -> None:
    """No reply, a reply that isn't bytes, and a call that took too long come back; errors are raised."""
    with pair() as (one, two):
        fd = one.fileno()
        for reply in (None, 3, bytearray(b"x")):
            assert answer(lambda _, reply=reply: reply, b"x\n", fd, LIMIT, 1.0)[:2] == (reply, 0)
        reply, wrote, seconds = answer(lambda line: (time.sleep(0.02), line)[1], b"x\n", fd, LIMIT, 0.01)
        assert (reply, wrote, seconds >= 0.02) == (b"x", 2, True)
        assert two.recv(10) == b"x\n"
        with pytest.raises(ZeroDivisionError):
            answer(lambda line: 1 // len(line), b"\n", fd, LIMIT, 1.0)


def test_a_full_socket_and_a_gone_peer(answer: Callable[..., Any]) -> None:
    """What the kernel doesn't take is told back for later; a peer that is gone is told apart."""
    with pair() as (one, two):
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(1 << 16))
        assert answer(lambda line: line, b"x\n", one.fileno(), LIMIT, 1.0)[:2] == (b"x", 0)
        two.close()
        assert answer(lambda line: line, b"x\n", one.fileno(), LIMIT, 1.0)[:2] == (b"x", -1)
