"""Nested lanes: what one call, or one process, does to the calls beside it. The crash table is the process lane's."""

from __future__ import annotations

import collections
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import nested_calls as nested
import process_calls as calls
import pytest
from process_engine import Run, marked, survivors
from test_process_lane import EXITS, HARD, SOFT, RaisingFactory, expected, make

import duodao
from duodao import arena
from duodao.children import guard
from duodao.errors import Broken, CallTimeout, NotPicklable, RemoteError, SetupFailed, UsageError, WorkerDied
from duodao.lanes import hosting
from duodao.lanes.nested import Nested


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test no process of it is left, and no thread that attends to processes."""
    guard.ensure()
    survivors()
    yield
    assert survivors() == set()
    assert "duodao-process-lane" not in {thread.name for thread in threading.enumerate()}


def of(name, *below):
    """A nested lane with `workers` processes."""
    return lambda work, workers: Nested(name, work, (workers, *below))


def threads(function, workers=2, width=4, **options):
    return Run(function, workers, of("thread", width), **options)


def loops(function, workers=2, width=8, **options):
    return Run(function, workers, of("coroutine", width), is_async=True, **options)


CELLS = [(m, h) for m in ("unpickle", "run", "result") for h in SOFT + HARD if (m, h) != ("run", "memory")]
CELLS += [("pickle", "raise"), ("back", "raise")]


@pytest.mark.parametrize("lane", ["thread", "coroutine"])
@pytest.mark.parametrize(("moment", "how"), CELLS)
def test_crash_table(moment, how, lane):
    """Whatever an item does, at whatever moment, it has its own error, and those beside it have their values."""
    with threads(calls.run) if lane == "thread" else loops(nested.run_async) as run:
        run.start([0, 1, 2, make(moment, how), 4, 5, 6])
        run.start([7, 8])
        values = run.finish()
    assert run.lost <= 18, "more runs than it takes to find one item"
    error = values[3]
    assert type(error) is expected(moment, how), repr(error)
    if how in HARD:
        assert error.exitcode == EXITS[how]
        assert "input 3 " in str(error)
    if isinstance(error, NotPicklable):
        assert error.what == ("result" if moment == "result" else "input")
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_out_of_memory_in_a_call():
    """A MemoryError in one thread is its call's."""
    with threads(calls.run, width=2) as run:
        run.start([0, 1])
        run.finish()
        run.start([("run", "memory")])
        values = run.finish()
    assert isinstance(values[2], MemoryError)


def test_one_that_kills_among_many(tmp_path):
    """It is found by halves: no call beside it runs more often than the logarithm of their number, and all succeed."""
    log = tmp_path / "log"
    with loops(partial(nested.one_kills, log=str(log)), workers=1, width=128) as run:
        run.start(range(128))
        values = run.finish()
    assert isinstance(values[70], WorkerDied)
    assert values[70].exitcode == 5
    assert values[:70] + values[71:] == [*range(70), *range(71, 128)]
    runs = collections.Counter(map(int, log.read_text().split()))
    assert set(runs) == set(range(128))
    assert max(runs.values()) <= 3 + math.ceil(math.log2(128))


@pytest.mark.parametrize("lane", ["thread", "coroutine"])
def test_processes_that_die_under_load(lane, tmp_path):
    """Processes killed in the middle of a run: the map's results are right, each once and in order."""
    function, workers = (nested.fragile, (2, 8)) if lane == "thread" else (nested.fragile_async, (2, 2, 20))
    got = duodao.map(function, range(400), lane=lane, workers=workers, common={"path": str(tmp_path)})
    assert list(got) == list(range(400))
    assert len(os.listdir(tmp_path)) == 10


def kill_at_random(run, batches, most):
    """Kill hosts as their outcomes come; the lane may deliver no position twice, which Run.take holds."""
    kills = started = 0
    for _ in range(4):
        run.start([0.001] * 10)
    while any(run._open.values()):
        run.take()
        ready = [host for host in run.lane._links if host.ready and host.child is not None]
        if kills < most and ready:
            ready[kills % len(ready)].child.kill()
            kills += 1
        if started < batches:
            started += 1
            run.start([0.001] * 10)
    assert kills
    assert set(run.kinds.values()) <= {"died"}  # alone in a process that was killed, and that twice
    assert len(run.outcomes) == (4 + started) * 10


def test_random_kills():
    """Hosts killed at any moment: every position is delivered once."""
    with threads(calls.nap) as run:
        kill_at_random(run, 40, 25)


@pytest.mark.soak
def test_random_kills_for_long():
    """The same, for 1,000 kills."""
    with threads(calls.nap) as run:
        kill_at_random(run, 4000, 1000)


def test_mixed_work():
    """Calls that compute and wait run in all threads of all processes; every result is right and in its place."""
    got = list(duodao.map(nested.mixed, range(300), lane="thread", workers=(2, 4)))
    assert [number for number, _, _ in got] == list(range(300))
    assert len({process for _, process, _ in got}) == 2
    assert len({where[1:] for where in got}) == 8


def test_large_values_both_ways():
    """Large inputs and results travel beside the pipes, and nothing of them is left in the shared memory."""
    data = [bytes([n]) * (3 << 20) + b"end" for n in range(12)]
    before = set(arena.get()._taken)
    got = list(duodao.map(nested.reverse, data, lane="thread", workers=(2, 3)))
    assert got == [each[::-1] for each in data]
    assert set(arena.get()._taken) <= before


