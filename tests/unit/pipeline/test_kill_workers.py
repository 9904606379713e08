"""Pool.kill_workers: a pool ends at once, whatever its calls do."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from duodao import Pool, Queue
from duodao.errors import WorkerDied


def stand_still(begun):
    begun.put(os.getpid())
    signal.pause()


def test_calls_in_processes_are_killed():
    """What runs fails with WorkerDied, what waits is cancelled, nothing can be submitted, and nothing runs again."""
    with Queue(16, via="shared") as begun:
        pool = Pool(2, lane="process")
        futures = [pool.submit(stand_still, begun) for _ in range(8)]
        pids = {begun.get(timeout=30), begun.get(timeout=30)}
        pool.kill_workers()
        pool.shutdown()
        assert len(pids) == 2
        assert begun.empty()
        for future in futures:
            assert future.cancelled() or isinstance(future.exception(), WorkerDied)
        assert any(not future.cancelled() for future in futures)
        assert "were killed" in str(next(future.exception() for future in futures if not future.cancelled()))
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(len, "x")
        pool.kill_workers()


def test_calls_in_threads_go_on():
    """A call on a thread can't be killed: it runs to its end; those that wait are cancelled."""
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait()
        return "done"

    pool = Pool(1)
    first, second = pool.submit(work), pool.submit(work)
    begun.wait()
    pool.kill_workers()
    go.set()
    pool.shutdown()
    assert (first.result(), second.cancelled()) == ("done", True)


def test_a_pool_that_was_never_used():
    """There is nothing to kill."""
    pool = Pool(1, lane="process")
    pool.kill_workers()
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(len, "x")
