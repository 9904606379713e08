"""Pools whose workers die, programs that end with pools open, Ctrl-C, fork: one call pays, nothing hangs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pool_faults as calls
import pytest

import duodao
from duodao.errors import NotPicklable, RemoteError, WorkerDied

PATIENCE = 60


def test_a_killed_worker_costs_one_call():
    """kill -9 inside a call: its future has WorkerDied, which names call and signal; the others have their values."""
    with duodao.Pool(2, lane="process") as pool:
        futures = [pool.submit(pow, n, 2) for n in range(20)]
        bad = pool.submit(calls.die)
        futures += [pool.submit(pow, n, 2) for n in range(20, 40)]
        error = bad.exception(PATIENCE)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == -signal.SIGKILL
        assert "the call die() killed its worker (SIGKILL" in str(error)
        assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(40)]
        assert pool.submit(pow, 3, 3).result(PATIENCE) == 27


@pytest.mark.parametrize("victim", [0, 1, 57, 399])
def test_no_call_runs_twice(tmp_path, victim):
    """A death in the middle of a batch of short calls: every other call has run once and has its value."""
    path = tmp_path / "calls"
    path.touch()
    with duodao.Pool(2, lane="process") as pool:
        list(pool.map(calls.note, [os.fspath(path)] * 300, range(1000, 1300)))  # known to be short
        futures = [pool.submit(calls.note, os.fspath(path), n, victim) for n in range(400)]
        errors = [future.exception(PATIENCE) for future in futures]
    assert [n for n, error in enumerate(errors) if error is not None] == [victim]
    assert isinstance(errors[victim], WorkerDied)
    lines = path.read_text().split()
    assert sorted(map(int, lines)) == [*range(400), *range(1000, 1300)]


def test_random_kills(tmp_path):
    """Workers killed from outside at random moments: no future is left, at most one call per kill fails, none runs
    twice."""
    path = tmp_path / "calls"
    path.touch()
    kills = 0
    with duodao.Pool(2, lane="process") as pool:
        list(pool.map(calls.note, [os.fspath(path)] * 300, range(10000, 10300)))
        futures = []
        for part in range(20):
            futures += [pool.submit(calls.note, os.fspath(path), n) for n in range(part * 100, part * 100 + 100)]
            futures[random.randrange(len(futures))].exception(PATIENCE)
            for pid in pool._roster._lane.at_work()[:1]:
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    continue
        errors = [error for future in futures if (error := future.exception(PATIENCE)) is not None]
    assert all(isinstance(error, WorkerDied) for error in errors)
    assert len(errors) <= kills
    lines = path.read_text().split()
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("how", ["exit", "segv"])
def test_other_ends_of_a_worker(how):
    """os._exit and a fatal signal in a call cost that call."""
    with duodao.Pool(1, lane="process") as pool:
        bad = pool.submit(calls.leave, 3) if how == "exit" else pool.submit(calls.die, signal.SIGTERM)
        error = bad.exception(PATIENCE)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == (3 if how == "exit" else -signal.SIGTERM)
        assert pool.submit(pow, 2, 2).result(PATIENCE) == 4


def test_pickling_faults():
    """A worker that dies as it unpickles a call, an argument and a value that can't be unpickled: their calls alone."""
    with duodao.Pool(2, lane="process") as pool:
        list(pool.map(abs, range(300)))  # so that calls of it travel together
        good = [pool.submit(abs, -n) for n in range(50)]
        dies = pool.submit(abs, calls.DiesWhenUnpickled())
        raises = pool.submit(abs, calls.RaisesWhenUnpickled())
        value = pool.submit(calls.stubborn)
        good += [pool.submit(abs, -n) for n in range(50, 100)]
        assert isinstance(dies.exception(PATIENCE), WorkerDied)
        assert isinstance(raises.exception(PATIENCE), NotPicklable)
        assert isinstance(value.exception(PATIENCE), RemoteError)
        assert [future.result(PATIENCE) for future in good] == list(range(100))


def test_an_initializer_that_kills():
    """Workers that die in their initializer: the calls fail, nothing hangs."""
    with duodao.Pool(1, lane="process", initializer=calls.leave, initargs=(3,)) as pool:
        assert pool.submit(pow, 2, 2).exception(PATIENCE) is not None


def run(program: str, **options) -> subprocess.CompletedProcess:
    """A program of its own, which must end."""
    where = os.fspath(Path(__file__).parent)
    command = [sys.executable, "-c", program]
    environ = {**os.environ, "PYTHONPATH": where}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environ, **options)


@pytest.mark.parametrize("lane", ["thread", "process"])
@pytest.mark.parametrize("end", ["", "pool.shutdown(wait=False)", "del pool", "raise SystemExit(0)"])
def test_a_program_ends_with_its_pending_work(lane, end):
    """A pool that was never shut down doesn't keep a program, beyond what was submitted: that runs to its end."""
    done = run(f"""
import duodao, pool_faults
pool = duodao.Pool(2, lane={lane!r})
futures = [pool.submit(pool_faults.lasting, n) for n in range(5)]
{end}
""")
    assert done.stderr == ""
    assert done.returncode == 0
    assert sorted(done.stdout.split("\n")) == ["", *(f"call {n}" for n in range(5))]


def test_submit_at_exit():
    """Submitting when the interpreter shuts down is the standard error."""
    done = run("""
import atexit, duodao
@atexit.register
def late():
    pool.submit(int)
pool = duodao.Pool(1)
pool.submit(int).result()
""")
    assert "RuntimeError: cannot schedule new futures after interpreter shutdown" in done.stderr


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_ctrl_c_while_waiting(lane):
    """Ctrl-C in future.result() raises KeyboardInterrupt there at once; the program ends when its calls have."""
    program = f"""
import os, signal, sys, threading, time
import duodao
def call(seconds):
    os.write(1, b"begun\\n")  # whole lines: two threads write
    time.sleep(seconds)
pool = duodao.Pool(1, lane={lane!r})
future = pool.submit(call, 1)
try:
    os.write(1, b"submitted\\n")
    future.result()
except KeyboardInterrupt:
    print("interrupted", future.done(), flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with child:
        assert {child.stdout.readline() for _ in range(2)} == {"begun\n", "submitted\n"}
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted False\n"
        assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_a_forked_copy(lane):
    """In a child made by os.fork() the pool says that its workers are elsewhere; the original goes on."""
    with duodao.Pool(1, lane=lane) as pool:
        assert pool.submit(pow, 2, 2).result(PATIENCE) == 4
        open_future = pool.submit(pow, 2, 3)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                pool.submit(pow, 2, 2)
            except RuntimeError as error:
                code = 0 if "make another pool here" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert open_future.result(PATIENCE) == 8


def test_dropped_while_its_threads_run():
    """A pool that goes away in one of its own calls: the calls end, nothing is left."""
    box = [duodao.Pool(2, lane="thread")]
    gone = threading.Event()
    future = box[0].submit(lambda: (box.clear(), gone.set()))
    assert gone.wait(PATIENCE)
    future.result(PATIENCE)
