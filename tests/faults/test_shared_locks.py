"""Locks between processes under kill -9 at random instants, and deadlocks by the hundred. Source: M17, M18, M24."""

from __future__ import annotations

import os
import pickle
import random
import select
import time
import warnings

import pytest

from duodao import arena, sync
from duodao.children import guard
from duodao.errors import OwnerDied
from duodao.sync import table

pytestmark = pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")  # inversions are what this is about
HANG = 20.0
"""Seconds after which something hangs. What is promised is 0.1 s; how long it took is printed."""


class Worker:
    """A process that runs an entry of shared_lock_workers.py."""

    def __init__(self, entry, *given):
        self._heard, said = os.pipe()
        told, self._tell = os.pipe()
        arg = pickle.dumps(given[0] if len(given) == 1 else given)
        self.child = guard.fork(f"shared_lock_workers:{entry}", arg=arg, fds=[said, told])
        os.close(said)
        os.close(told)
        self._lines = b""

    def hear(self, timeout=HANG):
        """Its next line."""
        while b"\n" not in self._lines:
            assert select.select([self._heard], [], [], timeout)[0], "it says nothing"
            part = os.read(self._heard, 65536)
            assert part, f"it has ended with {self.child.wait(5)}"
            self._lines += part
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def tell(self):
        """Let it go on."""
        os.write(self._tell, b"x")

    def close(self):
        """End it."""
        self.child.kill()
        self.child.wait(10)
        os.close(self._heard)
        os.close(self._tell)


@pytest.fixture
def start():
    """Start workers; they are ended after the test."""
    started = []

    def begin(entry, *given):
        started.append(Worker(entry, *given))
        return started[-1]

    yield begin
    for worker in started:
        worker.close()


@pytest.fixture
def memory():
    """The offset of a zeroed page that all processes see."""
    offset = arena.get().allocate(4096)
    arena.get().view(offset, 4096)[:] = bytes(4096)
    yield offset
    arena.get().free(offset)


def short_and_long(short, long):
    """The two forms of a test, by how much they do."""
    return pytest.mark.parametrize(
        "times", [short, pytest.param(long, marks=(pytest.mark.soak, pytest.mark.timeout(900)))]
    )


