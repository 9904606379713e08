"""Outcomes as rows and back."""

from __future__ import annotations

import os
import pickle
import threading
import traceback

import pytest

from duodao.channel.rows import DONE, FAILED, JOINED_FAILED, dead_letter, pack, pack_joined, trace_text, unpack, verify
from duodao.errors import JournalDamaged, NotPicklable, RemoteError, RemoteTraceback
from duodao.outcome import Attempt, Outcome

KEY = b"k" * 16


def raised(error):
    """The error with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


class Fussy(Exception):
    """Pickles, and then can't be unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Gone:
    """A class that can't be had again once it is renamed."""


def test_success_round_trips():
    """A value comes back with input, attempts, seconds, lane and every attempt."""
    tries = (Attempt(1, "f", "thread", 0.25, "ValueError: x"), Attempt(2, "f", "thread", 0.5, None))
    outcome = Outcome(7, {"in": 1}, [1, 2], None, 2, 0.75, "thread", tries)
    row = pack(outcome, KEY, 107)
    assert (row.state, row.id, row.position) == (DONE, 107, 7)
    assert unpack(row, 7, "j") == outcome
    assert unpack(row, 9, "j", "another") == Outcome(9, "another", [1, 2], None, 2, 0.75, "thread", tries)


def test_none_is_a_value():
    """A function that returns None has succeeded."""
    back = unpack(pack(Outcome(0, None), KEY, 1), 0, "j")
    assert back.ok and back.value is None


def test_failure_round_trips():
    """An error comes back as the same type with its notes, its traceback as cause."""
    error = raised(ValueError("bad"))
    error.add_note("input 3")
    back = unpack(pack(Outcome(3, "x", None, error, 1, 0.1, "inline"), KEY, 1), 3, "j")
    assert type(back.error) is ValueError and back.error.args == ("bad",)
    assert back.error.__notes__ == ["input 3"]
    assert "in raised" in str(back.error.__cause__)


def test_traceback_text_is_stable():
    """The text of a traceback is the same before the journal, after it, and after it once more."""
    error = raised(ValueError("bad"))
    text = trace_text(error)
    assert text == "".join(traceback.format_exception(error))
    once = unpack(pack(Outcome(3, "x", None, error), KEY, 1), 3, "j").error
    twice = unpack(pack(Outcome(3, "x", None, once), KEY, 1), 3, "j").error
    assert trace_text(once) == trace_text(twice) == text


@pytest.mark.parametrize("error", [Fussy(1, 2), type("Local", (Exception,), {})("1 and 2", threading.Lock())])
def test_error_that_does_not_travel(error):
    """An exception that doesn't pickle or unpickle comes back as RemoteError with its type and text."""
    back = unpack(pack(Outcome(3, "x", None, raised(error)), KEY, 1), 3, "j")
    assert isinstance(back.error, RemoteError)
    assert type(error).__qualname__ in back.error.remote_type
    assert "1 and 2" in str(back.error)
    assert isinstance(back.error.__cause__, RemoteTraceback)


def test_a_failure_can_always_be_stored():
    """Neither an input nor an error that can't be pickled keeps a failure out of the journal."""
    lock = threading.Lock()
    row = pack(Outcome(3, lock, None, ValueError(lock)), KEY, 1)
    letter = dead_letter(row, "j")
    assert letter.input == repr(lock)
    assert letter.error.startswith("ValueError: <unlocked")


def test_value_that_cannot_be_pickled():
    """The error says which input's result it is and of which type."""
    with pytest.raises(NotPicklable, match="result of input 5 .* is a lock"):
        pack(Outcome(5, "x", threading.Lock()), KEY, 1)


def test_input_that_cannot_be_pickled():
    """A value is kept though its input (known by key=) can't be: the input is then its repr."""
    lock = threading.Lock()
    assert unpack(pack(Outcome(5, lock, 17), KEY, 1), 5, "j") == Outcome(5, repr(lock), 17)


def test_lambdas_are_kept():
    """A value only cloudpickle can take apart comes back."""
    assert unpack(pack(Outcome(5, "x", lambda: 17), KEY, 1), 5, "j").value() == 17


def test_value_whose_class_is_gone(monkeypatch):
    """A result that can't be read back is an error that says so, not another value and not an exception of the run."""
    row = pack(Outcome(5, "x", Gone()), KEY, 1)
    monkeypatch.delitem(globals(), "Gone")
    back = unpack(row, 5, "j")
    assert isinstance(back.error, NotPicklable) and "input 5" in str(back.error)


@pytest.mark.parametrize(
    "change",
    [{"key": b"x" * 16}, {"state": FAILED}, {"attempts": 2}, {"seconds": 2.0}, {"lane": "x"}, {"crc": 0},
     {"body": pickle.dumps(("x", 18), 5)}],
)  # fmt: skip
def test_any_change_is_found(change):
    """A row of which any column that makes the outcome is not what was written gives an error, not a value."""
    row = pack(Outcome(5, "x", 17, None, 1, 1.0, "thread"), KEY, 1)._replace(**change)
    with pytest.raises(JournalDamaged, match="input 5"):
        unpack(row, 5, "j")


def test_joined_rows_are_verified():
    """A member of a group has a row without a body, with a checksum of its own."""
    row = pack_joined(KEY, 1, 0, failed=True)
    assert row.state == JOINED_FAILED
    verify(row, "j")
    with pytest.raises(JournalDamaged):
        verify(row._replace(state=DONE), "j")


def test_undecodable_path_round_trips():
    """A path that doesn't decode is the same path when it comes back."""
    path = os.fsdecode(b"/a/\xff")
    assert unpack(pack(Outcome(0, path, path), KEY, 1), 0, "j").value == path
