"""Circles of waits: each is found as it closes, one side gives way and is told all, the others go on; and no others.

No test here sleeps until a circle is found: the wait that closes it either raises or never returns, so threads that
end in time are the proof.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
import time
from collections import deque

import pytest
from tests.unit.sync.meeting import PATIENCE, Runner, all_of, noticing

from duodao.errors import Deadlock
from duodao.sync import Condition, Lock, RLock, graph, lot

pytestmark = pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")  # inversions are what this is about
SHORT, LONG = 100, 1000


@pytest.fixture(autouse=True)
def nothing_published():
    """After each test no wait is published."""
    yield
    assert not graph._waits


def check_told(error, locks, holders):
    """The error names both locks, both holders and where both stand."""
    assert isinstance(error, Deadlock)
    assert len(error.cycle) == 2
    for place in (0, 1):
        line = f"{holders[place]} waits for {locks[1 - place].describe()}, held by {holders[1 - place]}"
        assert line in error.cycle
    text = str(error)
    for name in (*holders, *(lock.describe() for lock in locks)):
        assert name in text
    assert len(error.stacks) == 2
    for _, frames in error.stacks:
        assert any(file == __file__ and function in {"eat", "aeat"} for file, _, function in frames), frames


# Two locks


def eat(first, second, meet):
    with first:
        meet.wait(PATIENCE)
        with second:
            return "ate"


def between_threads(rounds, kind):
    meet, fresh, outcomes = threading.Barrier(2), threading.Barrier(2), []
    tables = [(kind(name="plate"), kind(name="chopsticks")) for _ in range(rounds)]

    def dine(left):
        for plate, chopsticks in tables:
            fresh.wait(PATIENCE)
            try:
                outcome = eat(plate, chopsticks, meet) if left else eat(chopsticks, plate, meet)
            except Deadlock as error:
                outcome = error
            outcomes.append((plate, chopsticks, outcome))

    sides = [Runner(dine, True, name="A"), Runner(dine, False, name="B")]
    for side in sides:
        side.join(120)
        side.result()
    by_round = {}
    for plate, chopsticks, outcome in outcomes:
        by_round.setdefault(plate, []).append(outcome)
        assert not plate.locked()
        assert not chopsticks.locked()
    assert len(by_round) == rounds
    for plate, chopsticks in tables:
        (error,) = [each for each in by_round[plate] if each != "ate"]
        assert by_round[plate].count("ate") == 1
        check_told(error, (plate, chopsticks), ("thread 'A'", "thread 'B'"))


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_two_locks_between_threads(kind):
    """Exactly one of two threads that hold what the other wants gets Deadlock, and the other goes on, each time."""
    between_threads(SHORT, kind)


@pytest.mark.soak
def test_two_locks_between_threads_1000_times():
    """The same, 1,000 times."""
    between_threads(LONG, Lock)


async def aeat(first, second, held, other):
    async with first:
        held.set()
        await other.wait()
        async with second:
            return "ate"


async def between_coroutines(rounds, kind):
    for _ in range(rounds):
        plate, chopsticks, one, two = kind(name="plate"), kind(name="chopsticks"), asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(aeat(plate, chopsticks, one, two), name="A"),
            asyncio.create_task(aeat(chopsticks, plate, two, one), name="B"),
        ]
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        (error,) = [each for each in outcomes if each != "ate"]
        check_told(error, (plate, chopsticks), ("task 'A'", "task 'B'"))
        assert not plate.locked()
        assert not chopsticks.locked()


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_two_locks_between_coroutines(kind):
    """Exactly one of two tasks that hold what the other wants gets Deadlock, and the other goes on, each time."""
    asyncio.run(between_coroutines(SHORT, kind))


@pytest.mark.soak
def test_two_locks_between_coroutines_1000_times():
    """The same, 1,000 times."""
    asyncio.run(between_coroutines(LONG, Lock))


def test_coroutines_of_uvloop():
    """Any loop will do."""
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(between_coroutines(10, Lock))


def mixed():
    """A thread has the plate, a task the chopsticks."""
    plate, chopsticks, begun, go = Lock(name="plate"), Lock(name="chopsticks"), threading.Event(), threading.Event()

    class Meet:
        def wait(self, timeout):
            begun.set()
            assert go.wait(timeout)

    async def aside():
        class Held:
            set = staticmethod(go.set)

        class Other:
            async def wait(self):
                await asyncio.sleep(0)

        return await asyncio.create_task(aeat(chopsticks, plate, Held, Other()), name="B")

    thread = Runner(eat, plate, chopsticks, Meet(), name="A")
    assert begun.wait(PATIENCE)
    task = Runner(lambda: asyncio.run(aside()), name="loop")
    outcomes = [side.done().error or side.value for side in (thread, task)]
    (error,) = [each for each in outcomes if each != "ate"]
    check_told(error, (plate, chopsticks), ("thread 'A'", "task 'B'"))
    assert not plate.locked()
    assert not chopsticks.locked()


def test_a_thread_against_a_task():
    """A circle of a thread and a task is found, whichever closes it: 100 times."""
    for _ in range(100):
        mixed()


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_a_loop_whose_thread_is_blocked(loops):
    """A task can't release while its loop's thread is blocked: a circle through that is found too."""
    new_loop = pytest.importorskip("uvloop").new_event_loop if loops == "uvloop" else asyncio.new_event_loop
    for _ in range(10):
        plate, chopsticks = Lock(name="plate"), Lock(name="chopsticks")
        begun, go = threading.Event(), threading.Event()

        def dine():
            with plate:
                begun.set()
                assert go.wait(PATIENCE)
                with chopsticks:
                    return "ate"

        async def hold(held):
            async with chopsticks:
                held.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            return "held"

        async def main():
            held = asyncio.Event()
            holder = asyncio.create_task(hold(held), name="B")
            await held.wait()
            go.set()
            try:
                with plate:  # in the loop's thread: it stops all its tasks
                    outcome = "ate"
            except Deadlock as error:
                outcome = error
            assert await holder == "held"
            return outcome

        thread = Runner(dine, name="A")
        assert begun.wait(PATIENCE)

        def serve():
            with asyncio.Runner(loop_factory=new_loop) as runner:
                return runner.run(main())

        loop = Runner(serve, name="loop")
        outcomes = [thread.done().error or thread.value, loop.result()]
        (error,) = [each for each in outcomes if each != "ate"]
        assert isinstance(error, Deadlock)
        assert "the thread of its event loop" in str(error)
        assert len(error.cycle) == 3


def test_a_loops_thread_waits_for_its_own_task():
    """Blocking the loop's thread on a lock that one of its tasks holds is Deadlock at once."""

    async def main():
        lock = Lock(name="plate")
        async with lock:
            with pytest.raises(Deadlock, match="held by itself"), lock:
                pass
            with pytest.raises(Deadlock, match="plate"):
                await asyncio.create_task(other(lock))
        return lock

    async def other(lock):
        with lock:
            pass

    assert not asyncio.run(main()).locked()


