"""A server whose clients do their worst, over real sockets: bytes cut anywhere, readers that rest, resets, gaps."""

from __future__ import annotations

import json
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading

import pytest
import server_programs
from server_programs import LINGER_NOT, PATIENCE, Served, asked, connect, ended, pause, read
from tests.conftest import need

FLAT = 24 << 10
"""KB that a server may grow by while 100 MB wait to be made."""


def with_reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    sock.close()


def framed(framing, messages):
    if framing == "line":
        return b"".join(message + b"\n" for message in messages)
    return b"".join(struct.pack(">I", len(message)) + message for message in messages)


@pytest.mark.parametrize("framing", ["line", "length"])
def test_one_byte_at_a_time(framing):
    """Messages that come in writes of one byte, as segments of their own, are the messages that were sent."""
    sent = framed(framing, [b"hello", b"", b"\xc3\xa4 \xff", b"x" * 300])
    beat = framed(framing, [b"read?"])
    with Served(framing=framing) as server, server.connect() as client, server.connect() as other:
        for at in range(len(sent)):
            client.sendall(sent[at : at + 1])
            other.sendall(beat)  # its answer says that the byte has been read
            assert read(other, len(beat)) == beat
        assert read(client, len(sent)) == sent
        assert server.figures().messages == 4 + len(sent)


@pytest.mark.parametrize("framing", ["line", "length"])
def test_many_messages_in_one_segment(framing):
    """20,000 messages in one write, cut where the kernel cuts them, are answered in their order."""
    sent = framed(framing, [b"%d" % n for n in range(20_000)])
    with Served(framing=framing) as server, server.connect() as client:
        writer = threading.Thread(target=client.sendall, args=(sent,))
        writer.start()
        assert read(client, len(sent)) == sent
        writer.join()


def test_replies_keep_their_order_when_calls_end_in_another():
    """Async calls that end in any order: replies come in the order of their messages."""
    times = [random.Random(7).randrange(20) for _ in range(500)]
    sent = framed("line", [b"%d" % time for time in times])
    with Served("slowly") as server, server.connect() as client:
        client.sendall(sent)
        assert read(client, len(sent)) == sent


def test_a_character_split_in_two():
    """A UTF-8 character whose bytes come apart is one character; what is not UTF-8 ends that connection, no other."""
    with Served("texts", complaints=["what is not UTF-8"]) as server, server.connect() as client:
        client.sendall(b"gr\xc3")
        server.until(lambda figures: figures.received == 3, "the first part")
        client.sendall(b"\xbcn \xf0\x9f")
        server.until(lambda figures: figures.received == 8, "the second part")
        client.sendall(b"\x92\xa1\n")
        assert read(client, 11).decode() == "GRÜN 💡\n"
        with server.connect() as bad:
            bad.sendall(b"good\n\xff\xfe\nnever\n")
            assert read(bad, 100) == b"GOOD\n"
        assert asked(client, b"still here") == b"STILL HERE"


def test_a_slow_reader_is_paused_and_costs_nobody_else():
    """100 MB asked for by one who hardly reads is not made before it can be sent; others are served meanwhile.

    When it reads at last, it gets all of it.
    """
    size, times = 100_000, 1_000
    with Served("many", idle=None, stall=None) as server, server.connect() as other:
        asked(other, b"10")
        before = server.resident()
        with server.connect(receive=4096) as slow:
            slow.sendall(b"%d\n" % size * times)
            got, most = 0, 0
            for turn in range(3_000):
                assert asked(other, b"10") == b"x" * 10
                if turn % 100 == 0:
                    got += len(slow.recv(1_000))
                    most = max(most, server.resident())
            figures = server.figures()
            assert most - before < FLAT, "memory grew with what the reader was sent"
            assert figures.sent < 20 << 20, f"{figures.sent} bytes were made for a reader that took {got}"
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            assert len(read(slow, (size + 1) * times - got)) == (size + 1) * times - got
        assert server.resident() - before < FLAT


def test_one_reply_of_100_mb():
    """A reply of 100 MB to one who doesn't read: others are served, and after `stall` it is dropped and freed."""
    with Served("many", stall=0.5, lane="inline") as server, server.connect() as other:
        before = server.resident()
        with server.connect(receive=4096) as slow:
            slow.sendall(b"100000000\n")
            slow.recv(1_000)
            for _ in range(1_000):
                assert asked(other, b"10") == b"x" * 10
            server.until(lambda figures: figures.dropped == 1, "it isn't dropped")
        assert server.resident() - before < FLAT


