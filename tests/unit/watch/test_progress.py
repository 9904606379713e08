"""What each display shows of the same snapshots, and that it gives back what it took."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from duodao.telemetry import Snapshot, StageSnapshot, Waiting
from duodao.watch import wording
from duodao.watch.lines import EVERY, Lines
from duodao.watch.progress import display
from duodao.watch.terminal import Terminal

STAGE = StageSnapshot("index", "process", 2, in_flight=12, queued=3, done=120, failed=3, retried=1, why="31 ms of CPU")


def snap(**changes):
    base = {
        "total": 1532, "read": 140, "done": 120, "failed": 3, "retried": 1, "skipped": 0, "seconds": 4.0, "rate": 30.0,
        "eta": 47.0, "waiting": None, "stages": (STAGE,),
    }  # fmt: skip
    return Snapshot(**{**base, **changes})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "0.04 s"), (7.14, "7.1 s"), (59.96, "1:00"), (185, "3:05"), (3723, "1:02:03")],
)
def test_durations(seconds, text):
    """Seconds are written in the unit that people read."""
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0, "-/s"), (0.1, "6.0/min"), (3.21, "3.2/s"), (12345.6, "12,346/s")])
def test_rates(rate, text):
    """Slow work is told per minute, fast work without a fraction."""
    assert wording.rate(rate) == text


def test_control_characters_and_undecodable_bytes_are_harmless():
    """An input's text can't move the cursor, break the line or fail to encode."""
    assert wording.clean("a\x1b[2Jb\nc\udce9") == "a\\x1b[2Jb\\x0ac\\udce9"


def test_plain_lines_are_few():
    """A line at the start, one per EVERY seconds at most, the notices, the summary; nothing after the end."""
    out = io.StringIO()
    show = Lines(out)
    for tenth in range(121):
        show(snap(seconds=tenth / 10))
    show(snap(seconds=12.1, notices=("a thread was given up",)))
    show(snap(state="done", done=1532, seconds=13.0))
    show(snap(state="done"))
    lines = out.getvalue().splitlines()
    assert EVERY == 5.0
    assert lines[0] == "duodao: started 1,532 inputs: index"
    assert len(lines) == 6
    assert lines[1].startswith("duodao: 120 of 1,532, 30/s, 12 in flight, 3 failed, 1 retried, 47.0 s left")
    assert lines[3] == "duodao: a thread was given up"
    assert lines[4] == "duodao: 1,532 of 1,532, 3 failed, 1 retried in 13.0 s (118/s)"
    assert lines[5] == "duodao:   index: process x 2 - 31 ms of CPU"


def test_plain_lines_name_the_input_everyone_waits_for():
    """The status line tells which input holds the others up, once it does so for a while."""
    out = io.StringIO()
    show = Lines(out)
    show(snap(seconds=0))
    show(snap(seconds=6, waiting=Waiting(17, "'slow.py'", 3.2)))
    assert out.getvalue().splitlines()[1].endswith("; waiting for input 17, 'slow.py', for 3.2 s")
    assert wording.waiting(snap(waiting=Waiting(17, "x", 0.1))) == ""


def test_a_log_that_was_closed_does_not_end_the_run():
    """Writing progress to a closed stream is given up in silence."""
    out = io.StringIO()
    show = Lines(out)
    out.close()
    show(snap())
    show(snap(state="done"))


@pytest.fixture
def terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    return Terminal(console), console.file


def test_terminal_shows_everything(terminal):
    """Rate, in flight, failed, retried, ETA, lane and width per stage, and the input that everyone waits for."""
    show, out = terminal
    show(snap(waiting=Waiting(17, "'slow.py'", 3.2), notices=("one notice",)))
    show.close()
    text = out.getvalue()
    for part in (
        "120 of 1,532",
        "30/s",
        "ETA 47.0 s",
        "12 in flight",
        "3 failed",
        "1 retried",
        "process x 2",
        "3 queued",
    ):
        assert part in text
    assert "waiting for input 17, 'slow.py', for 3.2 s" in text
    assert "one notice" in text


def test_terminal_is_given_back(terminal):
    """The cursor that was hidden is shown and sys.stderr is the same object, after the end and after an exception."""
    show, out = terminal
    before = sys.stdout, sys.stderr
    show(snap())
    assert out.getvalue().count("\x1b[?25l") == 1
    show.close()
    show.close()
    assert out.getvalue().count("\x1b[?25h") == 1
    assert (sys.stdout, sys.stderr) == before
    show(snap())
    assert out.getvalue().count("\x1b[?25l") == 1


def test_terminal_pause_and_resume(terminal):
    """For Ctrl-Z the terminal is given back, and taken again by fg; not when the run is over."""
    show, out = terminal
    show(snap())
    show.pause()
    assert out.getvalue().count("\x1b[?25h") == 1
    show.resume()
    assert out.getvalue().count("\x1b[?25l") == 2
    show(snap(state="done", done=1532))
    show.resume()
    assert out.getvalue().count("\x1b[?25h") == 2
    assert "1,532 of 1,532" in out.getvalue()


def test_terminal_says_what_a_signal_handler_left(terminal):
    """`notify` writes nothing itself; its text comes with the next snapshot, or with the end."""
    show, out = terminal
    show.notify("interrupted")
    assert out.getvalue() == ""
    show(snap())
    show.notify("once more")
    show.close()
    assert "duodao: interrupted" in out.getvalue()
    assert "duodao: once more" in out.getvalue()


def test_unknown_total_has_no_bar_and_no_eta(terminal):
    """Endless inputs show what was done; there is no share and no time left to tell."""
    show, out = terminal
    show(snap(total=None, eta=None))
    show.close()
    assert "120 done" in out.getvalue()
    assert "ETA" not in out.getvalue()


def test_display_fits_its_place(monkeypatch):
    """A stderr that is no terminal, or a dumb one, gets lines; a terminal gets the live display."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(display(), Lines)

    class Tty(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Tty())
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(display(), Terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(), Lines)


def test_notebook_bar_updates_one_output(monkeypatch):
    """One display per run, updated a few times a second at most, closed with the last state; HTML is escaped."""
    pytest.importorskip("IPython")
    from duodao.watch import notebook

    shown, updated = [], []

    class Handle:
        update = staticmethod(updated.append)

    monkeypatch.setattr(notebook, "display", lambda bar, **_: shown.append(bar) or Handle())
    show = notebook.Notebook()
    for tenth in range(11):
        show(snap(seconds=tenth / 10, waiting=Waiting(1, "'<b>'", 2.0)))
    show(snap(seconds=1.1, state="done", done=1532))
    show.close()
    assert len(shown) == 1
    assert len(updated) == 4
    assert "&lt;b&gt;" in shown[0]._repr_html_()
    assert "1,532 of 1,532" in repr(updated[-1])