@pytest.mark.parametrize("kind", ["with", "acquire", "async with"])
def test_ones_own_lock(kind):
    """A holder that waits for its own Lock is told at once, and still holds it; with a time-out it is False."""
    lock = Lock(name="plate")

    async def main():
        async with lock:
            with pytest.raises(Deadlock, match="task 'me' waits for Lock 'plate', held by itself"):
                async with lock:
                    pass
            assert await lock.aacquire(timeout=0.01) is False
            assert lock.locked()

    if kind == "async with":

        async def named():
            asyncio.current_task().set_name("me")
            await main()

        asyncio.run(named())
    else:
        with lock:
            with pytest.raises(Deadlock, match="thread 'MainThread' waits for Lock 'plate', held by itself"):
                if kind == "with":
                    with lock:
                        pass
                else:
                    lock.acquire()
            assert lock.acquire(timeout=0.01) is False
            assert lock.locked()
    assert not lock.locked()


# Larger circles


@pytest.mark.parametrize("size", range(3, 9))
def test_circles_of(size):
    """In a circle of 3 to 8 one gives way, told of all the others, and the others all go on."""
    for _ in range(5):
        ring = [Lock(name=f"L{number}") for number in range(size)]
        meet = threading.Barrier(size)
        sides = [
            Runner(eat, ring[number], ring[(number + 1) % size], meet, name=f"T{number}") for number in range(size)
        ]
        outcomes = [side.done().error or side.value for side in sides]
        (error,) = [each for each in outcomes if each != "ate"]
        assert isinstance(error, Deadlock)
        assert len(error.cycle) == len(error.stacks) == size
        assert all(f"Lock 'L{number}'" in str(error) for number in range(size))
        assert not any(lock.locked() for lock in ring)


class Outcome:
    """What somebody will deliver: one of `by` (idents) could."""

    def __init__(self, what, by):
        self.what, self.by, self.parked, self.there = what, by, deque(), False

    def resolvers(self):
        return tuple(self.by)

    def describe(self):
        return self.what

    def deliver(self):
        self.there = True
        lot.wake_all(self.parked)

    def wait(self):
        return lot.wait(self, self.parked, lambda: self.there)


def test_a_circle_through_a_join():
    """A holds the lock and joins B, B wants the lock: found, and the message says "task 'b'"."""
    lock, joined = Lock(name="plate"), threading.Event()
    ended = Outcome("task 'b'", [])

    def b():
        joined.wait(PATIENCE)
        try:
            with lock:
                return "ate"
        finally:
            ended.deliver()

    def a():
        with lock:
            joined.set()
            return ended.wait()

    second = Runner(b, name="b")
    ended.by.append(second.ident)
    first = Runner(a, name="a")
    outcomes = [first.done().error or first.value, second.done().error or second.value]
    (error,) = [each for each in outcomes if isinstance(each, Deadlock)]
    assert "thread 'a' waits for task 'b', held by thread 'b'" in error.cycle


