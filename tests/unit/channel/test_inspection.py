"""Reading a journal."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from duodao.channel.journal import Identity, Journal
from duodao.errors import JournalDamaged, UsageError
from duodao.outcome import Attempt, Outcome

IDENTITY = Identity(("module.f", "module.g"), "c0de 0ther", "f -> g")


def fill(path, outcomes, notes=None, open_too=None):
    """A journal that has these outcomes; `open_too` is called when they are committed and the journal still open."""
    journal = Journal(path)
    for name, value in (notes or {}).items():
        journal.note(name, value)
    done = threading.Event()
    count = len(outcomes)
    seen = []

    def committed(ids):
        seen.extend(ids)
        if len(seen) == count:
            done.set()

    journal.open(IDENTITY, on_committed=committed, on_error=print)
    inputs = sorted((o.index, o.input) for o in outcomes)
    journal.admit([i for i, _ in inputs], [x for _, x in inputs])
    journal.record(outcomes)
    assert done.wait(30)
    if open_too:
        open_too(journal)
    journal.finish(complete=True)


FAILURE = Outcome(
    1, "two", None, ValueError("bad"), 2, 0.5, "thread",
    (Attempt(1, "f", "thread", 0.25, "ValueError: first"), Attempt(2, "f", "thread", 0.25, "ValueError: bad")),
)  # fmt: skip


def test_what_it_tells(tmp_path):
    """Identity, what the command line noted, counts, outcomes in input order, and dead letters with every attempt."""
    path = tmp_path / "j"
    command = {"argv": ["map", "a\udcff"], "cwd": "/"}
    fill(path, [Outcome(2, "three", 3), FAILURE, Outcome(0, "one", 1)][::-1], {"command": command})
    with Journal.inspect(path) as seen:
        assert seen.identity == IDENTITY
        assert seen.command == command
        assert seen.counts() == (3, 2, 1, 0)
        assert [o.index for o in seen.outcomes()] == [0, 1, 2]
        (letter,) = seen.failures()
    assert (letter.index, letter.input, letter.error, letter.attempts) == (1, "two", "ValueError: bad", 2)
    assert letter.tries == FAILURE.tries
    assert "ValueError: bad" in letter.traceback


def test_a_later_note_replaces(tmp_path):
    """What is noted while the journal is open is kept as well."""
    fill(tmp_path / "j", [FAILURE], {"command": 1}, lambda journal: journal.note("command", [2]))
    with Journal.inspect(tmp_path / "j") as seen:
        assert seen.command == [2]


def test_while_it_is_written(tmp_path):
    """A reader sees what is committed while a run has the journal open, and keeps the run from nothing."""

    def look(journal):
        with Journal.inspect(tmp_path / "j") as seen:
            assert seen.counts().failed == 1
            journal.admit([1], ["more"])
            journal.record([Outcome(1, "more", 1)])
            journal.finish(complete=True)

    fill(tmp_path / "j", [Outcome(0, "two", None, ValueError("bad"))], None, look)
    with Journal.inspect(tmp_path / "j") as seen:
        assert seen.counts().total == 2


def test_it_changes_nothing(tmp_path):
    """Neither a finished journal nor one whose writer was killed is changed by a reader, down to the byte."""
    path = tmp_path / "j"
    copies = tmp_path / "killed"
    copies.mkdir()

    def copy(journal):
        for side in ("", "-wal"):
            (copies / f"j{side}").write_bytes((tmp_path / f"j{side}").read_bytes())

    fill(path, [FAILURE], None, copy)
    for folder in (tmp_path, copies):
        files = [p for p in folder.iterdir() if p.is_file()]
        before = [hashlib.sha256(p.read_bytes()).digest() for p in files]
        with Journal.inspect(folder / "j") as seen:
            assert seen.counts().failed == 1
        assert [hashlib.sha256(p.read_bytes()).digest() for p in files] == before
    assert sorted(os.listdir(tmp_path)) == ["j", "killed"]


def test_no_journal_there(tmp_path):
    """A file that is missing or is something else is named; a reader never makes one."""
    with pytest.raises(UsageError, match="no journal"):
        Journal.inspect(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(JournalDamaged):
        Journal.inspect(tmp_path / "text")
