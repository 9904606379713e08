"""From the call to the first result on processes; the import time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.scenario import CORES, Bench, Scenario, scenario
from benchmarks.work import noop

NAMES = ("first_result", "next_result", "next_result_500mb", "import_time")
Way = Callable[[], Iterator[Any]]


def milliseconds(seconds: float, n: int, result: Any) -> float:
    return seconds * 1e3


FIRST = scenario("first_result", "First call of a program: to its first result from a process", "ms", 1,
                 up=False, figure=milliseconds)  # fmt: skip
NEXT = scenario("next_result", "Later calls: to the first result from a process", "ms", 1,
                up=False, figure=milliseconds,
                about="Ours keeps idle workers for 10 s; the others make their pool anew, as a function that "
                      "wants a pool does.")  # fmt: skip
LARGE = scenario("next_result_500mb", "Later calls from a program of 500 MB", "ms", 1, up=False, figure=milliseconds)


# Each way is a generator: the clock stops at its first value, what closing costs comes after that. Imports are in the
# first call's figure, for everyone.
def ours() -> Iterator[Any]:
    import duodao

    with duodao.map(noop, range(100), lane="process") as results:
        yield next(iter(results))


def pool(method: str) -> Way:
    def way() -> Iterator[Any]:
        import multiprocessing

        with multiprocessing.get_context(method).Pool(CORES) as made:
            yield next(made.imap(noop, range(100)))

    return way


def futures(method: str) -> Way:
    def way() -> Iterator[Any]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context(method)) as made:
            yield next(made.map(noop, range(100)))

    return way


def joblib() -> Iterator[Any]:
    from joblib import Parallel, delayed

    with Parallel(CORES, return_as="generator") as parallel:
        results = parallel(delayed(noop)(x) for x in range(100))
        yield next(results)
        list(results)


def pebble() -> Iterator[Any]:
    from pebble import ProcessPool

    with ProcessPool(CORES) as made:
        yield next(made.map(noop, range(100)).result())


def mpire() -> Iterator[Any]:
    from mpire import WorkerPool

    with WorkerPool(CORES) as made:
        yield next(made.imap(noop, range(100)))


WAYS: tuple[tuple[str, Way, bool], ...] = (
    ("duodao.map", ours, True),
    ("multiprocessing.Pool, fork", pool("fork"), False),
    ("multiprocessing.Pool, forkserver", pool("forkserver"), False),
    ("concurrent.futures, forkserver", futures("forkserver"), False),
    ("concurrent.futures, spawn", futures("spawn"), False),
    ("joblib", joblib, False),
    ("pebble", pebble, False),
    ("mpire", mpire, False),
)


def declare(s: Scenario, *, before: int, megabytes: int = 0) -> None:
    """Rows that time one call to its first result, after `before` calls, in a program that has touched `megabytes`."""
    for label, way, mine in WAYS:

        def row(bench: Bench, way: Way = way) -> None:
            held = bytearray(b"x") * (megabytes * 1_000_000)
            for _ in range(before):
                list(way())
            once = way()
            bench.time(lambda: next(once))
            list(once)
            del held

        s.row(label, ours=mine)(row)


declare(FIRST, before=0)
declare(NEXT, before=3)
declare(LARGE, before=3, megabytes=500)
FIRST.goal(
    "at most that of a forkserver pool",
    "duodao.map",
    1.0,
    "multiprocessing.Pool, forkserver",
    "concurrent.futures, forkserver",
)
NEXT.goal("at most that of multiprocessing.Pool with fork", "duodao.map", 1.0, "=multiprocessing.Pool, fork")
LARGE.goal("at most that of multiprocessing.Pool with fork", "duodao.map", 1.0, "=multiprocessing.Pool, fork")

IMPORT = scenario("import_time", "Import time, by -X importtime", "ms", 1, up=False,
                  about="The sum over all modules that the statement loads.")  # fmt: skip


def importing(statement: str) -> Callable[[Bench], None]:
    def row(bench: Bench) -> None:
        def once(code: str) -> int:
            command = [sys.executable, "-X", "importtime", "-c", code]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
            return sum(int(line.split(":")[1].split("|")[0]) for line in lines[1:] if line.startswith("import time:"))

        once(statement)
        bench.value = min(once(statement) - once("pass") for _ in range(3)) / 1e3

    return row


IMPORT.row("import duodao", ours=True)(importing("import duodao"))
IMPORT.row("import duodao; duodao.map", note="with all that a first call on threads needs")(
    importing("import duodao; list(duodao.map(abs, [1], lane='thread'))")
)
IMPORT.row("import concurrent.futures, multiprocessing")(importing("import concurrent.futures, multiprocessing"))
IMPORT.row("from concurrent.futures import ProcessPoolExecutor")(
    importing("from concurrent.futures import ProcessPoolExecutor")
)
for peer in ("joblib", "mpire", "pebble", "pypeln", "streamable", "aiostream"):
    IMPORT.row(f"import {peer}")(importing(f"import {peer}"))
IMPORT.goal(
    "no more than concurrent.futures and multiprocessing", "import duodao", 1.0, "import concurrent.futures, multi"
)