def test_of_several_that_could_end_it_all_must_be_stuck():
    """A wait that one of two could end is in a circle only when both are stuck."""
    lock, value = Lock(name="plate"), Outcome("a future of the pool", [])
    parked = noticing(lock)
    free, holding = threading.Event(), threading.Event()
    outcomes = queue.SimpleQueue()

    def told(function):
        def run():
            try:
                outcomes.put(function())
            except Deadlock as error:
                outcomes.put(error)

        return run

    @told
    def first():
        with lock:
            holding.set()
            return value.wait()

    @told
    def stuck():
        with lock:
            return "ate"

    @told
    def second():
        assert free.wait(PATIENCE)
        with lock:
            return "ate"

    holder = Runner(first, name="a")
    assert holding.wait(PATIENCE)
    workers = [Runner(stuck, name="w1"), Runner(second, name="w2")]
    value.by += [worker.ident for worker in workers]
    parked.reach(1)
    assert outcomes.empty()
    free.set()  # now the second one gets stuck as well
    error = outcomes.get(timeout=PATIENCE)
    assert isinstance(error, Deadlock)
    assert "a future of the pool" in str(error)
    value.deliver()
    assert {outcomes.get(timeout=PATIENCE), outcomes.get(timeout=PATIENCE)} <= {True, "ate"}
    all_of(holder, *workers)


# No false alarm


def test_no_alarm_in_order():
    """8 threads that take 5 locks, always in one order, all get through."""
    locks = [Lock(name=f"L{number}") for number in range(5)]
    counts = [0] * 5

    def work(seed):
        chance = random.Random(seed)
        for _ in range(100):
            chosen = sorted(chance.sample(range(5), 3))
            with locks[chosen[0]], locks[chosen[1]], locks[chosen[2]]:
                for number in chosen:
                    counts[number] += 1

    for side in [Runner(work, seed) for seed in range(8)]:
        side.result()
    assert sum(counts) == 8 * 100 * 3


def slow_holder(seconds):
    lock, held, enough = Lock(name="plate"), threading.Event(), threading.Event()
    parked = noticing(lock)

    def hold():
        with lock:
            held.set()
            return enough.wait(seconds)

    def want():
        with lock:
            return "ate"

    holder = Runner(hold)
    assert held.wait(PATIENCE)
    waiters = [Runner(want) for _ in range(7)]
    parked.reach(7)
    if seconds == PATIENCE:
        enough.set()
    holder.done()
    assert [waiter.result() for waiter in waiters] == ["ate"] * 7


def test_no_alarm_for_a_slow_holder():
    """A holder that does something long is no deadlock: those that wait get it when it is done."""
    slow_holder(PATIENCE)


@pytest.mark.soak
def test_no_alarm_for_5_seconds():
    """The same for one that takes 5 s."""
    slow_holder(5)


def test_no_alarm_for_readers_and_writers():
    """A lock for readers and writers, built from a Condition, works, with four of each."""
    room, state = Condition(name="room"), {"readers": 0, "writing": False, "value": 0}
    seen = []

    def read():
        for _ in range(50):
            with room:
                room.wait_for(lambda: not state["writing"])
                state["readers"] += 1
            seen.append(state["value"])
            with room:
                state["readers"] -= 1
                room.notify_all()

    def write():
        for _ in range(50):
            with room:
                room.wait_for(lambda: not state["writing"] and not state["readers"])
                state["writing"] = True
            state["value"] += 1
            with room:
                state["writing"] = False
                room.notify_all()

    sides = [Runner(function) for function in (read, write) for _ in range(4)]
    for side in sides:
        side.join(60)
        side.result()
    assert state == {"readers": 0, "writing": False, "value": 200}


def test_waits_with_a_time_out_are_never_broken():
    """A circle of which one side has a time-out ends by that: False, and no Deadlock."""
    plate, chopsticks, meet = Lock(name="plate"), Lock(name="chopsticks"), threading.Barrier(2)

    def patient():
        with plate:
            meet.wait(PATIENCE)
            with chopsticks:
                return "ate"

    def hurried():
        with chopsticks:
            meet.wait(PATIENCE)
            return plate.acquire(timeout=0.1)

    sides = Runner(patient), Runner(hurried)
    assert [side.result() for side in sides] == ["ate", False]


