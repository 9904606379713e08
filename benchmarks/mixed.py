"""Calls that compute under the GIL and wait in between: which lane, and which pool, keeps both cores busy."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from benchmarks.scenario import CORES, Bench, Scenario, scenario
from benchmarks.work import burn_and_pause

NAMES = ("mixed_third", "mixed_most")
THREADS = 8


def declare(name: str, cpu: float, wait: float, n: int) -> Scenario:
    """Rows: auto, the lanes, and the standard library's pools, each with as many workers as suit it."""
    title = f"mixed: {cpu * 1e3:g} ms of CPU and {wait * 1e3:g} ms of waiting each"
    about = f"At most {CORES / cpu:.0f} items/s on {CORES} cores. Starting workers is in the figures."
    s = scenario(name, title, "items/s", n, check=lambda result, n: len(result) == n, about=about)
    item = cpu, wait

    def ours(**options: Any) -> Any:
        def row(bench: Bench) -> None:
            import duodao

            made = duodao.map(burn_and_pause, [item] * bench.n, **options)
            bench.time(lambda: list(made))
            stage = made.report.stages[0]
            bench.extra = f"{stage.lane} x {stage.workers}"

        return row

    def pool(kind: str, workers: int) -> Any:
        def row(bench: Bench) -> None:
            with getattr(concurrent.futures, kind)(workers) as made:
                bench.time(lambda: list(made.map(burn_and_pause, [item] * bench.n)))

        return row

    s.row("duodao.map", ours=True, note="lane='auto'")(ours())
    s.row(f"duodao.map, lane='thread', workers=({CORES}, {THREADS})")(ours(lane="thread", workers=(CORES, THREADS)))
    s.row("duodao.map, plain lane='thread'")(ours(lane="thread"))
    s.row("duodao.map, plain lane='process'")(ours(lane="process"))
    s.row(f"duodao.map, plain lane='process', workers={4 * CORES}")(ours(lane="process", workers=4 * CORES))
    s.row("ThreadPoolExecutor", note="16 threads")(pool("ThreadPoolExecutor", 16))
    s.row("ProcessPoolExecutor", note="a process per core")(pool("ProcessPoolExecutor", CORES))
    return s


for each in (
    declare("mixed_third", 0.002, 0.004, 1_500),
    declare("mixed_most", 0.003, 0.002, 1_000),
):
    each.goal(
        "1.2 times the plain lanes and the pools", "duodao.map", 1.2, "duodao.map, plain", "ThreadPool", "ProcessPool"
    )
