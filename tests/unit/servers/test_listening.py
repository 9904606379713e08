"""Listening sockets: many on one address, and shut before they are closed."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from duodao.errors import Broken
from duodao.servers import listening, options


@contextlib.contextmanager
def opened(processes: int, port: int = 0) -> Iterator[list[socket.socket]]:
    """Sockets, closed in the end."""
    made = listening.open_all(options.check(f"tcp://127.0.0.1:{port}", {"processes": processes}))
    try:
        yield made
    finally:
        for sock in made:
            sock.close()


def test_all_share_one_address() -> None:
    """Three sockets listen at one free port; connections are spread over their queues."""
    with opened(3) as made, contextlib.ExitStack() as stack:
        assert len({sock.getsockname() for sock in made}) == 1
        for _ in range(60):
            stack.enter_context(socket.create_connection(made[0].getsockname()))
        waiting = [listening.queued(sock) for sock in made]
        assert sum(waiting) == 60
        assert min(waiting) > 0


def test_an_address_in_use_is_named() -> None:
    """Who has the address keeps it, with one process or two: two servers never share it. The error names it."""
    for before in (1, 2):
        with opened(before) as made:
            port = made[0].getsockname()[1]
            for processes in (1, 2):
                with (
                    pytest.raises(Broken, match=f"can't listen at tcp://127.0.0.1:{port}: Address already in use"),
                    opened(processes, port),
                ):
                    pass
    with pytest.raises(Broken, match="can't listen at tcp://x{70}:0: .*label"):
        listening.open_all(options.check(f"tcp://{'x' * 70}:0", {}))
    with pytest.raises(Broken, match="can't listen at tcp://192.0.2.1:80"):
        listening.open_all(options.check("tcp://192.0.2.1:80", {}))


def test_shut_keeps_the_queue_and_takes_nobody_else() -> None:
    """After `shut` what is queued can be accepted and spoken with, while a new connection gets no answer."""
    with opened(1) as made:
        address = made[0].getsockname()
        with socket.create_connection(address) as early:
            listening.shut(made[0])
            with socket.socket() as late:
                late.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    late.connect(address)
            assert listening.queued(made[0]) == 1
            accepted, _ = made[0].accept()
            with accepted:
                assert listening.queued(made[0]) == 0
                accepted.settimeout(5)
                early.sendall(b"hello")
                assert accepted.recv(5) == b"hello"


def test_the_limit_of_descriptors_is_raised() -> None:
    """The soft limit becomes the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert listening.raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
