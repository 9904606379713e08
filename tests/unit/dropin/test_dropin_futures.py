"""duodao.dropin.futures where it is not the standard library's; tests/contract holds the rest, with CPython's tests."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from duodao.dropin import futures
from duodao.errors import WorkerDied

PATIENCE = 60


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_broken_process_pool():
    """The call's error is both, BrokenProcessPool and WorkerDied; the pool goes on."""
    with futures.ProcessPoolExecutor(2) as pool:
        error = pool.submit(die).exception(PATIENCE)
        assert isinstance(error, futures.BrokenProcessPool)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == -signal.SIGKILL
        assert pool.submit(pow, 2, 2).result(PATIENCE) == 4


def test_what_does_not_travel_is_a_pickling_error():
    """An argument that can't be pickled: PicklingError, as programs expect it, with our text."""
    with futures.ProcessPoolExecutor(1) as pool:
        error = pool.submit(id, threading.Lock()).exception(PATIENCE)
    assert isinstance(error, pickle.PicklingError)
    assert "can't be pickled" in str(error)


@pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_a_failed_initializer(kind):
    """It is the lane's own Broken…Pool."""
    broken = futures.BrokenThreadPool if kind == "ThreadPoolExecutor" else futures.BrokenProcessPool
    with getattr(futures, kind)(1, initializer=die_softly) as pool:
        assert isinstance(pool.submit(int).exception(PATIENCE), broken)


def die_softly():
    raise OSError("no database")


def test_max_tasks_per_child():
    """A worker is replaced after so many calls; wrong values are refused as the standard library does."""
    with futures.ProcessPoolExecutor(1, max_tasks_per_child=2) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        futures.ProcessPoolExecutor(max_tasks_per_child=0)
    with pytest.raises(TypeError, match="must be an integer"):
        futures.ProcessPoolExecutor(max_tasks_per_child="2")


def test_names():
    """Every public name of concurrent.futures is there, and threads are named by their prefix."""
    own = {"BrokenProcessPool", "BrokenThreadPool"}
    theirs = set(concurrent.futures.__all__) - {"InterpreterPoolExecutor"}
    assert theirs - {"ProcessPoolExecutor", "ThreadPoolExecutor"} <= set(futures.__all__) | own
    with futures.ThreadPoolExecutor(1, "cook") as pool:
        assert pool.submit(lambda: threading.current_thread().name).result(PATIENCE) == "cook_0"


TUTORIAL = """
import {module} as futures
import time

def work(n):
    time.sleep(0.01)
    return n * n

def main():
    with futures.ThreadPoolExecutor(max_workers=4) as pool:
        jobs = {{pool.submit(work, n): n for n in range(8)}}
        for job in futures.as_completed(jobs):
            assert job.result() == jobs[job] ** 2
    with futures.ProcessPoolExecutor() as pool:
        print(sum(pool.map(work, range(8), chunksize=2)))
    first = futures.ThreadPoolExecutor(1)
    done, rest = futures.wait([first.submit(work, 3)], return_when=futures.FIRST_COMPLETED)
    print(done.pop().result())

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("module", ["concurrent.futures", "duodao.dropin.futures"])
def test_a_program_runs_by_changing_its_import_line(module):
    """The program of the tutorials says the same with both."""
    done = subprocess.run(
        [sys.executable, "-c", TUTORIAL.format(module=module)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr == ""
    assert done.stdout == "140\n9\n"


def test_a_program_that_would_hang():
    """Two calls of a pool of two that wait for each other: the standard library hangs, here one of them fails."""
    with futures.ThreadPoolExecutor(2) as pool:
        both = []
        ready = threading.Event()

        def waits(other):
            ready.wait(PATIENCE)
            return both[other].result()

        both += [pool.submit(waits, 1), pool.submit(waits, 0)]
        ready.set()
        assert all(future.exception(PATIENCE) is not None for future in both)
