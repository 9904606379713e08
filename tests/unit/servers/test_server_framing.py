"""Framing: the same messages whatever the cuts, and no more memory than the limit says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.servers.framing import FRAMERS, Framer, Lengths, Lines, Raw

LIMIT = 50


def run(framer: Framer, stream: bytes, cuts: list[int], most: int = 64) -> list[bytes]:
    """Feed `stream` cut at `cuts`; all messages."""
    got: list[bytes] = []
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for begin, end in zip(edges, edges[1:], strict=False):
        got += framer.take(stream[begin:end], most)
        while framer.more and not framer.over:
            got += framer.take(b"", most)
    return got


line = st.binary(max_size=LIMIT).map(lambda b: b.replace(b"\n", b" ").replace(b"\r", b" "))
cuts = st.lists(st.integers(0, 10_000), max_size=40)


@given(st.lists(line, max_size=30), cuts, st.integers(1, 5), st.booleans())
def test_lines_do_not_depend_on_cuts(lines: list[bytes], cuts: list[int], most: int, returns: bool) -> None:
    """Lines arrive whole and in order for every cut, with a carriage return or none; what follows the last is kept."""
    end = b"\r\n" if returns else b"\n"
    framer = Lines(LIMIT)
    assert run(framer, b"".join(text + end for text in lines) + b"rest", cuts, most) == lines
    assert (bytes(framer.rest), framer.more, framer.over) == (b"rest", False, False)


@given(st.lists(st.binary(max_size=LIMIT), max_size=30), cuts, st.integers(1, 5))
def test_lengths_do_not_depend_on_cuts(messages: list[bytes], cuts: list[int], most: int) -> None:
    """Messages with their length in front arrive whole and in order for every cut; `wrap` makes what `take` reads."""
    framer = Lengths(LIMIT)
    assert run(framer, Lengths.wrap(messages) + b"\x00", cuts, most) == messages
    assert (bytes(framer.rest), framer.more, framer.over) == (b"\x00", False, False)


@given(st.binary(max_size=500), cuts, st.integers(1, 5))
def test_raw_loses_nothing(stream: bytes, cuts: list[int], most: int) -> None:
    """Without framing all bytes arrive in order, in pieces no larger than the largest frame."""
    framer = Raw(LIMIT)
    pieces = run(framer, stream, cuts, most)
    assert b"".join(pieces) == stream
    assert all(0 < len(piece) <= LIMIT for piece in pieces)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_line_over_the_limit_ends_the_stream(step: int) -> None:
    """The lines before it are messages, it is none, and no more than a frame of it was kept."""
    framer, got = Lines(LIMIT), []
    stream = b"first\n" + b"x" * LIMIT + b"\n" + b"y" * (LIMIT + 1) + b"\nlast\n"
    for at in range(0, len(stream), step):
        got += framer.take(stream[at : at + step])
        if framer.over:
            break
        assert len(framer.rest) <= LIMIT + 1
    assert framer.over
    assert got == [b"first", b"x" * LIMIT]


def test_a_line_that_never_ends_is_over_at_the_limit() -> None:
    """Bytes without a line feed are over as soon as no line of them could be allowed."""
    framer = Lines(LIMIT)
    assert framer.take(b"z" * (LIMIT + 1)) == []
    assert not framer.over  # the last one may be a carriage return
    assert framer.take(b"z") == []
    assert framer.over


def test_a_length_over_the_limit_is_not_waited_for() -> None:
    """The four bytes that announce too much end the stream; what came before is given out."""
    framer = Lengths(LIMIT)
    assert framer.take(Lengths.wrap([b"a"]) + struct.pack(">I", LIMIT + 1)) == [b"a"]
    assert framer.over


def test_messages_beyond_those_asked_for_stay_bytes() -> None:
    """Of ten thousand lines in a segment three are taken when three may be; with none allowed all is kept."""
    for name, stream in (("line", b"x\n" * 10_000), ("length", Lengths.wrap([b"x"] * 10_000)), ("raw", b"x" * 10_000)):
        framer = FRAMERS[name](1)
        assert framer.take(stream, 0) == []
        assert framer.more
        assert framer.take(b"", 3) == [b"x"] * 3
        assert framer.more
        assert framer.take(b"", 20_000) == [b"x"] * 9_997
        assert not framer.more


def test_an_empty_line_is_an_empty_message() -> None:
    """Empty lines count, and one carriage return belongs to the line's end, a second to the line."""
    assert Lines(LIMIT).take(b"\n\r\n\r\r\na\rb\n") == [b"", b"", b"\r", b"a\rb"]
    assert Lines.wrap([b""]) == b"\n"
    assert Lines.wrap([b"a", b"", b"b"]) == b"a\n\nb\n"