def test_stress(record_property):
    """8 threads take 3 random ones of 5 locks, 800 rounds, and try again when they give way: all done, nothing left."""
    locks = [Lock(name=f"L{number}") for number in range(5)]
    done, broken = [0] * 8, [0] * 8

    def work(seed):
        chance, pause = random.Random(seed), threading.Event()
        for _ in range(100):
            while True:
                one, two, three = chance.sample(locks, 3)
                try:
                    with one:
                        pause.wait(chance.random() * 0.001)
                        with two, three:
                            done[seed] += 1
                    break
                except Deadlock:
                    broken[seed] += 1

    began = time.perf_counter()
    sides = [Runner(work, seed) for seed in range(8)]
    for side in sides:
        side.join(100)
        side.result()
    seconds = time.perf_counter() - began
    record_property("seconds", seconds)
    print(f"stress: 800 rounds, {sum(broken)} gave way, {seconds:.2f} s")
    assert done == [100] * 8
    assert not [lock.name for lock in locks if lock.locked()]
    assert not any(lock._parked for lock in locks)


# Holders that end


def test_a_thread_that_ends_while_it_holds():
    """One that waits is told when the holder's thread ends, and has the lock."""
    lock, held, end = Lock(name="plate"), threading.Event(), threading.Event()
    parked = noticing(lock)

    def hold():
        lock.acquire()
        held.set()
        end.wait(PATIENCE)

    holder = Runner(hold, name="gone")
    assert held.wait(PATIENCE)

    def inherit():
        with pytest.warns(RuntimeWarning, match="ended without releasing"):
            told = lock.acquire()
        lock.release()
        return told

    heir = Runner(inherit, name="heir")
    parked.reach(1)
    end.set()
    holder.result()
    told = heir.result()
    assert told
    assert told is not True
    assert told.holder == "thread 'gone'"
    assert not lock.locked()


def test_a_raw_thread_that_ends_while_it_holds():
    """A thread that `threading` doesn't know tells nobody of its end; who waits finds out."""
    import _thread

    lock, held, end = RLock(name="plate"), threading.Event(), threading.Event()
    parked = noticing(lock)

    def hold():
        lock.acquire()
        lock.acquire()
        held.set()
        end.wait(PATIENCE)

    _thread.start_new_thread(hold, ())
    assert held.wait(PATIENCE)

    def inherit():
        with pytest.warns(RuntimeWarning, match="ended without releasing"):
            return lock.acquire(), lock.release()

    heir = Runner(inherit)
    parked.reach(1)
    end.set()
    assert heir.result()[0]
    assert not lock.locked()


def test_a_task_that_ends_while_it_holds():
    """A task that waits is told when the holding task ends; so is a thread."""
    lock = Lock(name="plate")
    parked = noticing(lock)

    async def hold(end):
        await lock.aacquire()
        await end.wait()

    async def inherit():
        told = await lock.aacquire()
        lock.release()
        return told

    def inherit_in_a_thread():
        told = lock.acquire()
        lock.release()
        return told

    async def main(heir):
        end = asyncio.Event()
        task = asyncio.create_task(hold(end), name="gone")
        await asyncio.sleep(0)
        if heir is inherit:
            waiting = asyncio.create_task(heir())
            await asyncio.sleep(0)
        else:
            waiting = Runner(heir)
            parked.reach(1)
        end.set()
        await task
        return await asyncio.wait_for(waiting, PATIENCE) if heir is inherit else waiting

    with pytest.warns(RuntimeWarning, match="task 'gone', which ended without releasing"):
        assert asyncio.run(main(inherit)).holder == "task 'gone'"
    with pytest.warns(RuntimeWarning, match="task 'gone', which ended without releasing"):
        assert asyncio.run(main(inherit_in_a_thread)).result().holder == "task 'gone'"
    assert not lock.locked()


# Fork


@pytest.mark.parametrize("waiters", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_another_thread_holds(waiters):
    """In a forked copy the holder is gone: whoever takes the lock there is told, and nobody hangs."""
    lock, held, end = Lock(name="plate"), threading.Event(), threading.Event()
    parked = noticing(lock)

    def hold():
        with lock:
            held.set()
            end.wait(PATIENCE)

    def want():
        with lock:
            pass

    sides = [Runner(hold)]
    assert held.wait(PATIENCE)
    sides += [Runner(want) for _ in range(waiters)]
    parked.reach(waiters)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            import warnings

            warnings.simplefilter("ignore")
            told = lock.acquire(timeout=5)
            assert told
            assert told is not True
            # those that stood in the lot before the fork take no wake-up away
            ours = threading.Thread(target=lambda: (lock.acquire(), lock.release()), daemon=True)
            ours.start()
            parked.reach(waiters + 1)
            lock.release()
            ours.join(5)
            code = 3 if ours.is_alive() or graph._waits else 0
        finally:
            os._exit(code)
    end.set()
    _, status = os.waitpid(pid, 0)
    for side in sides:
        side.result()
    assert os.waitstatus_to_exitcode(status) == 0
