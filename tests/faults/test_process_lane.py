"""The crash table of the process lane: {pickling the task, unpickling it, run, pickling the result, unpickling it} x
{raise, sys.exit, os._exit, SIGSEGV, SIGKILL, out of memory}, and what else a worker can do to its lane.

CPython's test_concurrent_futures/test_deadlock.py is the model of its rows: a crash ends the pool there, an item here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import process_calls as calls
import pytest
from process_engine import Run, marked, survivors

from duodao.children import guard
from duodao.errors import Broken, CallExited, CallTimeout, NotPicklable, RemoteError, SetupFailed, WorkerDied

SOFT = ("raise", "sys.exit", "memory")
HARD = ("os._exit", "SIGSEGV", "SIGKILL")
EXITS = {"os._exit": 3, "SIGSEGV": -signal.SIGSEGV, "SIGKILL": -signal.SIGKILL}


@pytest.fixture(autouse=True)
def nothing_left():
    """After each test no process, thread or descriptor of it is left."""
    guard.ensure()
    survivors()
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert survivors() == set()
    assert "duodao-process-lane" not in {thread.name for thread in threading.enumerate()}
    left = set(os.listdir("/proc/self/fd")) - before
    assert len(left) <= 2, f"descriptors left: {left}"


def make(moment, how):
    """An item that fails at that moment in that way, as the parent of workers makes it."""
    if moment == "pickle":
        return calls.AtPickle(how)
    if moment == "unpickle":
        return calls.AtUnpickle(how, os.getpid())
    return moment, how


def expected(moment, how):
    """The type of the item's error."""
    if how in HARD:
        return WorkerDied
    if moment == "run":
        return {"raise": calls.Oops, "sys.exit": CallExited, "memory": MemoryError}[how]
    return RemoteError if moment == "back" else NotPicklable


CELLS = [(m, h) for m in ("unpickle", "run", "result") for h in SOFT + HARD]
CELLS += [(m, h) for m in ("pickle", "back") for h in SOFT]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "fast"])
@pytest.mark.parametrize(("moment", "how"), CELLS)
def test_crash_table(moment, how, warm):
    """Whatever an item does, at whatever moment, it has its own error, and the others have their values."""
    with Run(calls.run) as run:
        if warm:
            run.warm()
        run.start([0, 1, 2, make(moment, how), 4, 5, 6])
        run.start([7, 8])
        values = run.finish()
    error = values[3]
    assert type(error) is expected(moment, how), repr(error)
    if how in HARD:
        assert error.exitcode == EXITS[how]
        assert "input 3 " in str(error)
    if isinstance(error, NotPicklable):
        assert error.what == ("result" if moment == "result" else "input")
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("moment", ["pickle", "back"])
@pytest.mark.parametrize("how", HARD)
def test_crash_of_the_caller(moment, how):
    """An item that ends the caller's own process, as it is pickled or its result unpickled there, leaves no process."""
    program = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[os.path.dirname(__file__)]!r}
        import process_calls as calls
        from process_engine import Run
        with Run(calls.run) as run:
            run.start([0]); run.finish()
            run.start([calls.AtPickle({how!r}) if {moment!r} == "pickle" else ({moment!r}, {how!r})])
            run.finish()
        print("not reached")
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXITS[how]
    assert "not reached" not in out
    until = time.monotonic() + 10
    while marked(process.pid) and time.monotonic() < until:
        os.sched_yield()
    assert marked(process.pid) == set()


def test_worker_killed_once(tmp_path):
    """SIGKILL in the middle of a batch: every item has its value, and only those without one ran again."""
    with Run(calls.kill_self_once, workers=1) as run:
        run.start([(str(tmp_path), n, 40) for n in range(40)])
        assert run.finish() == list(range(40))
    runs = (tmp_path / "runs").read_text().split()
    assert set(map(int, runs)) == set(range(40))
    assert len(runs) <= 40 + 20


@pytest.mark.parametrize("careful", [False, True])
def test_exception_that_does_not_unpickle(careful):
    """It becomes a RemoteError with its type and the remote traceback; a pool of the standard library hangs or
    breaks."""
    with Run(calls.raise_two) as run:
        run.start(list(range(6)), careful=careful)
        values = run.finish()
    assert isinstance(values[3], RemoteError)
    assert values[3].remote_type == "TwoArgs"
    assert "raise TwoArgs(1, 2)" in str(values[3].__cause__)
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5]


