"""Greenlets, 1,000 in flight: blocking calls that wait, beside gevent's own pools and plain threads."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario

NAMES = ("greenlet_1ms", "greenlet_10ms")
WIDTH = 1_000


def check(result: list[int], n: int) -> bool:
    return len(result) == n and sum(result) == n * (n - 1) // 2


def wait_1ms(x: int) -> int:
    time.sleep(0.001)
    return x


def wait_10ms(x: int) -> int:
    time.sleep(0.010)
    return x


SHORT = scenario("greenlet_1ms", "Greenlet lane: time.sleep(1 ms), 1,000 in flight", "items/s", 200_000, check=check)
LONG = scenario("greenlet_10ms", "Greenlet lane: time.sleep(10 ms), 1,000 in flight", "items/s", 200_000, check=check)
ABOUT = "Ours starts its worker process, and patches it, within the time; gevent's rows patch themselves before it."


def patched_pool() -> Any:
    """gevent.pool.Pool, in this process, which is the row's own."""
    from gevent import monkey

    monkey.patch_all()
    from gevent.pool import Pool

    return Pool(WIDTH)


def declare(s: Scenario, work: Any) -> None:
    """The same rows for both waits."""
    s.about = ABOUT

    @s.row("duodao.map", ours=True, note="in the order of the inputs")
    def ours(bench: Bench) -> None:
        import duodao

        list(duodao.map(work, range(WIDTH), lane="greenlet", workers=WIDTH))
        bench.time(lambda: list(duodao.map(work, range(bench.n), lane="greenlet", workers=WIDTH)))

    @s.row("duodao.map, ordered=False", ours=True)
    def unordered(bench: Bench) -> None:
        import duodao

        list(duodao.map(work, range(WIDTH), lane="greenlet", workers=WIDTH))
        bench.time(lambda: list(duodao.map(work, range(bench.n), lane="greenlet", workers=WIDTH, ordered=False)))

    @s.row("gevent.pool.Pool.imap")
    def imap(bench: Bench) -> None:
        pool = patched_pool()
        list(pool.imap(work, range(WIDTH)))
        bench.time(lambda: list(pool.imap(work, range(bench.n))))

    @s.row("gevent.pool.Pool.imap_unordered")
    def imap_unordered(bench: Bench) -> None:
        pool = patched_pool()
        list(pool.imap_unordered(work, range(WIDTH)))
        bench.time(lambda: list(pool.imap_unordered(work, range(bench.n))))

    @s.row("concurrent.futures.ThreadPoolExecutor", n=s.n // 4)
    def threads(bench: Bench) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(WIDTH) as made:
            list(made.map(work, range(WIDTH)))
            bench.time(lambda: list(made.map(work, range(bench.n))))

    s.goal("not slower than gevent's pool in order", "duodao.map", 1.0, "=gevent.pool.Pool.imap")
    s.goal("nor without", "duodao.map, ordered=False", 1.0, "gevent.pool.Pool.imap_unordered")
    s.goal("faster than threads", "duodao.map", 1.0, "concurrent.futures")


declare(SHORT, wait_1ms)
declare(LONG, wait_10ms)
