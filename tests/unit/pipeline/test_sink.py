"""The JSON-lines sink: what a file holds after a run, an interrupted run, a resumed one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duodao.channel.journal import Identity, Journal
from duodao.errors import UsageError
from duodao.outcome import Attempt, Outcome
from duodao.pipeline.sink import JsonLines


def outcome(index, value):
    """A success, or a failure when the value is an exception."""
    if isinstance(value, Exception):
        return Outcome(index, f"in{index}", None, value, 1, 0.5, "inline")
    return Outcome(index, f"in{index}", value, None, 1, 0.5, "inline")


def write(path, values, *, complete=True, journal=None, step=3, **options):
    """One run that comes to `values`."""
    sink = JsonLines(path, journal=journal, **options)
    sink.open()
    try:
        for at in range(0, len(values), step):
            sink.write([outcome(at + n, value) for n, value in enumerate(values[at : at + step])])
    finally:
        sink.close(complete)
    return sink


def lines(path):
    """The values in the file."""
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


@pytest.fixture
def out(tmp_path):
    """Where the output goes; failures go to out.failed.jsonl beside it."""
    return tmp_path / "out.jsonl"


@pytest.fixture
def failed(tmp_path):
    """Where failures go."""
    return tmp_path / "out.failed.jsonl"


def test_values(out, failed):
    """One line per success, the value itself, in the order given; no file of failures when there are none."""
    write(out, [1, "two", None, {"a": [1.5, True]}])
    assert out.read_text() == '1\n"two"\nnull\n{"a": [1.5, true]}\n'
    assert not failed.exists()


def test_records(out):
    """With records each line has index, input, value, attempts, seconds and lane."""
    write(out, [7], records=True)
    assert lines(out) == [{"index": 0, "input": "in0", "value": 7, "attempts": 1, "seconds": 0.5, "lane": "inline"}]


def test_failures(out, failed):
    """A failure is a record in the other file: input, error, traceback, every attempt."""
    try:
        raise ValueError("bad")
    except ValueError as caught:
        error = caught
    sink = JsonLines(out)
    sink.open()
    tries = (Attempt(1, "f", "thread", 0.25, "ValueError: bad"),)
    sink.write([outcome(0, 1), Outcome(1, Path("x"), None, error, 1, 0.25, "thread", tries)])
    sink.close(True)
    (record,) = lines(failed)
    assert "test_failures" in record.pop("traceback")
    assert record == {
        "index": 1, "input": "x", "error": "ValueError", "message": "bad", "attempts": 1, "seconds": 0.25,
        "lane": "thread",
        "tries": [{"number": 1, "stage": "f", "lane": "thread", "seconds": 0.25, "error": "ValueError: bad"}],
    }  # fmt: skip
    assert lines(out) == [1]
    assert (sink.failed, sink.unfit) == (1, 0)


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize("value", [{1, 2}, b"x", float("nan"), float("inf"), object(), LOOP, {(1, 2): 3}, 1j])
@pytest.mark.parametrize("records", [False, True])
def test_what_json_cannot_hold(out, failed, value, records):
    """Such a result is a failure of that input: a record that says why and shows the value; the others are written."""
    sink = write(out, [1, value, 2], records=records)
    assert len(lines(out)) == 2
    (record,) = lines(failed)
    assert record["index"] == 1 and record["value"] == repr(value)
    assert "JSON can't hold the result" in record["message"]
    assert (sink.unfit, sink.failed) == (1, 1)


def test_undecodable_paths(out, failed):
    """Paths that don't decode are written as surrogates and are the same path when read."""
    raw = b"/a/\xff\xc3\xa9"
    sink = JsonLines(out, records=True)
    sink.open()
    sink.write([Outcome(0, raw, os.fsdecode(raw)), Outcome(1, os.fsdecode(raw), None, ValueError("x"))])
    sink.close(True)
    (record,) = lines(out)
    assert os.fsencode(record["input"]) == os.fsencode(record["value"]) == raw
    assert os.fsencode(lines(failed)[0]["input"]) == raw
    assert out.read_bytes().isascii()


def test_inputs_json_cannot_hold(out):
    """In a record such an input is its repr; it doesn't cost the result."""
    sink = JsonLines(out, records=True)
    sink.open()
    sink.write([Outcome(0, {1, 2}, 3), Outcome(1, float("nan"), 4), Outcome(2, threading.Lock, 5)])
    sink.close(True)
    assert [r["input"] for r in lines(out)] == ["{1, 2}", "nan", repr(threading.Lock)]


def test_without_a_journal_it_starts_empty(out, failed):
    """What an earlier run left is gone, failures too."""
    write(out, [1, ValueError("x"), 3])
    assert failed.exists()
    write(out, [4])
    assert out.read_text() == "4\n"
    assert not failed.exists()


# -- going on ---------------------------------------------------------------------------------------------------------


