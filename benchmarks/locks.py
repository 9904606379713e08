"""Locks: what `with lock:` costs when it is free, and when two want it; of threads, of coroutines and of processes."""

from __future__ import annotations

import threading
from typing import Any

from benchmarks.scenario import Bench, scenario

NAMES = ("lock_free", "rlock_free", "lock_contended", "lock_async", "lock_shared")


def nanoseconds(seconds: float, n: int, _: Any) -> float:
    return seconds / n * 1e9


def declare(name: str, title: str, n: int, **more: Any) -> Any:
    return scenario(name, title, "ns", n, up=False, figure=nanoseconds, **more)


ABOUT = "One `with lock: pass`, in a loop whose own cost is part of the figure."
FREE = declare("lock_free", "Lock, uncontended", 500_000, about=ABOUT)
AGAIN = declare("rlock_free", "RLock, uncontended", 500_000, about=ABOUT)
CONTENDED = declare(
    "lock_contended",
    "Lock, contended by two threads",
    100_000,
    about="Two threads, each half of the rounds, with a few steps of Python inside the block.",
)
ASYNC = declare("lock_async", "Lock in a coroutine, uncontended", 100_000, about="One `async with lock: pass`.")
SHARED = declare("lock_shared", "Lock between processes, uncontended", 100_000, about=ABOUT)


def spin(lock: Any, n: int) -> None:
    for _ in range(n):
        with lock:
            pass


def free(bench: Bench, lock: Any) -> None:
    spin(lock, 1000)
    bench.time(lambda: spin(lock, bench.n))


@FREE.row("duodao.sync.Lock", ours=True, note="knows its holder; can't deadlock in silence")
def ours_free(bench: Bench) -> None:
    from duodao.sync import Lock

    free(bench, Lock())


@FREE.row("threading.Lock")
def threading_free(bench: Bench) -> None:
    free(bench, threading.Lock())


@AGAIN.row("duodao.sync.RLock", ours=True)
def ours_again(bench: Bench) -> None:
    from duodao.sync import RLock

    free(bench, RLock())


@AGAIN.row("threading.RLock")
def threading_again(bench: Bench) -> None:
    free(bench, threading.RLock())


def contended(bench: Bench, lock: Any) -> None:
    """Each count must come out exactly: a lock that lets two in fails here."""
    count, start = [0], threading.Barrier(3)

    def work() -> None:
        start.wait()
        for _ in range(bench.n // 2):
            with lock:
                seen = count[0]
                for _ in range(5):
                    seen += 1
                count[0] = seen

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()

    def race() -> None:
        start.wait()
        for thread in threads:
            thread.join()

    bench.time(race)
    if count[0] != bench.n // 2 * 2 * 5:
        raise AssertionError(f"lost updates: {count[0]}")


@CONTENDED.row("duodao.sync.Lock", ours=True)
def ours_contended(bench: Bench) -> None:
    from duodao.sync import Lock

    contended(bench, Lock())


@CONTENDED.row("threading.Lock")
def threading_contended(bench: Bench) -> None:
    contended(bench, threading.Lock())


def in_a_coroutine(bench: Bench, make: Any) -> None:
    import asyncio

    async def main() -> None:
        lock = make()

        async def rounds(n: int) -> None:
            for _ in range(n):
                async with lock:
                    pass

        await rounds(bench.n)

    bench.time(lambda: asyncio.run(main()))


@ASYNC.row("duodao.sync.Lock", ours=True, note="the same lock that threads use")
def ours_async(bench: Bench) -> None:
    from duodao.sync import Lock

    in_a_coroutine(bench, Lock)


@ASYNC.row("asyncio.Lock")
def asyncio_async(bench: Bench) -> None:
    import asyncio

    in_a_coroutine(bench, asyncio.Lock)


@SHARED.row("duodao.sync.Lock(shared=True)", ours=True, note="knows its holder, survives its death")
def ours_shared(bench: Bench) -> None:
    from duodao.sync import Lock

    free(bench, Lock(shared=True))


@SHARED.row("multiprocessing.Lock", note="lost for ever with a holder that is killed")
def multiprocessing_shared(bench: Bench) -> None:
    import multiprocessing

    free(bench, multiprocessing.Lock())


@SHARED.row("fcntl.lockf", note="between processes only, not between threads")
def fcntl_shared(bench: Bench) -> None:
    import fcntl
    import tempfile

    with tempfile.TemporaryFile() as file:

        def rounds(n: int) -> None:
            for _ in range(n):
                fcntl.lockf(file, fcntl.LOCK_EX)
                fcntl.lockf(file, fcntl.LOCK_UN)

        rounds(1000)
        bench.time(lambda: rounds(bench.n))


FREE.goal("at most 2.5 times the cost of threading.Lock", "duodao.sync.Lock", 1 / 2.5, "threading.Lock")
AGAIN.goal("at most 2.5 times the cost of threading.RLock", "duodao.sync.RLock", 1 / 2.5, "threading.RLock")
CONTENDED.goal("at most 3 times the cost of threading.Lock", "duodao.sync.Lock", 1 / 3, "threading.Lock")
SHARED.goal("at most 1,500 ns", "duodao.sync.Lock(shared=True)", 1500, fixed=True)