def test_time_out_of_a_call_that_holds_the_gil():
    """A time-out ends a call that no Python code could interrupt; its batch-mates are run again."""
    with Run(calls.hang, workers=1, timeout=0.3) as run:
        run.start([0, 1, 2, 3, 4])
        values = run.finish()
    assert isinstance(values[2], CallTimeout)
    assert "input 2 (2)" in str(values[2])
    assert "0.3 s" in str(values[2])
    assert run.kinds == {2: "timeout"}
    assert values[:2] + values[3:] == [0, 1, 3, 4]


def test_memory_of_a_running_item():
    """A worker over max_memory in the middle of an item is killed, and the error names the item and the limit."""
    with Run(calls.hoard, workers=1, max_memory=200 << 20) as run:
        run.start([0, 1, 2, 3])
        values = run.finish()
    assert isinstance(values[2], WorkerDied)
    assert "max_memory" in str(values[2])
    assert values[:2] + values[3:] == [0, 1, 3]


def test_memory_between_items():
    """A worker that grows from call to call is replaced between items: no call is lost, none fails."""
    with Run(calls.leak, workers=1, max_memory=150 << 20) as run:
        for _ in range(5):
            run.start([0] * 4)
        pids = run.finish()
    assert len(pids) == 20
    assert len(set(pids)) > 1
    assert not run.kinds


@pytest.mark.parametrize("kind", [calls.DiesOnLoad, calls.RaisesOnLoad])
def test_function_that_ends_its_worker_as_it_is_loaded(kind):
    """Workers that can't begin end the run with a reason, not in an endless row of new ones."""
    with Run(kind()) as run:
        run.start([1])
        with pytest.raises(Broken) as caught:
            run.finish()
    if kind is calls.DiesOnLoad:
        assert "before its first item" in str(caught.value)
        assert "exit code 7" in str(caught.value.__cause__)


def test_setup_that_fails():
    """A factory that raises ends the run with SetupFailed, its own exception as the cause."""
    with Run(calls.run, setup={"db": RaisingFactory("raise")}) as run:
        run.start([1])
        with pytest.raises(SetupFailed) as caught:
            run.finish()
    assert isinstance(caught.value.__cause__, calls.Oops)


class RaisingFactory:
    """A factory of `setup=` that fails."""

    def __init__(self, how):
        self.how = how

    def __call__(self):
        calls.fail(self.how)


def test_setup_that_ends_its_worker():
    """A factory that ends the process ends the run after three workers."""
    with Run(calls.run, setup={"db": RaisingFactory("os._exit")}) as run:
        run.start([1])
        with pytest.raises(Broken, match="3 workers in a row"):
            run.finish()


def test_unpicklable_function():
    """It is refused at once, before a worker is asked for."""
    with Run(threading.Lock().acquire) as run:
        run.start([1])
        with pytest.raises(NotPicklable) as caught:
            run.finish()
    assert caught.value.what == "function"


def test_child_of_a_worker_does_not_hide_its_death():
    """A worker's own child may hold its pipes open: the death is seen all the same."""
    with Run(calls.spawn, workers=1) as run:
        run.start([0])
        values = run.finish()
        assert isinstance(values[0], WorkerDied)


def test_guard_killed():
    """The guard's death takes the workers with it; a new one comes, and every item has its value."""
    with Run(calls.nap, workers=2) as run:
        run.start([0.0])
        run.finish()
        for _ in range(4):
            run.start([0.02] * 5)
        os.kill(guard._home.get().pid, signal.SIGKILL)
        values = run.finish()
    assert values == [0.0] + [0.02] * 20


def test_stopped_worker_does_not_stop_the_others():
    """A worker that is stopped in the middle of its work holds up nobody else."""
    with Run(calls.nap, workers=2) as run:
        run.start([0.0])
        run.start([0.0])
        run.finish()
        pids = [link.child.pid for link in run.lane._links]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGSTOP)
        for _ in range(3):
            run.start([0.0] * 3)
        stuck = len(run.outcomes)
        while len(run.outcomes) < 2 + 3:
            run.take()
        assert len(run.outcomes) > stuck
        os.kill(pids[0], signal.SIGCONT)
        run.finish()


def test_random_kills():
    """Workers killed at any moment, 30 times: every item has its value."""
    with Run(calls.nap, workers=2) as run:
        for _ in range(4):
            run.start([0.001] * 10)
        kills = started = 0
        while any(run._open.values()):
            run.take()
            if kills < 30 and run.lane._links:
                link = run.lane._links[kills % len(run.lane._links)]
                if link.ready and link.child is not None:  # three in a row that die before are a reason to stop
                    link.child.kill()
                    kills += 1
            if started < 40:
                started += 1
                run.start([0.001] * 10)
        killed = {n for n, kind in run.kinds.items() if kind != "died"}
    assert not killed
    assert len(run.outcomes) == (4 + started) * 10
