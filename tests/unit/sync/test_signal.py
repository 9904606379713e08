"""Semaphore, Event, Condition and Barrier: what they add to `threading`'s; see contract/test_cpython_locks.py."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading

import pytest
from tests.unit.sync.meeting import PATIENCE, Noticing, Runner, all_of, noticing

from duodao.errors import Deadlock
from duodao.sync import (
    Barrier,
    BoundedSemaphore,
    BrokenBarrierError,
    Condition,
    Event,
    Lock,
    RLock,
    Semaphore,
    graph,
)


def within(coroutine):
    """Run it, with a guard against hanging."""

    async def guarded():
        return await asyncio.wait_for(coroutine, PATIENCE)

    return asyncio.run(guarded())


@pytest.mark.parametrize(
    "make",
    [Semaphore, BoundedSemaphore, Event, Condition, lambda **kw: Barrier(2, **kw)],
    ids=lambda make: make.__name__,
)
def test_names_and_statistics(make):
    """Each has a name, by default its place, shown in messages, and tells its name in its statistics."""
    assert make(name="door").name == "door"
    assert make(name="door").statistics().name == "door"
    assert make().name.startswith("test_signal.py:")
    assert "'door'" in make(name="door").describe()
    assert make().resolvers() is None


# Semaphore


def test_a_semaphore_for_tasks_and_threads():
    """Tasks and threads share the permits, never more at once than there are."""
    permits, inside, most = Semaphore(2), [0], [0]
    guard = threading.Lock()

    def enter():
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])

    def leave():
        with guard:
            inside[0] -= 1

    async def by_task():
        for _ in range(50):
            async with permits:
                enter()
                await asyncio.sleep(0)
                leave()

    def by_thread():
        for _ in range(50):
            with permits:
                enter()
                leave()

    async def main():
        await asyncio.gather(*(by_task() for _ in range(4)))

    all_of(*[Runner(by_thread) for _ in range(3)], Runner(lambda: asyncio.run(main())))
    assert most[0] <= 2
    assert permits.statistics().value == 2
    assert not graph._waits


def test_a_semaphore_with_time_outs():
    """`aacquire` is False when the time is over; statistics show who waits."""
    permits = Semaphore(0, name="door")
    parked = noticing(permits)
    waiter = Runner(permits.acquire, name="waiter")
    parked.reach(1)
    assert permits.statistics().waiters == ("thread 'waiter'",)
    assert permits.statistics().locked
    permits.release()
    waiter.result()

    async def main():
        assert await permits.aacquire(timeout=0.01) is False
        permits.release()
        assert await permits.aacquire() is True

    within(main())


def test_permits_for_many_at_once():
    """Tasks take turns; several permits given at once reach as many, also those that stood back for others."""
    permits, order = Semaphore(1), []

    async def play(name):
        for _ in range(3):
            async with permits:
                await asyncio.sleep(0)
                order.append(name)

    async def main():
        await asyncio.gather(play("a"), play("b"))
        assert order == ["a", "b"] * 3
        await permits.aacquire()
        waiting = [asyncio.create_task(permits.aacquire()) for _ in range(2)]
        await asyncio.sleep(0)
        permits.release(4)
        waiting += [asyncio.create_task(permits.aacquire()) for _ in range(2)]
        await asyncio.gather(*waiting)

    within(main())


def test_a_bounded_semaphore_has_its_bound_in_async_form_too():
    """One release too many is a ValueError, and gives nothing."""
    permits = BoundedSemaphore(1, name="door")

    async def main():
        async with permits:
            assert permits.locked()
        with pytest.raises(ValueError, match="too many"):
            permits.release()

    within(main())
    assert permits.statistics().value == 1


# Event


def test_await_event():
    """`await event` is True once it is set, by any thread; with a time-out it may be False."""
    event = Event(name="up")
    parked = noticing(event)

    async def main():
        assert await event.await_(timeout=0.01) is False
        waiting = [asyncio.create_task(event.await_()) for _ in range(3)]
        await asyncio.sleep(0)
        parked.reach(3)
        setter = Runner(event.set)
        assert await asyncio.gather(*waiting) == [True] * 3
        setter.result()
        assert await event is True

    within(main())


def test_an_event_that_is_cleared_at_once_has_been_seen():
    """Those that wait when it is set are let go, though it is cleared before they run."""
    event = Event()

    async def main():
        waiting = asyncio.create_task(event.await_())
        await asyncio.sleep(0)
        event.set()
        event.clear()
        assert await waiting is True

    within(main())


# Condition


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_a_condition_for_tasks(kind):
    """`async with`, `await_` and `await_for`: notify wakes one, notify_all all, and each has the lock again."""
    condition, items, got = Condition(kind()), [], []

    async def take():
        async with condition:
            await condition.await_for(lambda: items)
            assert condition.locked()
            got.append(items.pop())

    async def main():
        takers = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0)
        async with condition:
            assert condition.statistics().value == 3
            items.append(1)
            condition.notify()
        await asyncio.sleep(0.01)
        assert got == [1]
        async with condition:
            items.extend((2, 3))
            condition.notify_all()
        await asyncio.gather(*takers)
        assert sorted(got) == [1, 2, 3]
        async with condition:
            assert await condition.await_(timeout=0.01) is False
            assert await condition.await_for(lambda: False, timeout=0.01) is False
        assert not condition.locked()

    within(main())


def test_threads_and_tasks_meet_in_a_condition():
    """A thread notifies a task, and a task a thread."""
    condition, turn = Condition(name="turn"), [0]

    def by_thread():
        for _ in range(20):
            with condition:
                condition.wait_for(lambda: turn[0] % 2 == 0, PATIENCE)
                turn[0] += 1
                condition.notify_all()

    async def by_task():
        for _ in range(20):
            async with condition:
                await condition.await_for(lambda: turn[0] % 2 == 1, PATIENCE)
                turn[0] += 1
                condition.notify_all()

    thread = Runner(by_thread)
    within(by_task())
    thread.result()
    assert turn == [40]


def test_a_condition_is_for_its_holder():
    """Waiting and notifying need the lock: for a task by `async with`, for a thread by `with`."""
    condition = Condition(name="door")
    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError, match="Condition 'door': it does not hold its lock"):
            call()

    async def main():
        with pytest.raises(RuntimeError, match="not in its `async with`"):
            await condition.await_()
        async with condition:
            with pytest.raises(RuntimeError, match="does not hold"):
                condition.wait()  # it would block the loop
            with pytest.raises(RuntimeError):
                await asyncio.create_task(condition.await_())

    within(main())
    foreign = Condition(threading.Lock())
    with foreign:
        foreign.notify()

    async def enter():
        async with foreign:
            pass

    with pytest.raises(TypeError, match="duodao.sync"):
        within(enter())


def test_a_notification_of_a_cancelled_task_goes_to_the_next():
    """A task that is cancelled after it was notified, and before it ran, hands its turn on, holding the lock."""
    condition = Condition()
    got = []

    async def wait(number):
        async with condition:
            try:
                await condition.await_()
            finally:
                assert condition.statistics().owner == f"task '{number}'"
            got.append(number)

    async def main():
        tasks = [asyncio.create_task(wait(number), name=str(number)) for number in range(2)]
        await asyncio.sleep(0)
        async with condition:
            condition.notify()
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await tasks[1]

    within(main())
    assert got == [1]


def test_a_cancelled_task_waits_for_the_lock():
    """A task that is cancelled in `await_` takes the lock again first: its `async with` then releases it."""
    condition = Condition()

    async def wait():
        async with condition:
            await condition.await_()

    async def main():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        async with condition:
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not condition.locked()

    within(main())


def times_taken(lock):
    """How often its holder has taken it; early 3.11 tells it in the repr alone."""
    count = getattr(lock, "_recursion_count", None)
    return count() if count else int(_thread.RLock.__repr__(lock).partition("count=")[2].split()[0])


def test_an_rlock_is_given_back_wholly():
    """A wait gives back an RLock that was taken twice, and takes it twice again; a task's as well."""
    condition = Condition()
    waiting = noticing_turns(condition)

    def wait():
        with condition, condition:
            assert condition.wait(PATIENCE)
            assert times_taken(condition._lock) == 2

    waiter = Runner(wait)
    waiting()
    with condition:
        condition.notify()
    waiter.result()
    assert not condition.locked()

    async def main():
        task = asyncio.create_task(await_twice())
        await asyncio.sleep(0)
        async with condition:
            condition.notify()
        await task
        assert not condition.locked()

    async def await_twice():
        async with condition, condition:
            assert await condition.await_()
            assert times_taken(condition._lock) == 2

    within(main())