def figures(times, what):
    """Print the spread of some seconds, and hold that nothing hung."""
    times.sort()
    middle, late = times[len(times) // 2], times[-1]
    print(f"{what}: {middle * 1e3:.1f} ms (median), {late * 1e3:.1f} ms (most of {len(times)})")
    assert late < HANG


def taken(lock):
    """Take it and give it back: what taking it gave, and how long it took."""
    begin = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert (got := lock.acquire(timeout=HANG)), "the lock can't be had any more"
    lasted = time.monotonic() - begin
    return got, lasted


@pytest.mark.parametrize("kind", [sync.Lock, sync.RLock])
@short_and_long(25, 500)
def test_kill_the_holder_at_a_random_instant(start, memory, kind, times):
    """Whatever instruction a process is killed at that takes and gives a lock, the next one has it at once, and is told
    of the death if and only if what it protects may be half done.
    """
    rng = random.Random(times)
    lock = kind(name="plate", shared=True)
    pair = arena.get().view(memory, 16).cast("Q")
    waits, told, halves = [], 0, 0
    for _ in range(times):
        workers = [start("busy", lock, memory), start("busy", lock, memory)]
        for worker in workers:
            worker.hear()
        select.select([], [], [], rng.random() * 0.005)
        workers[0].child.kill()
        got, lasted = taken(lock)
        waits.append(lasted)
        workers[1].child.kill()
        half = pair[0] != pair[1]
        died = isinstance(got, OwnerDied)
        told, halves = told + died, halves + half
        assert died or not half, "half done, and nobody was told"
        pair[1] = pair[0]
        lock.release()
        for worker in workers:
            worker.child.wait(10)
    print(f"{told} of {times} were told of a death, {halves} found it half done")
    figures(waits, f"{kind.__name__} after a kill")


@short_and_long(6, 150)
def test_kill_one_of_those_that_wait_and_wake(start, memory, times):
    """kill -9 of a process that waits for and wakes others by Condition, Event and Semaphore: the others go on."""
    rng = random.Random(times)
    rounds = arena.get().view(memory, 64).cast("Q")
    for _ in range(times):
        condition, event = sync.Condition(shared=True), sync.Event(shared=True)
        permits = sync.Semaphore(5, shared=True)
        workers = [start("turns", place, condition, event, permits, memory) for place in range(3)]
        for worker in workers:
            worker.hear()
        select.select([], [], [], rng.random() * 0.02)
        workers[0].child.kill()
        before = rounds.tolist()
        end = time.monotonic() + HANG
        while not all(rounds[place] >= before[place] + 3 for place in (1, 2)):
            assert time.monotonic() < end, "the others hang"
            select.select([], [], [], 0.001)
        for worker in workers[1:]:
            worker.child.kill()
        for worker in workers:
            worker.child.wait(10)


@short_and_long(15, 300)
def test_two_processes_that_wait_for_each_other(start, times):
    """Each time exactly one of the two gets Deadlock, with both waits and both stacks; the other one eats."""
    plate, chopsticks = sync.Lock(name="plate", shared=True), sync.Lock(name="chopsticks", shared=True)
    gate = sync.Barrier(2, shared=True)
    a = start("philosopher", plate, chopsticks, gate, times)
    b = start("philosopher", chopsticks, plate, gate, times)
    waits = []
    for _ in range(times):
        results = sorted([a.hear(), b.hear()])
        assert results[1] == "ate"
        assert results[0] != "ate"
        lasted, cycle, stacks = results[0].split()
        assert (cycle, stacks) == ("2", "2")
        waits.append(float(lasted) / 1e3)
    figures(waits, "Deadlock between processes after")


@short_and_long(8, 100)
def test_circles_of_shared_and_local_locks(start, times):
    """A circle through two processes, with a lock of one process in each: exactly one of the four gets Deadlock."""
    ours, theirs = sync.Lock(name="ours", shared=True), sync.Lock(name="theirs", shared=True)
    gate = sync.Barrier(2, shared=True)
    workers = [start("mixed", ours, theirs, gate, times), start("mixed", theirs, ours, gate, times)]
    waits = []
    for _ in range(times):
        results = [worker.hear() for worker in workers for _ in range(2)]
        lost = [result for result in results if result != "ate"]
        assert len(lost) == 1
        waits.append(float(lost[0]) / 1e3)
    figures(waits, "Deadlock of processes and threads after")


@short_and_long(40, 400)
def test_random_locks_again_and_again(start, times):
    """Four processes that take three random of five locks, and again after each Deadlock: all is done in the end."""
    locks = [sync.Lock(name=str(number), shared=True) for number in range(5)]
    begin = time.monotonic()
    workers = [start("diner", locks, seed, times, False) for seed in range(4)]
    deadlocks = sum(int(worker.hear(100)) for worker in workers)
    print(f"{4 * times} rounds, {deadlocks} deadlocks, {time.monotonic() - begin:.1f} s")
    assert not any(lock.locked() for lock in locks)
    assert not list(table.get().entries())


@short_and_long(300, 5000)
def test_locks_in_order_give_no_alarm(start, times):
    """Four processes that take three of five locks in order: no Deadlock, ever."""
    locks = [sync.Lock(name=str(number), shared=True) for number in range(5)]
    workers = [start("diner", locks, seed, times, True) for seed in range(4)]
    assert [worker.hear(100) for worker in workers] == ["0"] * 4


@pytest.mark.soak
def test_a_holder_that_sleeps_is_no_deadlock(start):
    """A lock that is held for 5 s while others wait: no alarm, and they have it afterwards."""
    lock = sync.Lock(shared=True)
    holder = start("sleeper", lock)
    holder.hear()
    waiter = start("diner", [lock, sync.Lock(shared=True), sync.Lock(shared=True)], 1, 1, True)
    select.select([], [], [], 5)
    holder.tell()
    assert waiter.hear() == "0"
