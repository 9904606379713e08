"""Frames, and what pickles into them."""

from __future__ import annotations

import os
import pickle
import threading

import pytest

from duodao import pickling
from duodao.errors import NotPicklable, RemoteError, RemoteTraceback
from duodao.lanes import wire


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def write(writer, pieces):
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(writer, view) :]


@pytest.mark.parametrize("size", [0, 1, 100, 65535, 65536, 300_000, 3_000_000])
@pytest.mark.parametrize("meta", [None, (1, "two", [3.0], None)])
def test_frame_round_trip(pipe, size, meta):
    """A frame of any size comes out as it went in, on both kinds of reader."""
    reader, writer = pipe
    body = os.urandom(size)
    pieces = wire.parts(wire.PART, 7, flags=3, count=9, seconds=0.5, meta=meta, body=body)
    thread = threading.Thread(target=write, args=(writer, pieces * 3))
    thread.start()
    frames = [wire.read_frame(reader)]
    patient = wire.Reader(reader, bytearray(65536))
    while len(frames) < 3:
        frames += [frame._replace(body=bytes(frame.body)) for frame in patient.read()]
    thread.join()
    for frame in frames:
        assert frame._replace(body=b"") == (wire.PART, 3, 7, 9, 0.5, meta, b"")
        assert bytes(frame.body) == body


def test_reader_of_split_frames(pipe):
    """Frames that arrive a byte at a time, or several at once, are told apart."""
    reader, writer = pipe
    data = b"".join(b"".join(wire.parts(wire.OUTPUT, n, meta=(n,), body=b"x" * n)) for n in range(50))
    patient = wire.Reader(reader, bytearray(256))
    seen = []
    for at in range(0, len(data), 7):
        write(writer, [data[at : at + 7]])
        seen += [(frame.seq, frame.meta, bytes(frame.body)) for frame in patient.read()]
    assert seen == [(n, (n,), b"x" * n) for n in range(50)]


def test_end_of_the_pipe():
    """The end is None for who waits, EOFError for who polls; also in the middle of a frame."""
    for cut in (0, 5, 40):
        data = wire.parts(wire.RUN, body=b"y" * 100)[0][:cut]
        reader, writer = os.pipe()
        write(writer, [data])
        os.close(writer)
        assert wire.read_frame(reader) is None
        os.close(reader)
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(EOFError):
        list(wire.Reader(reader, bytearray(64)).read())
    os.close(reader)


class TwoArgs(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class Loud(Exception):
    def __str__(self):
        raise ValueError("no text")

    def __reduce__(self):
        raise TypeError("no pickle")


def caught(error):
    try:
        raise error
    except BaseException as raised:
        return raised


def test_error_keeps_type_args_notes_and_traceback():
    """The user's exception comes back as itself, the remote traceback as its cause."""
    error = caught(KeyError("k", 2))
    error.add_note("a note")
    back = wire.load_error(wire.dump_error(error))
    assert type(back) is KeyError
    assert back.args == ("k", 2)
    assert back.__notes__ == ["a note"]
    assert isinstance(back.__cause__, RemoteTraceback)
    assert "in caught" in str(back.__cause__)


@pytest.mark.parametrize("error", [TwoArgs(1, 2), Loud("x")])
def test_error_that_does_not_travel(error):
    """It becomes a RemoteError that says its type and shows its traceback."""
    back = wire.load_error(wire.dump_error(caught(error)))
    assert type(back) is RemoteError
    assert back.remote_type == type(error).__name__
    assert "in caught" in back.remote_text


def test_error_that_fails_only_here():
    """An exception that can't be unpickled on this side is a RemoteError too."""
    assert isinstance(wire.load_error(b"\x80\x05cnowhere\nNothing\n."), RemoteError)


def test_dump_each_names_the_bad_ones():
    """Of a list, those that can't be pickled are named, the others are pickled."""
    blobs, bad = wire.dump_each([1, threading.Lock(), "x"], "input")
    assert set(bad) == {1}
    assert isinstance(bad[1], NotPicklable)
    assert bad[1].what == "input"
    assert "lock" in str(bad[1])
    assert [bool(blob) for blob in blobs] == [True, False, True]


def test_shown_is_short_whatever_it_is():
    """A text for messages never fails and never grows."""

    class Rude:
        def __repr__(self):
            raise RuntimeError

    assert wire.shown(Rude()) == "<Rude>"
    assert len(wire.shown(["x"] * 10_000)) == 200
    assert len(wire.shown(b"\xff" * (1 << 20))) == 200


def test_lambdas_and_closures_travel():
    """What pickle refuses goes by value."""
    import pickle

    n = 5
    assert pickle.loads(wire.dumps(lambda x: x + n))(1) == 6


def test_code_sent_by_value_keeps_its_file():
    """A function that travels by value keeps the name of its file, so that a remote traceback shows its source."""
    function = pickle.loads(pickling.by_value(lambda x: x))
    assert function.__code__.co_filename == __file__
    assert function(3) == 3
