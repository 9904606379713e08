"""Packets arrive whole, with their descriptors, or say what was lost."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from duodao.children import wire


@pytest.fixture
def ends():
    """Both ends of a connection."""
    made = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield made
    for end in made:
        end.close()


@pytest.mark.parametrize("size", [0, 1, 47_000, 49_152, 1_000_000])
def test_any_size_arrives(ends, size):
    """A message of any size is one message, with its descriptors in order, close-on-exec."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    for number in range(3):
        wire.send(ends[0], wire.encode(("kind", number, b"x" * size, {b"a": b"b"}, None, "\udcff")), fds)
    for number in range(3):
        message, got = wire.receive(ends[1])
        assert message == ("kind", number, b"x" * size, {b"a": b"b"}, None, "\udcff")
        assert len(got) == 5
        assert not any(os.get_inheritable(fd) for fd in got)
        for fd in got:
            os.close(fd)
    for fd in fds:
        os.close(fd)


def test_the_end(ends):
    """The end is None, also when the other side closed with a message unread; what it had sent comes first."""
    wire.send(ends[1], wire.encode(("unread",)))
    wire.send(ends[0], wire.encode(("last",)))
    ends[0].close()
    assert wire.receive(ends[1]) == (("last",), [])
    assert wire.receive(ends[1]) is None
    assert wire.receive(ends[1]) is None


def test_nobody_there(ends):
    """To a full end with MSG_DONTWAIT: BlockingIOError. To a closed one: an error of the connection, and no SIGPIPE."""
    with pytest.raises(BlockingIOError):
        while True:
            wire.send(ends[0], b"x" * 40_000, flags=socket.MSG_DONTWAIT)
    ends[1].close()
    for error in (ConnectionResetError, BrokenPipeError):  # the first because it closed with messages unread
        with pytest.raises(error):
            wire.send(ends[0], b"")


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_lost_descriptors_are_noticed(ends, size):
    """A receiver at its limit of open files gets Truncated with the message's number, and leaks none."""
    wire.send(ends[0], wire.encode((b"x" * size,)), [0] * 50, number=17)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    have = os.listdir("/proc/self/fd")
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 3, before[1]))
    try:
        with pytest.raises(wire.Truncated) as caught:
            wire.receive(ends[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.number == 17
    assert len(os.listdir("/proc/self/fd")) == len(have)
