"""Queues between threads: what it costs to hand over an item, one by one and by the many."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario

NAMES = ("queue_pair", "queue_four", "queue_small")
MANY = 1000


def check(result: int, n: int) -> bool:
    return result == n


PAIR = scenario("queue_pair", "Queue in memory, 1 writer, 1 reader, maxsize=1000", "items/s", 200_000, check=check)
FOUR = scenario("queue_four", "Queue in memory, 2 writers, 2 readers, maxsize=1000", "items/s", 200_000, check=check)
SMALL = scenario("queue_small", "Queue in memory, 2 writers, 2 readers, maxsize=1", "items/s", 20_000, check=check)
CASES = ((PAIR, 1, 1000), (FOUR, 2, 1000), (SMALL, 2, 1))


def pass_on(bench: Bench, sides: int, write: Callable[[int], object], read: Callable[[int], int]) -> None:
    """Time `sides` writers and readers that pass n items in all. read: how many it got."""
    share, got = bench.n // sides, [0] * sides

    def reading(number: int) -> None:
        got[number] = read(share)

    def run() -> int:
        threads = [threading.Thread(target=write, args=(share,)) for _ in range(sides)]
        threads += [threading.Thread(target=reading, args=(number,)) for number in range(sides)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(got)

    bench.time(run)


def one_by_one(bench: Bench, queue: Any, sides: int) -> None:
    def write(n: int) -> None:
        for item in range(n):
            queue.put(item)

    def read(n: int) -> int:
        for _ in range(n):
            queue.get()
        return n

    for _ in range(1000):
        queue.put(0)
        queue.get()
    pass_on(bench, sides, write, read)


def declare(s: Scenario, sides: int, maxsize: int) -> None:
    """The same rows for each."""

    @s.row("duodao.Queue", ours=True)
    def ours(bench: Bench) -> None:
        import duodao

        one_by_one(bench, duodao.Queue(maxsize), sides)

    @s.row("duodao.dropin.queue.Queue", ours=True, note="the import line changed")
    def dropin(bench: Bench) -> None:
        from duodao.dropin import queue

        one_by_one(bench, queue.Queue(maxsize), sides)

    @s.row("queue.Queue")
    def standard(bench: Bench) -> None:
        import queue

        one_by_one(bench, queue.Queue(maxsize), sides)

    if maxsize == 1:
        return

    @s.row("duodao.Queue, put_many and get_many", n=2_000_000, ours=True, note=f"{MANY} at a time")
    def many(bench: Bench) -> None:
        import duodao

        queue: Any = duodao.Queue(maxsize)
        items = list(range(MANY))

        def write(n: int) -> None:
            for _ in range(n // MANY):
                queue.put_many(items)

        def read(n: int) -> int:
            got = 0
            while got < n:
                got += len(queue.get_many(min(MANY, n - got)))
            return got

        pass_on(bench, sides, write, read)

    @s.row("queue.SimpleQueue", limit=True, note="in C, without bound, join or shutdown")
    def simple(bench: Bench) -> None:
        import queue

        one_by_one(bench, queue.SimpleQueue(), sides)


for case in CASES:
    declare(*case)
for each in (PAIR, FOUR, SMALL):
    each.goal("as fast as queue.Queue", "duodao.Queue", 1.0, "queue.Queue")
PAIR.goal("10 times queue.Queue by the many", "duodao.Queue, put_many and get_many", 10, "queue.Queue")