class Watched:
    """Notes what is written to files."""

    def __init__(self, monkeypatch):
        self.written = 0
        real = os.pwrite

        def pwrite(fd, data, at):
            self.written += len(data)
            return real(fd, data, at)

        monkeypatch.setattr(os, "pwrite", pwrite)


VALUES = [*range(100), ValueError("x"), {"s": 1}, *range(50)]


def undisturbed(folder, values=VALUES):
    """(OUT, failures) of a run that nothing disturbs."""
    folder.mkdir(exist_ok=True)
    write(folder / "out.jsonl", values)
    with contextlib.suppress(FileNotFoundError):
        return (folder / "out.jsonl").read_bytes(), (folder / "out.failed.jsonl").read_bytes()
    return (folder / "out.jsonl").read_bytes(), None


def test_a_file_that_is_right_is_not_written(out, monkeypatch):
    """Lines that are there already are compared and kept."""
    write(out, VALUES)
    before = out.stat().st_ino, out.read_bytes()
    watched = Watched(monkeypatch)
    write(out, VALUES, journal="j")
    assert watched.written == 0
    assert (out.stat().st_ino, out.read_bytes()) == before


def test_cut_at_any_byte(out, failed, tmp_path):
    """Wherever the former run was killed, the file of the resumed run is that of an undisturbed one."""
    whole, dead = undisturbed(tmp_path / "clean")
    for at in range(0, len(whole), 7):
        out.write_bytes(whole[:at])
        failed.write_bytes(dead[: at % len(dead)])
        write(out, VALUES, journal="j")
        assert (out.read_bytes(), failed.read_bytes()) == (whole, dead)


def test_power_failure(out, tmp_path):
    """Zeros in the place of what had not reached the disk are found and written over."""
    whole, _ = undisturbed(tmp_path / "clean")
    out.write_bytes(whole[:100] + bytes(len(whole) - 100))
    write(out, VALUES, journal="j")
    assert out.read_bytes() == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12) | st.just("fail"), max_size=40),
    st.lists(st.integers(0, 12) | st.just("fail"), max_size=40),
    st.integers(0, 200),
    st.integers(1, 5),
)
def test_any_change_of_the_inputs(tmp_path_factory, before, now, cut, step):
    """Inputs that are new, gone, changed or moved give the files of an undisturbed run over today's inputs."""
    folder = tmp_path_factory.mktemp("sink")
    old = [ValueError("x") if v == "fail" else v for v in before]
    new = [ValueError("x") if v == "fail" else v for v in now]
    path = folder / "out.jsonl"
    write(path, old, step=step)
    os.truncate(path, min(cut, path.stat().st_size))
    write(path, new, journal="j", step=step)
    found = path.read_bytes(), (folder / "out.failed.jsonl").read_bytes() if "fail" in now else None
    assert found == undisturbed(folder / "clean", new)
    assert (folder / "out.failed.jsonl").exists() == ("fail" in now)


def test_stopped_again(out):
    """A resumed run that is stopped before it has caught up leaves a beginning of the whole, nothing of gone inputs."""
    write(out, [1, 2, 3, 4])
    write(out, [1, 2], complete=False, journal="j")
    assert lines(out) == [1, 2]


def test_a_refused_run_touches_nothing(out, failed):
    """A run that ends before any outcome, because another has its journal, leaves that one's files alone."""
    write(out, [1, ValueError("x")])
    before = out.read_bytes(), failed.read_bytes()
    write(out, [], complete=False, journal="j")
    assert (out.read_bytes(), failed.read_bytes()) == before


def test_failures_that_are_gone(out, failed):
    """The file of failures goes when what failed has succeeded in a retry."""
    write(out, [1, ValueError("x"), 3])
    assert failed.exists()
    write(out, [1, 2, 3], journal="j")
    assert not failed.exists()
    assert lines(out) == [1, 2, 3]


def test_large_file_goes_on(out, tmp_path):
    """A file of many blocks, cut in the middle of one, is right in the end."""
    values = ["x" * (n % 3000) for n in range(1500)]
    whole, _ = undisturbed(tmp_path / "clean", values)
    assert len(whole) > 1_000_000
    out.write_bytes(whole[:723_456])
    write(out, values, journal="j", step=50)
    assert out.read_bytes() == whole