@pytest.mark.parametrize("framing", ["line", "length"])
def test_a_frame_over_the_limit(framing):
    """A message over max_frame: those before it are answered, the connection is closed, and the rest isn't kept."""
    first = framed(framing, [b"first", b"second"])
    with (
        Served(framing=framing, max_frame=1_000, complaints=["more than 1000 bytes"]) as server,
        server.connect() as other,
    ):
        other.sendall(first)
        assert read(other, len(first)) == first
        for tail in (framed(framing, [b"x" * 1_001]), framed(framing, [b"x" * 100_000])[:50_000]):
            with server.connect() as client:
                client.sendall(first + tail)
                assert read(client, 1_000) == first
        figures = server.until(lambda figures: figures.connections == 1, "they are closed")
        assert figures.overrun == 2
        other.sendall(framed(framing, [b"y" * 1_000]))
        assert read(other, len(framed(framing, [b"y" * 1_000]))) == framed(framing, [b"y" * 1_000])


def test_a_storm_of_resets():
    """3,000 connections reset, before, within and behind messages, with replies unread: then it serves as before."""

    def storm(seed):
        choose = random.Random(seed)
        for _ in range(750):
            client = server.connect()
            try:
                what = choose.randrange(4)
                if what:
                    client.sendall((b"half", b"whole\n", b"many\n" * 5_000)[what - 1])
                if what == 2:
                    client.recv(3)
            except ConnectionError:
                pass
            with_reset(client)

    with Served() as server:
        with server.connect() as client:
            asked(client, b"warm")
        server.until(lambda figures: figures.connections == 0, "the first one is closed")
        before, memory = server.descriptors(), server.resident()
        storms = [threading.Thread(target=storm, args=(seed,)) for seed in range(4)]
        for each in storms:
            each.start()
        for each in storms:
            each.join()
        server.until(lambda figures: figures.connections == 0, "connections are left")
        assert server.descriptors() == before
        assert server.resident() - memory < FLAT
        with server.connect() as client:
            assert asked(client, b"after") == b"after"


def test_slowloris():
    """Who says nothing, and who says a byte now and then, is closed in time; who talks is not."""
    with Served(first_byte=0.5, idle=0.8) as server, server.connect() as talker:
        mute, dripping = server.connect(), [server.connect() for _ in range(100)]
        over = threading.Event()

        def talk():
            while not over.wait(0.1):
                asked(talker, b"still there")

        def drip():
            while not over.wait(0.2):
                for each in dripping:
                    try:
                        each.send(b"x")
                    except ConnectionError:
                        continue

        threads = [threading.Thread(target=each) for each in (talk, drip)]
        for thread in threads:
            thread.start()
        try:
            with mute:
                assert ended(mute)
            server.until(lambda figures: figures.connections == 1 and figures.expired == 101, "drips are still there")
        finally:
            over.set()
            for thread in threads:
                thread.join()
            for each in dripping:
                each.close()
        assert asked(talker, b"to the end") == b"to the end"


def test_no_descriptor_left():
    """With its descriptors used up a server neither spins nor ends: those it serves are served, later ones in time."""
    with Served(descriptors=64, lane="inline", idle=None, first_byte=None, complaints=[""]) as server:  # asyncio tells
        with server.connect() as first:
            asked(first, b"warm")
            crowd = [connect(server.port) for _ in range(150)]
            try:
                server.until(lambda _: server.descriptors() >= 60, "its table isn't full")
                used = server.cpu()
                pause(1.0)
                assert server.cpu() - used < 0.1, "it spins"
                assert asked(first, b"while full") == b"while full"
                waiting = connect(server.port)
            finally:
                for each in crowd:
                    each.close()
        with waiting:
            for _ in range(PATIENCE * 10):  # refused by closing while the table is full; after that, accepted
                try:
                    with connect(server.port) as later:
                        assert asked(later, b"after") == b"after"
                    break
                except ConnectionError:
                    pause(0.1)
            else:
                raise AssertionError("it has not recovered")


def test_one_long_call_among_quick_ones():
    """A handler that was interrupted for long a few times stays on the event loop; one that goes on blocking leaves it.

    On a busy machine the first happens to every handler, and must not make a server slow for the rest of its life.
    """
    with Served("sometimes") as server, server.connect() as client:
        while server.ask()[1][0].lane != "inline":
            asked(client, b"quick")
        for _ in range(3):
            assert asked(client, b"slow") == b"slow"
        assert server.ask()[1][0].lane == "inline"
        for _ in range(20):
            assert asked(client, b"slow") == b"slow"
        assert server.ask()[1][0].lane == "thread"


def test_peers_that_vanish():
    """Peers that are cut off without a word, some of them owed a reply: their connections end in time.

    Client and server are in a network of their own, whose only interface is switched off and on again.
    """
    alone = ("unshare", "--user", "--map-root-user", "--net")
    possible = shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    need(possible, "a network namespace (unshare --user --net)")
    done = subprocess.run(
        [*alone, sys.executable, server_programs.__file__, "vanish"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    figures, said = json.loads(done.stdout)
    assert said == "7"
    assert figures["accepted"] == 51
    assert figures["connections"] == 1
    assert figures["expired"] == 50