def noticing_turns(condition):
    """A function that waits until somebody waits for the condition, and has given its lock back."""
    parked = noticing_append(condition)

    def wait():
        assert parked.wait(PATIENCE)
        with condition:
            return

    return wait


def noticing_append(condition):
    event = threading.Event()

    class Turns(type(condition._waiters)):
        def append(self, turn):
            super().append(turn)
            event.set()

    condition._waiters = Turns()
    return event


@pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")
def test_a_circle_through_taking_the_lock_again():
    """A waiter that is notified and can't have its lock again is in the circle; its `with` then releases nothing."""
    condition, plate = Condition(Lock(name="door")), Lock(name="plate")
    waiting = noticing_turns(condition)

    def wait():
        with plate, condition:
            condition.wait()
        return "waited"

    def notify():
        with condition:
            condition.notify()
            with plate:
                return "notified"

    waiter = Runner(wait, name="waiter")
    waiting()
    notifier = Runner(notify, name="notifier")
    outcomes = [side.done().error or side.value for side in (waiter, notifier)]
    errors = [each for each in outcomes if not isinstance(each, str)]
    assert len(errors) == 1
    assert isinstance(errors[0], Deadlock)
    assert not condition.locked()
    assert not plate.locked()


# Barrier


def test_a_barrier_of_threads_and_tasks():
    """Threads and tasks meet, again and again, each with a number of its own; the action runs once per round."""
    rounds = []
    barrier = Barrier(4, action=lambda: rounds.append(barrier.n_waiting))
    numbers = []

    def by_thread():
        numbers.extend([barrier.wait(PATIENCE) for _ in range(10)])

    async def by_task():
        numbers.extend([await barrier.await_(PATIENCE) for _ in range(10)])

    async def main():
        await asyncio.gather(by_task(), by_task())

    all_of(Runner(by_thread), Runner(by_thread), Runner(lambda: asyncio.run(main())))
    assert len(rounds) == 10
    assert sorted(numbers) == sorted([*range(4)] * 10)