def test_with_a_journal_the_failures_are_the_same(out, failed, tmp_path):
    """A failure that comes from the journal makes the same record as when it happened, traceback and attempts too."""
    try:
        raise KeyError("x")
    except KeyError as caught:
        error = caught
    first = Outcome(0, Path("in"), None, error, 2, 0.5, "thread", (Attempt(2, "f", "thread", 0.5, "KeyError: 'x'"),))
    identity = Identity(("m.f",), "c", "f")
    journal = Journal(tmp_path / "j")
    journal.open(identity, on_committed=len, on_error=print)
    journal.admit([0], [Path("in")])
    journal.record([first])
    journal.finish(complete=True)
    journal.open(identity, on_committed=len, on_error=print)
    second = journal.admit([0], [Path("in")])[0]
    journal.finish(complete=True)
    texts = []
    for entry in (first, second):
        sink = JsonLines(out)
        sink.open()
        sink.write([entry])
        sink.close(True)
        texts.append(failed.read_bytes())
    assert texts[0] == texts[1]


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_seen_while_it_grows(out):
    """What is written is in the file while the run goes on, at the latest with what comes 0.2 s later."""

    class Late:
        at = 0.0

        def now(self):
            self.at += 1.0
            return self.at

    import duodao.pipeline.sink as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SYSTEM", Late())
        sink = JsonLines(out)
        sink.open()
        sink.write([outcome(0, 1)])
        assert lines(out) == [1]
        sink.close(True)


def test_stdout(capfdbinary):
    """`-` writes to stdout, after what was printed before; failures go nowhere unless a path is given."""
    with contextlib.redirect_stdout(io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), write_through=False)) as stream:
        stream.write("before\n")
        sink = write("-", [1, ValueError("x"), 2])
        assert not stream.closed
        stream.close()
    assert capfdbinary.readouterr().out == b"before\n1\n2\n"
    assert sink.failed == 1


@pytest.mark.parametrize("stream", [io.StringIO, io.BytesIO])
def test_stream(stream):
    """An open stream, text or bytes, is written to and stays open."""
    target = stream()
    write(target, [1, "é"])
    assert target.getvalue() in ('1\n"\\u00e9"\n', b'1\n"\\u00e9"\n')


def test_pipe(tmp_path):
    """A named pipe is written like a stream, also when the run has a journal."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write(path, [1, 2], journal="j")
    reader.join(30)
    assert found == [b"1\n2\n"]


def test_what_is_no_regular_file_is_never_removed(tmp_path):
    """A pipe given for the failures is still there after a run without failures; so would be a device."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "out.jsonl", [1, 2], failed_path=path)
    assert os.read(reader, 10) == b""
    os.close(reader)
    assert path.is_fifo()


def test_it_cannot_be_written(tmp_path):
    """A path that can't be written is refused in `open`, with the reason; nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    for path, reason in ((tmp_path, "directory"), (tmp_path / "no" / "where", "No such file")):
        with pytest.raises(UsageError, match=reason):
            JsonLines(path).open()
    (tmp_path / "o.failed.jsonl").mkdir()
    with pytest.raises(UsageError, match="directory"):
        JsonLines(tmp_path / "o.jsonl").open()
    assert len(os.listdir("/proc/self/fd")) == before


def test_full_disk(tmp_path):
    """A disk that is full is an OSError of the run, not silence."""
    (tmp_path / "full").symlink_to("/dev/full")
    sink = JsonLines(tmp_path / "full")
    sink.open()
    with pytest.raises(OSError, match="No space"):
        sink.write([outcome(n, "x" * 1000) for n in range(1000)])
        sink.close(True)
    with contextlib.suppress(OSError):
        sink.close(False)


def test_closing_twice(out):
    """close is idempotent."""
    sink = write(out, [1])
    sink.close(True)
    assert lines(out) == [1]


class _Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class _Trap(dict):
    def items(self):
        raise KeyError("items")


def test_an_error_without_a_text_is_a_failure_like_others(out):
    """A `__str__` that raises costs the message, not the run and the results after it."""
    write(out, [1, _Mute(), 3])
    assert lines(out) == [1, 3]
    (record,) = lines(out.with_suffix(".failed.jsonl"))
    assert record["message"] == "<RuntimeError in its __str__>"


def test_a_result_whose_encoding_raises_anything_is_unfit(out):
    """A dict of the user's may raise what it likes when it is written."""
    sink = write(out, [1, _Trap(a=1), 3])
    assert (lines(out), sink.unfit) == ([1, 3], 1)


def test_an_input_that_python_does_not_write_is_told_by_its_repr(out):
    """An int of more digits than Python turns into a text, as the input of a failure."""
    sink = JsonLines(out)
    sink.open()
    sink.write([Outcome(0, 10**5000, None, ValueError("no"), 1, 0.5, "inline")])
    sink.close()
    (record,) = lines(out.with_suffix(".failed.jsonl"))
    assert record["input"] == "<int whose repr raises ValueError>"


def test_files_stay_where_they_were_meant_when_a_function_changes_the_directory(tmp_path, monkeypatch):
    """The file of failures is made at the first one: not where a function has gone in the meantime."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = JsonLines("out.jsonl")
    sink.open()
    os.chdir("elsewhere")
    sink.write([outcome(0, 1), outcome(1, ValueError())])
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out.failed.jsonl", "out.jsonl"]
