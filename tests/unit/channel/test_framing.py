"""Frames on streams: cut in any way they arrive whole, and nothing is believed beyond its limit."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.channel import framing
from duodao.children import lifeline
from duodao.errors import PeerLost

FRAMES = st.lists(st.tuples(st.integers(1, 250), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=6)


def raw_and_stream():
    """The write end of a pipe, and a stream that reads it (and writes into a pipe of its own)."""
    reader, raw = lifeline.private_pipe()
    other, writer = lifeline.private_pipe()
    stream = framing.Stream(reader, writer)
    stream.limit = 1000
    return raw, other, stream


@given(FRAMES, st.lists(st.integers(1, 97), min_size=1))
def test_frames_in_any_pieces(frames, sizes):
    """However the bytes are cut on their way, the same frames come out, in order, sealed or not."""
    for sealed in (False, True):
        raw, other, stream = raw_and_stream()
        try:
            if sealed:
                stream.seal_in, stream.seal_out = framing.Seal(b"k" * 32), framing.Seal(b"k" * 32)
            for kind, number, body in frames:
                stream.add(kind, number, [body], flags=1)
            data, at, found, turn = b"".join(map(bytes, stream.unsent)), 0, [], 0
            while at < len(data):
                size = sizes[turn % len(sizes)]
                os.write(raw, data[at : at + size])
                found += [(f.kind, f.number, bytes(f.body)) for f in stream.read()]
                at, turn = at + size, turn + 1
            assert found == frames
            assert stream.read() == []
            lifeline.close_private(raw)
            with pytest.raises(EOFError):
                stream.read()
        finally:
            stream.close()
            lifeline.close_private(other)
            lifeline.close_private(raw)


def test_a_frame_beyond_the_limit():
    """A length beyond the limit is refused from its head alone."""
    raw, other, stream = raw_and_stream()
    os.write(raw, framing.HEAD.pack(1001, 1, 0, 0))
    with pytest.raises(PeerLost, match="1001 bytes"):
        stream.read()
    stream.close()
    for fd in (raw, other):
        lifeline.close_private(fd)


def test_a_full_pipe_keeps_the_rest():
    """What the other side doesn't take now is kept, and sent as it reads."""
    raw, other, stream = raw_and_stream()
    body = os.urandom(3_000_000)
    stream.add(1, 1, [body])
    got = bytearray()
    while not stream.flush():
        got += os.read(other, 1 << 20)
    stream.close()
    while part := os.read(other, 1 << 20):
        got += part
    assert bytes(got[framing.HEAD.size :]) == body
    for fd in (raw, other):
        lifeline.close_private(fd)