def test_a_cancelled_task_leaves_the_barrier_whole():
    """One that is interrupted while it waits no longer counts, and the others still meet."""
    barrier = Barrier(2)

    async def main():
        gone = asyncio.create_task(barrier.await_())
        await asyncio.sleep(0)
        assert barrier.n_waiting == 1
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        assert barrier.n_waiting == 0
        assert sorted(await asyncio.gather(barrier.await_(), barrier.await_())) == [0, 1]

    within(main())


def test_those_who_come_during_the_action_are_of_the_next_round():
    """One that comes while the action runs waits for it, and then for the others."""
    started, go = threading.Event(), threading.Event()
    barrier = Barrier(2, action=lambda: (started.set(), go.wait(PATIENCE)))
    first = [Runner(barrier.wait) for _ in range(2)]
    assert started.wait(PATIENCE)
    late = Runner(barrier.wait)
    go.set()
    assert sorted(all_of(*first)) == [0, 1]
    last = Runner(barrier.wait)
    assert sorted(all_of(late, last)) == [0, 1]


def test_a_broken_barrier():
    """A time-out or an error in the action breaks it for all, until it is reset."""
    barrier = Barrier(3)
    parked = barrier._round.parked = Noticing()
    waiter = Runner(barrier.wait)
    parked.reach(1)
    with pytest.raises(BrokenBarrierError):
        barrier.wait(0.01)
    assert isinstance(waiter.done().error, BrokenBarrierError)
    assert barrier.broken
    assert "broken" in repr(barrier)
    with pytest.raises(BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken

    failing = Barrier(1, action=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.wait()
    assert failing.broken
    assert threading.BrokenBarrierError is BrokenBarrierError
