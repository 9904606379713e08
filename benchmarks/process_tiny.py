"""A million calls of x*x on processes, warm: what a batch costs, and what one message per item costs."""

from __future__ import annotations

from benchmarks.scenario import CORES, Bench, scenario
from benchmarks.work import square

NAMES = ("process_tiny",)


def check(result: list[int], n: int) -> bool:
    return len(result) == n and result[-1] == (n - 1) ** 2 and sum(result) == (n - 1) * n * (2 * n - 1) // 6


S = scenario(
    "process_tiny",
    "Process lane: 1,000,000 tiny tasks (x*x)",
    "items/s",
    1_000_000,
    check=check,
    about="Every pool has run the same function before. Slow peers get fewer items so that a run stays near a second.",
)
WARM = 20_000


@S.row("duodao.map", ours=True, note="lane='process'; crash recovery and per-item errors on")
def ours(bench: Bench) -> None:
    import duodao

    list(duodao.map(square, range(WARM), lane="process"))
    bench.time(lambda: list(duodao.map(square, range(bench.n), lane="process")))


@S.row("duodao.map, generator", ours=True, note="input of unknown length")
def ours_unknown(bench: Bench) -> None:
    import duodao

    list(duodao.map(square, range(WARM), lane="process"))
    bench.time(lambda: list(duodao.map(square, (x for x in range(bench.n)), lane="process")))


def pool(bench: Bench, **options: int) -> None:
    from multiprocessing import Pool

    with Pool(CORES) as made:
        made.map(square, range(WARM))
        bench.time(lambda: made.map(square, range(bench.n), **options))


@S.row("multiprocessing.Pool.map", note="default: n / (4 x workers) in a chunk")
def pool_default(bench: Bench) -> None:
    pool(bench)


@S.row("multiprocessing.Pool.map, chunksize=5000")
def pool_5000(bench: Bench) -> None:
    pool(bench, chunksize=5_000)


@S.row("multiprocessing.Pool.map, chunksize=20000")
def pool_20000(bench: Bench) -> None:
    pool(bench, chunksize=20_000)


@S.row("multiprocessing.Pool.imap, chunksize=2000")
def pool_lazy(bench: Bench) -> None:
    from multiprocessing import Pool

    with Pool(CORES) as made:
        made.map(square, range(WARM))
        bench.time(lambda: list(made.imap(square, range(bench.n), 2_000)))


def futures(bench: Bench, **options: int) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(CORES) as made:
        list(made.map(square, range(WARM), chunksize=2_000))
        bench.time(lambda: list(made.map(square, range(bench.n), **options)))


@S.row("concurrent.futures, chunksize=2000")
def futures_2000(bench: Bench) -> None:
    futures(bench, chunksize=2_000)


@S.row("concurrent.futures default", n=10_000)
def futures_default(bench: Bench) -> None:
    futures(bench)


@S.row("joblib", n=100_000, note="batch size auto")
def joblib_default(bench: Bench) -> None:
    from joblib import Parallel, delayed

    with Parallel(CORES) as parallel:
        parallel(delayed(square)(x) for x in range(100))
        bench.time(lambda: parallel(delayed(square)(x) for x in range(bench.n)))


@S.row("mpire, chunk_size=5000", n=200_000)
def mpire(bench: Bench) -> None:
    from mpire import WorkerPool

    with WorkerPool(CORES, keep_alive=True) as made:
        made.map(square, range(WARM))
        bench.time(lambda: made.map(square, range(bench.n), chunk_size=5_000))


@S.row("pebble, chunksize=2000", n=200_000)
def pebble(bench: Bench) -> None:
    from pebble import ProcessPool

    with ProcessPool(CORES) as made:
        list(made.map(square, range(WARM), chunksize=2_000).result())
        bench.time(lambda: list(made.map(square, range(bench.n), chunksize=2_000).result()))


@S.row("streamable", n=5_000, note="over a ProcessPoolExecutor")
def streamable(bench: Bench) -> None:
    from concurrent.futures import ProcessPoolExecutor

    from streamable import stream

    with ProcessPoolExecutor(CORES) as made:
        list(made.map(square, range(100)))
        bench.time(lambda: list(stream(range(bench.n)).map(square, concurrency=made)))


@S.row("pypeln.process", n=2_000, note="can't be kept warm; its start is in the figure")
def pypeln(bench: Bench) -> None:
    import pypeln

    bench.time(lambda: sorted(pypeln.process.map(square, range(bench.n), workers=CORES)))


@S.row("plain loop", limit=True)
def loop(bench: Bench) -> None:
    bench.time(lambda: [square(x) for x in range(bench.n)])


S.goal("level with Pool.map at its best chunk size", "duodao.map", 1.0, "multiprocessing.Pool.map")
S.goal("input of unknown length: 0.85 of that", "duodao.map, generator", 0.85, "multiprocessing.Pool.map")
S.goal("500 times concurrent.futures' default", "duodao.map", 500, "concurrent.futures default")
