"""Pools: submit and result of tiny calls, all at once and one after the other; beside the standard executors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.scenario import CORES, Bench, scenario
from benchmarks.work import square

NAMES = ("pool_thread", "pool_process", "pool_thread_turns", "pool_process_turns")
THREADS = 8
WARM = 1_000


def check(result: list[int], n: int) -> bool:
    return len(result) == n and result[-1] == (n - 1) ** 2


ABOUT = "Futures are made one by one; every pool has run the same function before."
TURNS = "Each call is submitted when the one before it has its result."
THREAD = scenario(
    "pool_thread", "Pool of 8 threads: submit all, then all results (x*x)", "calls/s", 50_000, check=check, about=ABOUT
)
PROCESS = scenario(
    "pool_process", "Pool of processes: submit all, then all results (x*x)", "calls/s", 50_000, check=check, about=ABOUT
)
THREAD_TURNS = scenario(
    "pool_thread_turns", "Pool of 8 threads: one call at a time", "calls/s", 10_000, check=check, about=TURNS
)
PROCESS_TURNS = scenario(
    "pool_process_turns", "Pool of processes: one call at a time", "calls/s", 3_000, check=check, about=TURNS
)


def at_once(pool: Any, n: int) -> list[int]:
    return [future.result() for future in [pool.submit(square, x) for x in range(n)]]


def in_turn(pool: Any, n: int) -> list[int]:
    return [pool.submit(square, x).result() for x in range(n)]


def ours(lane: str, workers: int) -> Callable[[], Any]:
    def make() -> Any:
        import duodao

        return duodao.Pool(workers, lane=lane)

    return make


def standard_threads() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(THREADS)


def standard_processes() -> Any:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(CORES)


def loky() -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(CORES)


def declare(s: Any, label: str, make: Callable[[], Any], run: Callable[[Any, int], Any], **more: Any) -> None:
    """One pool as a row."""

    @s.row(label, **more)
    def row(bench: Bench) -> None:
        with make() as pool:
            at_once(pool, WARM)
            bench.time(lambda: run(pool, bench.n))


for table, run in ((THREAD, at_once), (THREAD_TURNS, in_turn)):
    declare(table, "duodao.Pool", ours("thread", THREADS), run, ours=True)
    declare(table, "concurrent.futures", standard_threads, run)
for table, run in ((PROCESS, at_once), (PROCESS_TURNS, in_turn)):
    few = {"n": 10_000} if table is PROCESS else {}
    declare(table, "duodao.Pool", ours("process", CORES), run, ours=True, note="a killed worker costs one call")
    declare(table, "concurrent.futures", standard_processes, run, **few)
    declare(table, "joblib's loky", loky, run, **few)
THREAD.goal("level with ThreadPoolExecutor", "duodao.Pool", 1.0, "concurrent.futures")
THREAD_TURNS.goal("0.9 of ThreadPoolExecutor, with waits that are seen", "duodao.Pool", 0.9, "concurrent.futures")
PROCESS.goal("3 times ProcessPoolExecutor", "duodao.Pool", 3.0, "concurrent.futures")
PROCESS_TURNS.goal("level with ProcessPoolExecutor", "duodao.Pool", 1.0, "concurrent.futures")
