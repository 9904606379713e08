"""Many clients who all talk to all: every message once, in order per sender, and nobody waits for who doesn't read."""

from __future__ import annotations

import asyncio
import contextlib
import resource

import pytest
from server_programs import PATIENCE, Served


class Listener(asyncio.Protocol):
    """A client that keeps what it hears; `heard` is set when that is `wanted` lines."""

    def __init__(self, wanted):
        self.lines, self.rest, self.wanted = [], b"", wanted
        self.heard = asyncio.get_running_loop().create_future()
        self.lost = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.lines += lines
        if len(self.lines) >= self.wanted and not self.heard.done():
            self.heard.set_result(None)

    def connection_lost(self, error):
        self.lost = True
        if not self.heard.done():
            self.heard.set_exception(ConnectionResetError(f"closed after {len(self.lines)} of {self.wanted} lines"))


@pytest.fixture(autouse=True)
def descriptors():
    """As many as this process may have, for this test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def crowd(port, size, wanted):
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(lambda: Listener(wanted), "127.0.0.1", port))[1] for _ in range(size)]


def in_order(lines, senders, each):
    """Whether these are `each` lines of each of `senders`, every one once, those of one sender in their order."""
    said = [[] for _ in range(senders)]
    for line in lines:
        who, _, number = line.partition(b" ")
        said[int(who)].append(int(number))
    return all(numbers == list(range(each)) for numbers in said)


async def talk(server, *, clients, senders, each):
    """The first `senders` of so many clients say `each` lines; everyone hears everything."""
    listeners = await crowd(server.port, clients, senders * each)
    await asyncio.to_thread(server.until, lambda figures: figures.connections == clients, "not all are there")
    for number in range(each):
        for sender in range(senders):
            listeners[sender].transport.write(b"%d %d\n" % (sender, number))
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE * 3):
        await asyncio.gather(*(listener.heard for listener in listeners))
    assert all(in_order(listener.lines, senders, each) for listener in listeners)
    for listener in listeners:
        listener.transport.abort()


@pytest.mark.parametrize("processes", [1, 2])
def test_everyone_hears_everything_once_and_in_order(processes):
    """1,000 clients, 10 of whom say 10 things each, on one process and on two: 100,000 lines, each where it belongs."""
    with Served("chat", processes=processes) as server:
        asyncio.run(talk(server, clients=1_000, senders=10, each=10))
        assert server.figures().dropped == 0


@pytest.mark.soak
def test_a_long_talk():
    """1,000 clients, 20 of whom say 50 things each: a million lines."""
    with Served("chat", processes=2) as server:
        asyncio.run(talk(server, clients=1_000, senders=20, each=50))


async def with_one_who_sleeps(server):
    loop, lines = asyncio.get_running_loop(), 3_000
    listeners = await crowd(server.port, 10, lines)
    _, sleeper = await loop.create_connection(lambda: Listener(lines), "127.0.0.1", server.port)
    sleeper.transport.pause_reading()
    await asyncio.to_thread(server.until, lambda figures: figures.connections == 11, "not all are there")
    sender = listeners[0]
    for number in range(lines):
        sender.transport.write(b"%d %s\n" % (number, b"x" * 4_000))
        while number - len(sender.lines) > 8:  # it reads as it writes, and so do the others
            assert not sender.lost
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(listener.heard for listener in listeners))
    for listener in listeners:
        assert [int(line.split()[0]) for line in listener.lines] == list(range(lines))
    figures = await asyncio.to_thread(server.until, lambda figures: figures.connections == 10, "it is still there")
    assert figures.dropped == 1
    with contextlib.suppress(ConnectionError):
        sleeper.transport.resume_reading()
        await sleeper.heard
    assert len(sleeper.lines) < lines
    for listener in listeners:
        listener.transport.abort()


def test_who_doesnt_read_is_dropped():
    """12 MB said to ten clients of whom one doesn't read: it is dropped, the others get all of it, nobody waits."""
    with Served("chat", write_high=16 << 10, stall=None, idle=None) as server:
        before = server.resident()
        asyncio.run(with_one_who_sleeps(server))
        assert server.resident() - before < 16 << 10
