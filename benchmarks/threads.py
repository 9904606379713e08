"""Threads: what handing over an item costs, and how many short waits go on at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.scenario import Bench, scenario
from benchmarks.work import noop, pause_1ms

NAMES = ("thread_noop", "thread_sleep")


def check(result: list[int], n: int) -> bool:
    return len(result) == n and sum(result) == n * (n - 1) // 2


NOOP = scenario("thread_noop", "Thread lane: no-op items, 8 workers", "items/s", 1_000_000, check=check)
SLEEP = scenario("thread_sleep", "Thread lane: 1 ms sleeps, 64 workers", "items/s", 20_000, check=check)
CASES: tuple[tuple[Any, Any, int], ...] = ((NOOP, noop, 8), (SLEEP, pause_1ms, 64))


def declare(s: Any, function: Any, workers: int) -> None:
    """The same rows for both functions."""
    slow = s is NOOP

    @s.row("duodao.map", ours=True, note="ordered, lazy, bounded")
    def ours(bench: Bench) -> None:
        import duodao

        list(duodao.map(function, range(256), lane="thread", workers=workers))
        bench.time(lambda: list(duodao.map(function, range(bench.n), lane="thread", workers=workers)))

    @s.row("multiprocessing ThreadPool.map", note="static chunks, eager")
    def thread_pool(bench: Bench) -> None:
        from multiprocessing.pool import ThreadPool

        with ThreadPool(workers) as made:
            made.map(function, range(256))
            bench.time(lambda: made.map(function, range(bench.n)))

    @s.row("multiprocessing ThreadPool.imap", n=50_000 if slow else None)
    def thread_pool_lazy(bench: Bench) -> None:
        from multiprocessing.pool import ThreadPool

        with ThreadPool(workers) as made:
            made.map(function, range(256))
            bench.time(lambda: list(made.imap(function, range(bench.n))))

    @s.row("concurrent.futures.ThreadPoolExecutor.map", n=100_000 if slow else None)
    def executor(bench: Bench) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(workers) as made:
            list(made.map(function, range(256)))
            bench.time(lambda: list(made.map(function, range(bench.n))))

    @s.row("joblib, threads", n=50_000 if slow else None)
    def joblib(bench: Bench) -> None:
        from joblib import Parallel, delayed

        with Parallel(workers, prefer="threads") as parallel:
            parallel(delayed(function)(x) for x in range(256))
            bench.time(lambda: parallel(delayed(function)(x) for x in range(bench.n)))

    @s.row("mpire, threads", n=30_000 if slow else 10_000)
    def mpire(bench: Bench) -> None:
        from mpire import WorkerPool

        with WorkerPool(workers, start_method="threading", keep_alive=True) as made:
            made.map(function, range(256))
            bench.time(lambda: made.map(function, range(bench.n)))

    @s.row("pypeln.thread", n=20_000 if slow else 5_000)
    def pypeln(bench: Bench) -> None:
        from pypeln import thread

        bench.time(lambda: list(thread.map(function, range(bench.n), workers=workers)))

    @s.row("streamable", n=30_000 if slow else None)
    def streamable(bench: Bench) -> None:
        from streamable import stream

        bench.time(lambda: list(stream(range(bench.n)).map(function, concurrency=workers)))

    if slow:

        @s.row("plain loop", limit=True)
        def loop(bench: Bench) -> None:
            bench.time(lambda: [function(x) for x in range(bench.n)])


for case in CASES:
    declare(*case)
NOOP.goal("0.9 of ThreadPool.map", "duodao.map", 0.9, "multiprocessing ThreadPool.map")
NOOP.goal("50 times ThreadPoolExecutor.map", "duodao.map", 50, "concurrent.futures")
SLEEP.goal("0.9 of ThreadPool.map", "duodao.map", 0.9, "multiprocessing ThreadPool.map")
