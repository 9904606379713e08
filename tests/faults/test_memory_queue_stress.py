"""A memory queue under threads and tasks that time out, are cancelled and come back: nothing lost, nobody forgotten."""

from __future__ import annotations

import asyncio
import itertools
import queue as standard
import random
import threading
from collections import Counter
from typing import Any

import pytest

import duodao
from duodao.errors import ShutDown

PATIENCE = 60.0


def write(queue: Any, items: list[int], seed: int) -> None:
    """Put all items, in any of the ways there are, also those that give up at times."""
    chance, items = random.Random(seed), list(items)
    while items:
        try:
            match chance.randrange(5):
                case 0:
                    queue.put(items[-1], timeout=chance.choice([0, 0.0005]))
                case 1:
                    queue.put_nowait(items[-1])
                case 2:
                    some = items[: -1 - chance.randrange(9) : -1]
                    try:
                        done = queue.put_many(some, timeout=chance.choice([0, 0.001, PATIENCE]))
                    except standard.Full as error:
                        done = error.put_count
                    if done:
                        del items[-done:]
                    continue
                case _:
                    queue.put(items[-1])
        except standard.Full:
            continue
        items.pop()


def read(queue: Any, found: list[int], seed: int) -> None:
    """Take what there is, in any of the ways, until the end."""
    chance = random.Random(seed)
    while True:
        try:
            match chance.randrange(4):
                case 0:
                    found.append(queue.get(timeout=chance.choice([0, 0.0005])))
                case 1:
                    found += queue.get_many(chance.randrange(1, 9))
                case 2:
                    found.append(queue.get_nowait())
                case _:
                    found.append(queue.get())
        except standard.Empty:
            continue
        except ShutDown:
            return


async def aread(queue: Any, found: list[int], seed: int) -> None:
    """The same in a task, whose waits are cancelled at times."""
    chance = random.Random(seed)
    while True:
        task = asyncio.ensure_future(queue.aget_many(3) if chance.random() < 0.5 else queue.aget())
        if chance.random() < 0.3:
            await asyncio.sleep(0)
            task.cancel()
        try:
            got = await task
        except asyncio.CancelledError:
            continue
        except ShutDown:
            return
        found += got if isinstance(got, list) else [got]
        await asyncio.sleep(0)


async def awrite(queue: Any, items: list[int]) -> None:
    """The same in a task."""
    for batch in itertools.batched(items, 7) if hasattr(itertools, "batched") else [items]:
        await queue.aput_many(batch)
        await asyncio.sleep(0)


def run(maxsize: int, each: int, seed: int) -> None:
    """Four writers and four readers in threads, two and two in tasks."""
    queue: Any = duodao.Queue(maxsize, order=("fifo", "lifo", "priority")[seed % 3])
    shares = [list(range(n * each, (n + 1) * each)) for n in range(6)]
    found: list[list[int]] = [[] for _ in range(6)]
    written = threading.Event()

    async def tasks() -> None:
        readers = [asyncio.create_task(aread(queue, found[n], seed + n)) for n in (4, 5)]
        await asyncio.gather(*(awrite(queue, shares[n]) for n in (4, 5)))
        written.set()
        await asyncio.gather(*readers)

    writers = [threading.Thread(target=write, args=(queue, shares[n], seed + n), daemon=True) for n in range(4)]
    readers = [threading.Thread(target=read, args=(queue, found[n], seed + n), daemon=True) for n in range(4)]
    loop = threading.Thread(target=asyncio.run, args=(tasks(),), daemon=True)
    for thread in (*writers, *readers, loop):
        thread.start()
    for thread in writers:
        thread.join(PATIENCE)
        assert not thread.is_alive(), queue.statistics()
    assert written.wait(PATIENCE), queue.statistics()
    queue.shutdown()
    for thread in (*readers, loop):
        thread.join(PATIENCE)
        assert not thread.is_alive(), queue.statistics()
    assert Counter(itertools.chain(*found)) == Counter(range(6 * each))
    assert queue.unfinished_tasks == 6 * each
    assert queue.statistics().getters == queue.statistics().putters == ()


@pytest.mark.parametrize("maxsize", [1, 3, 0])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost(maxsize, seed):
    """Each item comes out once, and all end, while waits time out and tasks are cancelled at any moment."""
    run(maxsize, 300, seed)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100))
def test_nothing_is_lost_for_long(seed):
    """The long form of the above."""
    run((1, 2, 5, 0)[seed % 4], 3000, seed)