def test_output_and_logging(capsys, caplog):
    """What calls print arrives by whole lines, and what they log at the caller's loggers."""
    with caplog.at_level(logging.WARNING):
        assert list(duodao.map(nested.tell, range(40), lane="thread", workers=(2, 4))) == list(range(40))
    out, err = capsys.readouterr()
    assert sorted(out.split("\n")) == sorted([*(f"out {n} end" for n in range(40)), ""])
    assert sorted(err.split("\n")) == sorted([*(f"err {n}" for n in range(40)), ""])
    assert sorted(record.getMessage() for record in caplog.records) == sorted(f"record {n}" for n in range(40))


def test_time_out_ends_the_call(tmp_path):
    """A call that ran too long is given up at once, and its process, where it may still run, ends when it is idle."""
    note = str(tmp_path / "pid")
    with threads(nested.stuck, workers=1, timeout=0.3) as run:
        run.start([(n, note) for n in range(6)])
        values = run.finish()
        assert isinstance(values[2], CallTimeout)
        assert run.kinds == {2: "timeout"}
        assert values[:2] + values[3:] == [0, 1, 3, 4, 5]
        with open(note) as file:
            process = file.read()
        until = time.monotonic() + 10
        while os.path.exists(f"/proc/{process}") and time.monotonic() < until:
            os.sched_yield()
        assert not os.path.exists(f"/proc/{process}")
        run.start([(7, note)])
        assert run.finish()[-1] == 7


def test_time_out_of_a_call_that_holds_the_gil(monkeypatch):
    """Where no thread of the process can run, the process is ended, and the item found that did it."""
    monkeypatch.setattr(hosting, "_SLACK", 0.5)
    with threads(nested.holds_the_gil, workers=2, timeout=0.2) as run:
        run.start([0, 1, 2, 3, 4])
        values = run.finish()
    assert isinstance(values[2], CallTimeout)
    assert "input 2 (2)" in str(values[2])
    assert values[:2] + values[3:] == [0, 1, 3, 4]


def test_memory():
    """A process over max_memory is ended, and the item that did it is found and named with the limit."""
    with threads(calls.hoard, workers=1, max_memory=200 << 20) as run:
        run.start([0, 1, 2, 3])
        values = run.finish()
    assert isinstance(values[2], WorkerDied)
    assert "max_memory" in str(values[2])
    assert values[:2] + values[3:] == [0, 1, 3]


def test_memory_of_a_stage():
    """max_memory= is an option of a stage with a width per level; without processes of its own it is refused."""
    given = {"lane": "thread", "max_memory": 200 << 20, "errors": "collect"}
    outcomes = list(duodao.map(calls.hoard, range(4), workers=(1, 2), **given))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), type(None), WorkerDied, type(None)]
    with pytest.raises(UsageError, match="a width per level"):
        duodao.map(calls.hoard, range(4), **given)


@pytest.mark.parametrize("kind", [calls.DiesOnLoad, calls.RaisesOnLoad])
def test_function_that_ends_its_process_as_it_is_loaded(kind):
    """Processes that can't begin end the run with a reason, not in an endless row of new ones."""
    with threads(kind()) as run:
        run.start([1])
        with pytest.raises((Broken, NotPicklable)) as caught:
            run.finish()
    if kind is calls.DiesOnLoad:
        assert "before its first item" in str(caught.value)
        assert "exit code 7" in str(caught.value.__cause__)


def test_setup():
    """A factory that raises ends the run with its own exception as the cause; one that ends its process ends it too,
    and no item is blamed."""
    with threads(calls.run, setup={"db": RaisingFactory("raise")}) as run:
        run.start([1])
        with pytest.raises(SetupFailed) as caught:
            run.finish()
    assert isinstance(caught.value.__cause__, calls.Oops)
    with threads(calls.run, setup={"db": RaisingFactory("os._exit")}) as run:
        run.start([1])
        with pytest.raises(Broken, match="3 workers in a row"):
            run.finish()


def test_exception_that_does_not_unpickle():
    """It becomes a RemoteError with its type and the remote traceback."""
    with threads(calls.raise_two) as run:
        run.start(list(range(6)))
        values = run.finish()
    assert isinstance(values[3], RemoteError)
    assert values[3].remote_type == "TwoArgs"
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5]


def test_guard_killed():
    """The guard's death takes the hosts with it; a new one comes, and every item has its value."""
    with threads(calls.nap) as run:
        run.start([0.0])
        run.finish()
        for _ in range(4):
            run.start([0.02] * 5)
        os.kill(guard._home.get().pid, signal.SIGKILL)
        values = run.finish()
    assert values == [0.0] + [0.02] * 20


def test_stopped_process_does_not_stop_the_others():
    """A process that is stopped in the middle of its work holds up nobody else."""
    with threads(nested.where, width=1) as run:
        for _ in range(8):
            run.start([0])
        run.finish()
        first, second = [host.child.pid for host in run.lane._links]
        os.kill(first, signal.SIGSTOP)
        before = len(run.outcomes)
        for _ in range(10):
            run.start([0])
        while len(run.outcomes) < before + 9:
            run.take()
        os.kill(first, signal.SIGCONT)
        run.finish()
    assert {run.outcomes[n] for n in range(before, before + 10)} <= {first, second}


def test_interrupt():
    """Ctrl-C ends a run whose calls hang, and all its processes, at once."""
    program = textwrap.dedent("""
        import os, time, duodao
        def hang(x):
            print("in", flush=True)
            time.sleep(1000)
        try:
            duodao.run(hang, range(8), lane="thread", workers=(2, 2))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert rest.split()[-1] == "interrupted"
    assert time.monotonic() - began < 20
    assert marked(process.pid) == set()
