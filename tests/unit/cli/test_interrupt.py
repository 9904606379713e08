"""What each signal does, on a process of our own that sends them to itself."""

from __future__ import annotations

import os
import signal

import pytest

from duodao.cli import interrupt
from duodao.cli.interrupt import Interrupts


@pytest.fixture
def said():
    return []


def test_first_drains_second_raises_third_leaves(said, monkeypatch):
    """Ctrl-C once drains and says so, twice raises KeyboardInterrupt, three times leaves with 130 at once."""
    drained, left = [], []
    monkeypatch.setattr(interrupt.os, "_exit", left.append)
    with Interrupts(lambda: drained.append(True), said.append) as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert (drained, interrupts.count) == ([True], 1)
        assert said == ["interrupted: finishing what is in flight; once more stops at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert left == [130]
    assert len(drained) == 1


def test_terminate_counts_as_interrupt(said):
    """SIGTERM drains as Ctrl-C does, and they count together."""
    drained = []
    with Interrupts(lambda: drained.append(True), said.append):
        signal.raise_signal(signal.SIGTERM)
        assert drained == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert said[0].startswith("asked to end: ")


def test_handlers_are_given_back(said):
    """After the run the program's own handlers are in force again."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)]
    with Interrupts(lambda: None, said.append, pause=lambda: None):
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)] != before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)] == before


def test_an_ignored_signal_stays_ignored(said):
    """A script's `duodao … &` starts us with SIGINT ignored: Ctrl-C is then for the script alone."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(lambda: None, said.append):
            signal.raise_signal(signal.SIGINT)
        assert said == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_suspend_pauses_and_resumes(said, monkeypatch):
    """Ctrl-Z gives the terminal back before the process stops, and takes it again when it goes on."""
    steps = []
    monkeypatch.setattr(interrupt.os, "kill", lambda pid, number: steps.append((pid == os.getpid(), number)))
    pause, resume = lambda: steps.append("pause"), lambda: steps.append("resume")
    with Interrupts(lambda: None, said.append, pause=pause, resume=resume):
        signal.raise_signal(signal.SIGTSTP)
    assert steps == ["pause", (True, signal.SIGTSTP), "resume"]
