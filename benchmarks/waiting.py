"""What a run costs that only waits, and how many frames stand between a worker's loop and the user's function."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.scenario import CORES, Bench, Scenario, scenario
from benchmarks.work import frames, pause

NAMES = ("idle_processes", "idle_threads", "frames")
SECONDS = 3.0
TICK = os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> set[int]:
    """`root` and all below it."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def cpu_of(pids: set[int]) -> float:
    """CPU seconds of these processes so far, to a nanosecond where the scheduler tells."""
    used = 0.0
    for pid in pids:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                    used += int(file.read().split()[0]) / 1e9
        except OSError:
            continue
    return used


def idle(bench: Bench, run: Callable[[], Any]) -> None:
    """Start `run` in a thread, let it settle for a second, then count the CPU of the whole tree for two."""
    worker = threading.Thread(target=run)
    worker.start()
    time.sleep(1.0)
    tree = descendants(os.getpid())
    before = cpu_of(tree)
    time.sleep(SECONDS - 1.5)
    bench.value = (cpu_of(tree) - before) / (SECONDS - 1.5) * 1e3
    worker.join()


def slow_source() -> Iterator[float]:
    """One item at once, the next after SECONDS: the pool has nothing to do in between."""
    yield 0.0
    time.sleep(SECONDS)
    yield 0.0


PROCESSES = scenario("idle_processes", "A run on processes that waits for a call: CPU", "ms per second", 1, up=False)
THREADS = scenario("idle_threads", "A run on 4 threads that waits for its input: CPU", "ms per second", 1, up=False)
CALLS = [SECONDS] * CORES


@PROCESSES.row("duodao.map", ours=True)
def process_ours(bench: Bench) -> None:
    import duodao

    idle(bench, lambda: list(duodao.map(pause, CALLS, lane="process")))


@PROCESSES.row("concurrent.futures")
def process_futures(bench: Bench) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(CORES) as made:
        idle(bench, lambda: list(made.map(pause, CALLS)))


@PROCESSES.row("multiprocessing.Pool.map")
def process_pool(bench: Bench) -> None:
    from multiprocessing import Pool

    with Pool(CORES) as made:
        idle(bench, lambda: made.map(pause, CALLS))


@PROCESSES.row("joblib")
def process_joblib(bench: Bench) -> None:
    from joblib import Parallel, delayed

    idle(bench, lambda: Parallel(CORES)(delayed(pause)(x) for x in CALLS))


@PROCESSES.row("mpire")
def process_mpire(bench: Bench) -> None:
    from mpire import WorkerPool

    with WorkerPool(CORES) as made:
        idle(bench, lambda: made.map(pause, CALLS))


@PROCESSES.row("pebble")
def process_pebble(bench: Bench) -> None:
    from pebble import ProcessPool

    with ProcessPool(CORES) as made:
        idle(bench, lambda: list(made.map(pause, CALLS).result()))


@PROCESSES.row("pypeln.process")
def process_pypeln(bench: Bench) -> None:
    from pypeln import process

    idle(bench, lambda: list(process.map(pause, CALLS, workers=CORES)))


@THREADS.row("duodao.map", ours=True)
def thread_ours(bench: Bench) -> None:
    import duodao

    idle(bench, lambda: list(duodao.map(pause, slow_source(), lane="thread", workers=4)))


@THREADS.row("concurrent.futures")
def thread_futures(bench: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as made:
        idle(bench, lambda: list(made.map(pause, slow_source())))


@THREADS.row("multiprocessing ThreadPool.imap")
def thread_pool(bench: Bench) -> None:
    from multiprocessing.pool import ThreadPool

    with ThreadPool(4) as made:
        idle(bench, lambda: list(made.imap(pause, slow_source())))


@THREADS.row("pypeln.thread")
def thread_pypeln(bench: Bench) -> None:
    from pypeln import thread

    idle(bench, lambda: list(thread.map(pause, slow_source(), workers=4)))


@THREADS.row("streamable")
def thread_streamable(bench: Bench) -> None:
    from streamable import stream

    idle(bench, lambda: list(stream(slow_source()).map(pause, concurrency=4)))


for each_idle in (PROCESSES, THREADS):
    each_idle.row("nothing runs", limit=True, note="what this measurement itself costs")(
        lambda bench: idle(bench, lambda: pause(SECONDS))
    )
PROCESSES.goal("0: less than 1 ms a second", "duodao.map", 1.0, fixed=True)
THREADS.goal("0: less than 1 ms a second", "duodao.map", 1.0, fixed=True)

FRAMES: Scenario = scenario(
    "frames", "Frames of the library between a worker's loop and the user's function", "frames", 1, up=False,
    about="Python frames of the library that lie between the user's function and the loop that takes work.",
)  # fmt: skip


def count(
    bench: Bench, call: Callable[[], list[list[tuple[str, str]]]], *, package: str, loops: tuple[str, ...]
) -> None:
    """Count frames of `package` up to, and without, the first that is one of `loops`; note their names."""
    stack = call()[-1]
    names = [f"{os.path.basename(file)}:{name}" for file, name in stack if f"{os.sep}{package}{os.sep}" in file]
    inner = []
    for name in names:
        if name in loops:
            break
        inner.append(name)
    bench.value = float(len(inner))
    bench.extra = " < ".join([*inner, *names[len(inner) : len(inner) + 1]])


def ours_frames(lane: str) -> Callable[[Bench], None]:
    def row(bench: Bench) -> None:
        import duodao

        def call() -> Any:
            return list(duodao.map(frames, range(200), lane=lane))  # type: ignore[call-overload]

        count(bench, call, package="duodao", loops=LOOPS)

    return row


LOOPS = ("thread.py:_serve", "worker.py:serve", "engine.py:_turn")
"""The loops of ours that take work: of a thread, of a process, and of a run whose calls happen inline."""
for each in ("thread", "process", "inline"):
    FRAMES.row(f"duodao.map, lane={each!r}", ours=True)(ours_frames(each))


@FRAMES.row("concurrent.futures, threads")
def frames_futures(bench: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as made:
        count(bench, lambda: list(made.map(frames, range(20))), package="futures", loops=("thread.py:_worker",))


@FRAMES.row("multiprocessing.Pool.map")
def frames_pool(bench: Bench) -> None:
    from multiprocessing import Pool

    with Pool(2) as made:
        count(bench, lambda: made.map(frames, range(20)), package="multiprocessing", loops=("pool.py:worker",))


@FRAMES.row("mpire")
def frames_mpire(bench: Bench) -> None:
    from mpire import WorkerPool

    with WorkerPool(2) as made:
        count(bench, lambda: made.map(frames, range(20)), package="mpire", loops=("worker.py:run",))


@FRAMES.row("pypeln.thread")
def frames_pypeln(bench: Bench) -> None:
    from pypeln import thread

    count(bench, lambda: list(thread.map(frames, range(20))), package="pypeln", loops=("worker.py:__call__",))


FRAMES.goal("at most 2 on threads", "duodao.map, lane='thread'", 2, fixed=True)
FRAMES.goal("at most 2 on processes", "duodao.map, lane='process'", 2, fixed=True)
