"""2,500 tasks of 1 ms, one in fifty of 20 ms: how much of the cores' time the work gets."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.scenario import CORES, Bench, Scenario, scenario
from benchmarks.work import burn

NAMES = ("process_uneven", "process_uneven_last")
WARM = [0.0005] * 40


def tasks(n: int, *, last: bool) -> list[float]:
    """Seconds of each task: 2 % are twenty times as long, anywhere or all at the end."""
    heavy = n // 50
    if last:
        return [0.001] * (n - heavy) + [0.020] * heavy
    seconds = [0.020] * heavy + [0.001] * (n - heavy)
    random.Random(7).shuffle(seconds)
    return seconds


def efficiency(seconds: float, n: int, result: list[float]) -> float:
    return sum(result) / (CORES * seconds)


def check(result: list[float], n: int) -> bool:
    return len(result) == n


def declare(name: str, title: str, *, last: bool) -> Scenario:
    """The same rows for both orders."""
    s = scenario(name, title, "efficiency", 2_500, figure=efficiency, check=check,
                 about="CPU time of the tasks / (cores x elapsed); 1 is ideal.")  # fmt: skip

    def ours(bench: Bench) -> None:
        import duodao

        list(duodao.map(burn, WARM, lane="process"))
        work = tasks(bench.n, last=last)
        bench.time(lambda: list(duodao.map(burn, work, lane="process")))

    def pool(bench: Bench, method: str = "map", **options: int) -> None:
        from multiprocessing import Pool

        work = tasks(bench.n, last=last)
        with Pool(CORES) as made:
            made.map(burn, WARM)
            bench.time(lambda: list(getattr(made, method)(burn, work, **options)))

    def futures(bench: Bench, chunk: int) -> None:
        from concurrent.futures import ProcessPoolExecutor

        work = tasks(bench.n, last=last)
        with ProcessPoolExecutor(CORES) as made:
            list(made.map(burn, WARM))
            bench.time(lambda: list(made.map(burn, work, chunksize=chunk)))

    def joblib(bench: Bench) -> None:
        from joblib import Parallel, delayed

        work = tasks(bench.n, last=last)
        with Parallel(CORES) as parallel:
            parallel(delayed(burn)(x) for x in WARM)
            bench.time(lambda: parallel(delayed(burn)(x) for x in work))

    def mpire(bench: Bench) -> None:
        from mpire import WorkerPool

        work = tasks(bench.n, last=last)
        with WorkerPool(CORES, keep_alive=True) as made:
            made.map(burn, WARM)
            bench.time(lambda: made.map(burn, work))

    def pebble(bench: Bench) -> None:
        from pebble import ProcessPool

        work = tasks(bench.n, last=last)
        with ProcessPool(CORES) as made:
            list(made.map(burn, WARM).result())
            bench.time(lambda: list(made.map(burn, work, chunksize=5).result()))

    def pypeln(bench: Bench) -> None:
        from pypeln import process

        work = tasks(bench.n, last=last)
        bench.time(lambda: list(process.map(burn, work, workers=CORES)))

    rows: list[tuple[str, Any, dict[str, Any]]] = [
        ("duodao.map", ours, {"ours": True}),
        ("joblib", joblib, {"note": "batch size auto"}),
        ("mpire", mpire, {}),
        ("multiprocessing.Pool.map", pool, {}),
        ("multiprocessing.Pool.map, chunksize=5", lambda b: pool(b, chunksize=5), {}),
        ("multiprocessing.Pool.imap, chunksize=1", lambda b: pool(b, "imap"), {}),
        ("concurrent.futures, chunksize=1", lambda b: futures(b, 1), {}),
        ("concurrent.futures, chunksize=5", lambda b: futures(b, 5), {}),
        ("pebble, chunksize=5", pebble, {}),
        ("pypeln.process", pypeln, {"note": "its start is in the figure"}),
    ]
    for label, run, more in rows:
        s.row(label, **more)(run)
    s.goal("efficiency of at least 0.97", "duodao.map", 0.97, fixed=True)
    s.goal("better than every peer", "duodao.map", 1.0, "joblib", "mpire", "multi", "concurrent", "pebble", "pypeln")
    return s


declare("process_uneven", "Process lane: 2,500 tasks of 1 ms, 2 % of 20 ms anywhere", last=False)
declare("process_uneven_last", "Process lane: 2,500 tasks of 1 ms, 2 % of 20 ms, all of them last", last=True)
