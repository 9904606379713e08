"""Ctrl-C, SIGTERM and Ctrl-Z on the real command: what was begun is finished or stopped, and nothing is left over."""

from __future__ import annotations

import json
import os
import signal

import pytest
from cli_program import WORK, Gate, Program, gone


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "n.txt").write_text("".join(f"{n}\n" for n in range(100)))
    return tmp_path


@pytest.fixture
def gate(folder):
    gate = Gate(folder)
    yield gate
    gate.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lane", ["thread", "process"])
def test_once_finishes_what_is_in_flight(folder, gate, lane, number):
    """After the first signal no input is taken, what runs is finished and written, and the exit code is 130."""
    argv = ["map", "work.py:held", "n.txt", "-o", "out.jsonl", "--lane", lane, "--workers", "2"]
    with Program(*argv, cwd=folder) as program:
        begun = gate.wait(2)
        program.process.send_signal(number)
        program.until("finishing what is in flight")
        gate.let_go(100)
        assert program.end() == 130
    begun += gate.waiting()
    results = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert sorted(results, key=int) == sorted(begun, key=int)
    assert results == sorted(results, key=int)
    assert len(results) < 20
    assert "interrupted" in program.said
    assert "Traceback" not in program.said


@pytest.mark.parametrize("lane", ["thread", "process", "inline"])
def test_twice_stops_at_once(folder, gate, lane):
    """The second Ctrl-C doesn't wait for calls; every worker is gone; one line says so, and the exit code is 130."""
    argv = ["map", "work.py:pid_held", "n.txt", "-o", "out.jsonl", "--lane", lane, "--workers", "2"]
    with Program(*argv, cwd=folder) as program:
        pids = {int(pid) for pid in gate.wait(1 if lane == "inline" else 2)}
        fds = [os.pidfd_open(pid) for pid in pids]
        program.process.send_signal(signal.SIGINT)
        program.until("once more stops at once")
        program.process.send_signal(signal.SIGINT)
        assert program.end() == 130
        assert gone(fds)
        for fd in fds:
            os.close(fd)
    assert "stopped at once" in program.said
    assert "Traceback" not in program.said
    assert (folder / "out.jsonl").read_text() == ""


def test_interrupted_run_goes_on(folder, gate):
    """With a journal the interrupted run says how to go on, and does: OUT is that of an undisturbed run."""
    argv = ["map", "work.py:held_at_ten", "n.txt", "-o", "out.jsonl", "--journal", "j", "--lane", "process"]
    with Program(*argv, cwd=folder) as program:
        gate.wait(1)
        program.process.send_signal(signal.SIGINT)
        program.until("finishing")
        gate.let_go()
        assert program.end() == 130
    assert "`duodao resume" in program.said
    (folder / "free").touch()
    with Program("resume", "j", cwd=folder) as program:
        assert program.end() == 0
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()] == [
        str(n) for n in range(100)
    ]
    calls = (folder / "calls").read_text().split()
    assert sorted(calls, key=int) == [str(n) for n in range(100)]


def test_interrupt_while_the_input_waits(folder):
    """A source that gives nothing (a pipe nobody writes to) doesn't hold the drain up."""
    os.mkfifo(folder / "inputs")
    with (
        open(folder / "inputs", "r+b", buffering=0) as inputs,
        Program("map", "work.py:echo", "inputs", "--lane", "thread", cwd=folder) as program,
    ):
        inputs.write(b"one\n")
        assert program.process.stdout.readline() == b'"one"\n'
        program.process.send_signal(signal.SIGINT)
        assert program.end() == 130
