"""Coroutines, 1,000 in flight: what a call costs, and how near a thousand waits come to the ideal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario

NAMES = ("coroutine_yield", "coroutine_wait")
WIDTH = 1_000
IDEAL = 100_000
Work = Callable[[int], Awaitable[int]]


def check(result: list[int], n: int) -> bool:
    return len(result) == n and sum(result) == n * (n - 1) // 2


async def give_way(x: int) -> int:
    await asyncio.sleep(0)
    return x


async def wait_10ms(x: int) -> int:
    await asyncio.sleep(0.010)
    return x


YIELD = scenario(
    "coroutine_yield", "Coroutine lane: 100,000 x sleep(0), 1,000 in flight", "items/s", 100_000, check=check
)
WAIT = scenario(
    "coroutine_wait", "Coroutine lane: 10 ms waits, 1,000 in flight", "of the ideal", 50_000, check=check,
    figure=lambda seconds, n, _: n / seconds / IDEAL, about="The ideal is 100,000 a second.",
)  # fmt: skip


async def queue_workers(work: Work, n: int) -> list[int]:
    """What people write by hand when they know how: long-lived worker tasks around one queue."""
    queue: asyncio.Queue[int] = asyncio.Queue(WIDTH)
    out: list[Any] = [None] * n

    async def worker() -> None:
        while True:
            x = await queue.get()
            out[x] = await work(x)
            queue.task_done()

    workers = [asyncio.ensure_future(worker()) for _ in range(WIDTH)]
    for x in range(n):
        await queue.put(x)
    await queue.join()
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return out


async def task_group(work: Work, n: int) -> list[int]:
    """A task per item, at most WIDTH alive."""
    free = asyncio.Semaphore(WIDTH)
    out: list[Any] = [None] * n

    async def one(x: int) -> None:
        try:
            out[x] = await work(x)
        finally:
            free.release()

    async with asyncio.TaskGroup() as group:
        for x in range(n):
            await free.acquire()
            group.create_task(one(x))
    return out


async def gather(work: Work, n: int) -> list[int]:
    """What people write: gather over everything, a semaphore inside."""
    free = asyncio.Semaphore(WIDTH)

    async def one(x: int) -> int:
        async with free:
            return await work(x)

    return await asyncio.gather(*(one(x) for x in range(n)))


async def of_streamable(work: Work, n: int) -> list[int]:
    from streamable import stream

    return [x async for x in stream(range(n)).map(work, concurrency=WIDTH)]


async def of_aiostream(work: Work, n: int) -> list[int]:
    from aiostream import stream

    return await stream.list(stream.map(stream.iterate(range(n)), work, ordered=True, task_limit=WIDTH))


async def ours(work: Work, n: int) -> list[int]:
    import duodao

    return [x async for x in duodao.map(work, range(n), workers=WIDTH)]


def declare(s: Scenario, work: Work) -> None:
    """The same rows for both functions."""

    def run(main: Callable[[Work, int], Any], *, uvloop: bool = False) -> Callable[[Bench], None]:
        def row(bench: Bench) -> None:
            factory = None
            if uvloop:
                from uvloop import new_event_loop as factory
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main(work, WIDTH))
                bench.time(lambda: runner.run(main(work, bench.n)))

        return row

    @s.row("duodao.map, plain for", ours=True, note="from a program without a loop; on uvloop, as it is installed")
    def sync(bench: Bench) -> None:
        import duodao

        list(duodao.map(work, range(WIDTH), workers=WIDTH))
        bench.time(lambda: list(duodao.map(work, range(bench.n), workers=WIDTH)))

    s.row("duodao.map, async for", ours=True, note="on the caller's loop")(run(ours))
    s.row("duodao.map, async for, uvloop", ours=True)(run(ours, uvloop=True))
    s.row("asyncio.Queue + 1,000 worker tasks")(run(queue_workers))
    s.row("asyncio.Queue + 1,000 worker tasks, uvloop")(run(queue_workers, uvloop=True))
    s.row("TaskGroup + Semaphore")(run(task_group))
    s.row("gather + Semaphore")(run(gather))
    s.row("streamable", n=s.n // 2)(run(of_streamable))
    s.row("aiostream", n=s.n // 10)(run(of_aiostream))

    @s.row("pypeln.task", n=s.n // 10)
    def pypeln(bench: Bench) -> None:
        from pypeln import task

        bench.time(lambda: list(task.map(work, range(bench.n), workers=WIDTH)))


declare(YIELD, give_way)
declare(WAIT, wait_10ms)
YIELD.goal("3 times the best library", "duodao.map, async for", 3.0, "streamable", "aiostream", "pypeln")
YIELD.goal("level with hand-written worker tasks", "duodao.map, async for", 1.0, "=asyncio.Queue + 1,000 worker tasks")
YIELD.goal("twice that with uvloop", "duodao.map, async for, uvloop", 2.0, "=asyncio.Queue + 1,000 worker tasks")
WAIT.goal("0.87 of the ideal", "duodao.map, async for", 0.87, fixed=True)
WAIT.goal("0.90 of the ideal with uvloop", "duodao.map, async for, uvloop", 0.90, fixed=True)
WAIT.goal("0.87 of the ideal without a loop of one's own", "duodao.map, plain for", 0.87, fixed=True)
