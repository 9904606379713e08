"""locks(): several at once, in one order."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from tests.unit.sync.meeting import Runner, all_of, noticing

from duodao.errors import UsageError
from duodao.sync import Lock, RLock, Semaphore, locks


def test_all_are_held_inside_and_none_after():
    """Inside the block all are held, in whatever order they were named; after it none is, an error or not."""
    a, b, c = Lock(), RLock(), Lock()
    for order in itertools.permutations((a, b, c)):
        with pytest.raises(ZeroDivisionError), locks(*order) as told:
            assert told == (True, True, True)
            assert all(lock.locked() for lock in order)
            raise ZeroDivisionError
        assert not any(lock.locked() for lock in order)


def test_one_order_and_its_reverse():
    """They are taken by age and released in reverse."""
    steps = []

    class Noted(Lock):
        def acquire(self, *args, **kwargs):
            steps.append(f"+{self.name}")
            return super().acquire(*args, **kwargs)

        def release(self):
            steps.append(f"-{self.name}")
            super().release()

    a, b, c = (Noted(name=name) for name in "abc")
    with locks(c, a, b, a):
        pass
    assert steps == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_no_circle_is_possible():
    """Threads and tasks that take random ones of them, named in any order, never deadlock."""
    table, eaten = [Lock() for _ in range(5)], []

    def by_thread(seed):
        chance = random.Random(seed)
        for _ in range(50):
            with locks(*chance.sample(table, 3)):
                eaten.append(seed)

    async def by_task(seed):
        chance = random.Random(seed)
        for _ in range(50):
            async with locks(*chance.sample(table, 3)):
                await asyncio.sleep(0)
                eaten.append(seed)

    async def main():
        await asyncio.gather(*(by_task(seed) for seed in range(3)))

    all_of(*[Runner(by_thread, seed) for seed in range(4)], Runner(lambda: asyncio.run(main())))
    assert len(eaten) == 7 * 50


def test_what_was_taken_is_released_when_the_next_can_not_be_had():
    """An error on the way, here a cancelled task, leaves none of them held."""
    a, b = Lock(), Lock()
    parked = noticing(b)

    async def both():
        async with locks(a, b):
            pass

    async def main():
        async with b:
            task = asyncio.create_task(both())
            await asyncio.sleep(0)
            parked.reach(1)
            assert a.locked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not a.locked()

    asyncio.run(main())


def test_only_locks():
    """What has no holder has no place in the order."""
    with pytest.raises(UsageError, match="not Semaphore"):
        locks(Lock(), Semaphore())
    with locks():
        pass
