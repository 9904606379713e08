"""Large items and results of processes: how often they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.scenario import CORES, Bench, Scenario, scenario
from benchmarks.work import first_value, length, megabyte

NAMES = ("payload_bytes", "payload_numpy", "payload_back")
MB = 1_000_000


def blocks(n: int) -> Iterator[bytes]:
    """`n` blocks of 1 MB, 64 different ones in turn: more than a cache holds."""
    made = [bytes([i]) * MB for i in range(64)]
    return (made[i % 64] for i in range(n))


def arrays(n: int) -> Iterator[Any]:
    """`n` arrays of 8 MB, each one new, as a program would have them."""
    import numpy as np

    return (np.full(MB, float(i)) for i in range(n))


def numbers(n: int) -> Iterator[int]:
    return iter(range(n))


def gigabytes(size: int) -> Callable[[float, int, Any], float]:
    return lambda seconds, n, _: n * size / seconds / 1e9


def same_bytes(result: Any, n: int) -> bool:
    return result == MB * n


def same_arrays(result: Any, n: int) -> bool:
    return result == n * (n - 1)


BYTES = scenario("payload_bytes", "1 MB of bytes to a process, its length back", "GB/s", 2_000,
                 figure=gigabytes(MB), check=same_bytes)  # fmt: skip
NUMPY = scenario("payload_numpy", "numpy arrays of 8 MB to a process, a number back", "GB/s", 200,
                 figure=gigabytes(8 * MB), check=same_arrays,
                 about="Making the arrays is in the figure, the same for all.")  # fmt: skip
BACK = scenario("payload_back", "1 MB of bytes back from a process", "GB/s", 2_000,
                figure=gigabytes(MB), check=same_bytes)  # fmt: skip


def total(results: Any) -> int:
    """The sum of numbers, or of the lengths of bytes: results are used one by one, as they come."""
    return sum(r if isinstance(r, (int, float)) else len(r) for r in results)


def declare(s: Scenario, function: Any, items: Callable[[int], Iterator[Any]]) -> None:
    """The same rows for all three."""

    @s.row("duodao.map", ours=True)
    def ours(bench: Bench) -> None:
        import duodao

        total(duodao.map(function, items(8), lane="process"))
        bench.time(lambda: total(duodao.map(function, items(bench.n), lane="process")))

    @s.row("joblib", note="arrays of 1 MB and more travel as memory-mapped files")
    def joblib(bench: Bench) -> None:
        from joblib import Parallel, delayed

        with Parallel(CORES, return_as="generator") as parallel:
            total(parallel(delayed(function)(x) for x in items(8)))
            bench.time(lambda: total(parallel(delayed(function)(x) for x in items(bench.n))))

    @s.row("concurrent.futures")
    def futures(bench: Bench) -> None:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(CORES) as made:
            total(made.map(function, items(8)))
            bench.time(lambda: total(windowed(made, bench.n)))

    def windowed(made: Any, n: int) -> Iterator[Any]:
        """At most 8 in flight: Executor.map would hold all of the input in memory."""
        from collections import deque

        flying: deque[Any] = deque()
        for x in items(n):
            flying.append(made.submit(function, x))
            if len(flying) >= 8:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()

    @s.row("multiprocessing.Pool.imap")
    def pool(bench: Bench) -> None:
        from multiprocessing import Pool

        with Pool(CORES) as made:
            total(made.imap(function, items(8)))
            bench.time(lambda: total(made.imap(function, items(bench.n))))

    @s.row("mpire", note="chunk_size=1, 8 active")
    def mpire(bench: Bench) -> None:
        from mpire import WorkerPool

        options = {"chunk_size": 1, "max_tasks_active": 8}
        with WorkerPool(CORES, keep_alive=True) as made:
            total(made.imap(function, items(8), iterable_len=8, **options))
            bench.time(lambda: total(made.imap(function, items(bench.n), iterable_len=bench.n, **options)))

    @s.row("pypeln.process", n=s.n // 4, note="maxsize=4")
    def pypeln(bench: Bench) -> None:
        from pypeln import process

        bench.time(lambda: total(process.map(function, items(bench.n), workers=CORES, maxsize=4)))

    @s.row("no pool", limit=True, note="making the items and calling the function")
    def loop(bench: Bench) -> None:
        bench.time(lambda: total(map(function, items(bench.n))))


declare(BYTES, length, blocks)
declare(NUMPY, first_value, arrays)
declare(BACK, megabyte, numbers)
PEERS = ("joblib", "concurrent", "multi", "mpire", "pypeln")
BYTES.goal("4 times joblib", "duodao.map", 4.0, "joblib")
NUMPY.goal("8 times the best peer", "duodao.map", 8.0, *PEERS)
BACK.goal("4 times concurrent.futures", "duodao.map", 4.0, "concurrent.futures")
