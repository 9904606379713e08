"""Whatever the tasks of a group do, its block ends, every task has ended, and only real failures arrive."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

import duodao
from duodao.errors import Deadlock
from duodao.lanes.interrupt import Cancelled
from duodao.sync import Event, Lock, Semaphore


class Oops(Exception):
    """What tasks raise on purpose."""


class World:
    """A group under test, and what its tasks play with."""

    def __init__(self, seed, group):
        self.dice = random.Random(seed)
        self.group = group
        self.tasks = []
        self.locks = [Lock(name=f"lock {n}") for n in range(3)]
        self.event = Event(name="event")
        self.permits = Semaphore(1, name="permits")
        self.begun = 0
        self.lock = threading.Lock()

    def spawn(self, depth):
        """Start one task that does something."""
        with self.lock:
            choice = self.dice.choice(ACTIONS)
            lane = self.dice.choice(("thread", "thread", "coroutine"))
            daemon = self.dice.random() < 0.2
            restart = duodao.Restart(delay=0, limit=2) if self.dice.random() < 0.1 else None
            number = self.dice.randrange(1 << 30)
        work = act_async if lane == "coroutine" else act
        task = self.group.start(work, self, choice, depth, number, lane=lane, daemon=daemon, restart=restart)
        with self.lock:
            self.tasks.append(task)


ACTIONS = (
    "return",
    "return",
    "raise",
    "wait",
    "set",
    "locks",
    "join",
    "spawn",
    "spawn",
    "pause",
    "cancel",
    "terminate",
)


def act(world, choice, depth, number):
    """One thing a thread does."""
    dice = random.Random(number)
    if choice == "raise":
        raise Oops
    if choice == "wait":
        world.event.wait(None if dice.random() < 0.3 else 0.01)
    elif choice == "set":
        world.event.set()
    elif choice == "locks":
        one, two = dice.sample(world.locks, 2)
        with one, two:
            world.permits.acquire(timeout=0.01)
    elif choice == "join":
        dice.choice(world.tasks).join(None if dice.random() < 0.3 else 0.01)
    elif choice == "spawn" and depth < 3:
        for _ in range(dice.randrange(3)):
            world.spawn(depth + 1)
    elif choice == "pause":
        threading.Event().wait(dice.random() * 0.005)
    elif choice == "cancel" and dice.random() < 0.2:
        world.group.cancel()
    elif choice == "terminate":
        dice.choice(world.tasks).terminate()


async def act_async(world, choice, depth, number):
    """One thing a coroutine does."""
    dice = random.Random(number)
    if choice == "wait":
        await world.event.await_(None if dice.random() < 0.3 else 0.01)
    elif choice == "locks":
        one, two = dice.sample(world.locks, 2)
        async with one, two:
            await asyncio.sleep(0)
    elif choice == "join":
        await dice.choice(world.tasks).ajoin(None if dice.random() < 0.3 else 0.01)
    elif choice == "pause":
        await asyncio.sleep(dice.random() * 0.005)
    else:
        act(world, choice, depth, number)


def live(seed):
    """One group's life; its tasks and what it raised."""
    world = errors = None
    try:
        with duodao.Group(f"seed {seed}", grace=30) as group:
            world = World(seed, group)
            world.tasks.append(group.start(len, (), lane="thread"))
            try:
                for _ in range(world.dice.randrange(1, 8)):
                    world.spawn(0)
            finally:
                timer = threading.Timer(0.2, world.event.set)  # a thread outside that may end waits, and does
                timer.start()
    except BaseExceptionGroup as caught:
        errors = caught.exceptions
    finally:
        timer.join()
    assert not group.tasks
    assert all(task.state == "ended" and task.exitcode is not None for task in world.tasks)
    for error in errors or ():
        assert isinstance(error, (Oops, Deadlock)), repr(error)
        assert not isinstance(error, Cancelled)
    if any(task.exitcode == 1 for task in world.tasks):
        assert errors
    return world


@pytest.mark.filterwarnings("ignore::duodao.sync.order.LockOrderWarning")
@pytest.mark.parametrize("seed", range(25))
def test_every_group_ends(seed):
    """25 small worlds of tasks that fail, wait, lock, join, cancel and start each other."""
    live(seed)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::duodao.sync.order.LockOrderWarning")
@pytest.mark.parametrize("block", range(10))
def test_every_group_ends_many_times(block):
    """100 times as many."""
    for seed in range(1000 + 250 * block, 1250 + 250 * block):
        live(seed)
