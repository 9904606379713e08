"""What a Group promises as an owner: how its block ends, and what it raises."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading

import pytest

import duodao
from duodao.errors import Closed, Deadlock, UsageError
from duodao.lanes.interrupt import Cancelled
from duodao.pipeline import task as task_module
from duodao.sync import Event, Lock
from duodao.testing.clock import FakeClock


def fail(text="no"):
    raise ValueError(text)


def wait_for_ever():
    Event(name="never").wait()


def test_an_empty_group():
    """A block without tasks ends at once, and its value is the group."""
    with duodao.Group("empty") as group:
        assert group.tasks == ()
        assert "'empty'" in repr(group)


def test_all_failures_arrive_together():
    """Several that fail at once are all in the group, each once."""
    barrier = threading.Barrier(3)

    def together(text):
        barrier.wait(10)
        raise ValueError(text)

    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        for text in "abc":
            group.start(together, text, lane="thread")
    texts = sorted(str(error) for error in caught.value.exceptions)
    assert set(texts) <= set("abc")
    assert len(texts) == len(set(texts)) >= 1


def test_a_failure_that_the_body_meets_is_one():
    """The body's t.result() raises the task's own exception: it is in the group once."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        group.start(fail, lane="thread").result()
    assert len(caught.value.exceptions) == 1


def test_an_exception_of_the_body_cancels_all():
    """It arrives in the group of exceptions, as from asyncio.TaskGroup."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        task = group.start(wait_for_ever, lane="thread")
        raise KeyError("body")
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
    assert task.exitcode == -15


def test_a_failure_wakes_the_body():
    """A body that waits for one of our primitives is cancelled with the rest, and the failure arrives."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        group.start(fail, lane="thread")
        Event(name="never").wait()
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


def test_a_body_that_meets_a_cancelled_task_adds_nothing():
    """The body's result() of a task that was cancelled with the group is no failure of its own."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        task = group.start(wait_for_ever, lane="thread")
        group.start(fail, lane="thread")
        task.result(timeout=10)
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


def test_keyboard_interrupt_arrives_alone():
    """It cancels, waits for the ends, and is raised as it is."""
    with pytest.raises(KeyboardInterrupt), duodao.Group() as group:
        task = group.start(wait_for_ever, lane="thread")
        raise KeyboardInterrupt
    assert task.exitcode == -15


def test_a_base_exception_of_a_task_arrives_in_a_base_group():
    """What is no Exception makes a BaseExceptionGroup."""

    class Leaving(BaseException):
        pass

    def leave():
        raise Leaving

    with pytest.raises(BaseExceptionGroup) as caught, duodao.Group() as group:
        group.start(leave, lane="thread")
    assert not isinstance(caught.value, ExceptionGroup)
    assert isinstance(caught.value.exceptions[0], Leaving)


def test_cancel_ends_the_block_quietly():
    """group.cancel() ends all tasks, and is no failure; from then on nothing can be started."""
    with duodao.Group() as group:
        task = group.start(wait_for_ever, lane="thread")
        group.cancel()
        group.start(wait_for_ever, lane="thread")
        pytest.fail("the body of a cancelled group goes on")
    assert task.exitcode == -15
    assert group.cancelled


def test_a_stranger_learns_that_it_is_being_cancelled():
    """A thread that is neither the owner nor a task gets Closed from start()."""
    seen = []

    def stranger():
        try:
            group.start(fail, lane="thread")
        except Closed as error:
            seen.append(str(error))

    with duodao.Group() as group:
        group.cancel()
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join()
    assert "being cancelled" in seen[0]


def test_tasks_may_clean_up_with_locks():
    """A cancelled thread is struck once: the locks of its `finally` work."""
    lock, done = Lock(), []

    def careful():
        try:
            wait_for_ever()
        finally:
            with lock:
                done.append(Event().wait(0.001))

    with duodao.Group() as group:
        group.start(careful, lane="thread", daemon=True)
    assert done == [False]


def test_a_thread_that_swallows_its_cancellation_is_struck_again(monkeypatch):
    """After the grace every wait raises: a task that goes on after the first ends then."""
    monkeypatch.setattr(task_module, "_STUBBORN", 60)  # a busy machine is no reason to give it up here

    def stubborn():
        while True:
            try:
                wait_for_ever()
            except BaseException:  # the first one
                Event(name="second").wait()

    with duodao.Group(grace=0.01) as group:
        task = group.start(stubborn, lane="thread", daemon=True)
    assert task.exitcode == -15


@pytest.mark.leaves("threads")
def test_a_thread_that_can_t_be_stopped_is_given_up():
    """One that waits for what isn't ours is a RuntimeWarning that names it; the block ends."""
    gate = threading.Event()
    try:
        with pytest.warns(RuntimeWarning, match="'deaf'.*given up"), duodao.Group(grace=0.01) as group:
            task = group.start(gate.wait, lane="thread", name="deaf", daemon=True)
    finally:
        gate.set()
    assert task.state == "ended"


@pytest.mark.leaves("threads")
def test_a_coroutine_that_blocks_its_loop_is_given_up():
    """A call that blocks the group's loop can't be cancelled: a RuntimeWarning names it, and the block ends."""
    gate, begun = threading.Event(), threading.Event()

    async def block():
        begun.set()
        gate.wait()

    try:
        with pytest.warns(RuntimeWarning, match="'block-1'.*given up"), duodao.Group(grace=0.01) as group:
            task = group.start(block, daemon=True)
            assert begun.wait(10)
    finally:
        gate.set()
    assert task.exitcode == -15


def test_a_callback_that_waits_for_a_process():
    """A callback of a process that waits for another process would hold up who sees that end: Deadlock, logged."""
    seen = []

    def wait_for_other(_):
        try:
            other.join()
        except Deadlock as error:
            seen.append(str(error))

    with duodao.Group() as group:
        other = group.start(wait_for_ever, lane="process", daemon=True, name="other")
        task = group.start(len, (), lane="process")
        task.add_done_callback(wait_for_other)
    assert "'other'" in seen[0]


def test_groups_nest():
    """A task of one group may own another: a failure of the outer one ends the inner tasks."""
    inner = []

    def owner():
        with duodao.Group("inner") as group:
            inner.append(group.start(wait_for_ever, lane="thread"))

    def late():
        while not inner:
            Event().wait(0.001)
        fail()

    with pytest.raises(ExceptionGroup) as caught, duodao.Group("outer") as group:
        task = group.start(owner, lane="thread")
        group.start(late, lane="thread")
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert inner[0].exitcode == task.exitcode == -15


def test_a_circle_through_the_block_s_end_is_found():
    """The owner holds the lock that its task needs, and waits for the task: one of them gets Deadlock."""
    lock = Lock(name="plate")

    def eat():
        with lock:
            pass

    with pytest.raises(ExceptionGroup) as caught, lock, duodao.Group("dinner") as group:
        group.start(eat, lane="thread")
        group.start(eat, lane="thread")
    assert all(isinstance(error, Deadlock) for error in caught.value.exceptions)
    assert "'plate'" in str(caught.value.exceptions[0])
    assert not lock.locked()


@pytest.mark.parametrize("length", [2, 3, 6])
def test_a_circle_of_joins_is_found(length):
    """Tasks that join each other in a circle: one gets Deadlock, and with it the group fails."""
    tasks, ready = [], threading.Event()

    def join(n):
        ready.wait(10)
        tasks[(n + 1) % length].join()

    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        tasks += [group.start(join, n, lane="thread", name=f"t{n}") for n in range(length)]
        ready.set()
    (error,) = caught.value.exceptions
    assert isinstance(error, Deadlock)
    assert all(f"t{n}" in str(error) for n in range(length))


@pytest.mark.parametrize("lanes", [("coroutine", "coroutine"), ("coroutine", "thread"), ("coroutine",) * 5])
def test_a_circle_of_awaits_is_found(lanes):
    """The same among coroutines, and among coroutines and threads."""
    tasks, ready = [], threading.Event()

    def join(n):
        ready.wait(10)
        tasks[(n + 1) % len(lanes)].join()

    async def wait(n):
        await asyncio.to_thread(ready.wait, 10)
        await tasks[(n + 1) % len(lanes)]

    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        for n, lane in enumerate(lanes):
            tasks.append(group.start(wait if lane == "coroutine" else join, n, lane=lane, name=f"t{n}"))
        ready.set()
    (error,) = caught.value.exceptions
    assert isinstance(error, Deadlock)
    assert all(f"t{n}" in str(error) for n in range(len(lanes)))


def test_a_join_that_blocks_the_loop_of_the_joined():
    """A coroutine that joins another one of its loop by the blocking form: Deadlock, for nobody else runs that loop."""

    async def other():
        await asyncio.sleep(0.05)

    async def blocks(task):
        task.join()

    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        group.start(blocks, group.start(other))
    assert isinstance(caught.value.exceptions[0], Deadlock)


def test_wrong_options_name_the_valid_ones():
    """Everything is checked before anything starts."""
    for bad in ({"name": 3}, {"grace": -1}, {"grace": "x"}):
        with pytest.raises(UsageError):
            duodao.Group(**bad)
    with duodao.Group() as group:
        for bad in ({"lane": "fiber"}, {"restart": "sometimes"}, {"name": 3}, {"kwargs": [1]}):
            with pytest.raises(UsageError, match=next(iter(bad))):
                group.start(fail, **bad)
        with pytest.raises(UsageError, match=r"run\(\)"):
            group.start(3)

        async def coro():
            """Nothing."""

        with pytest.raises(UsageError, match="async function"):
            group.start(coro())
        for lane in ("thread", "process"):
            with pytest.raises(UsageError, match="coroutine"):
                group.start(coro, lane=lane)
        assert group.tasks == ()
        assert group.start(coro).lane == "coroutine"
        assert group.start(len, ()).lane == "process"


def test_groups_and_tasks_stay_at_home():
    """Neither can be pickled: the text says what to do instead."""
    with duodao.Group() as group:
        task = group.start(len, (), lane="thread")
        with pytest.raises(TypeError, match="Group of its own"):
            pickle.dumps(group)
        with pytest.raises(TypeError, match="send what it returns"):
            pickle.dumps(task)
        with pytest.raises(duodao.errors.NotPicklable, match="Group of its own"):
            group.start(lambda: group, lane="process")


def test_restarts_back_off_by_the_clock(caplog):
    """The delays grow by the factor, up to at_most, and none of them is waited for on a fake clock."""
    clock = FakeClock(threads=True)
    plan = duodao.Restart(limit=6, delay=1, factor=3, at_most=20, jitter=0, period=1000)
    group = duodao.Group()
    group.clock = clock
    with caplog.at_level(logging.CRITICAL, "duodao"), pytest.raises(ExceptionGroup), group:
        group.start(fail, lane="thread", restart=plan)
    ends = [0.0, *clock.jumps]
    assert [round(b - a) for a, b in zip(ends, ends[1:], strict=False)][:6] == [1, 3, 9, 20, 20, 20]


def test_always_restarts_after_success_too(caplog):
    """restart="always": a return is an end like any other, and counts for the limit."""
    clock = FakeClock(threads=True)
    group = duodao.Group()
    group.clock = clock
    with caplog.at_level(logging.CRITICAL, "duodao"), pytest.raises(ExceptionGroup) as caught, group:
        task = group.start(len, (), lane="thread", restart=duodao.Restart("always", limit=3))
    assert task.restarts == 3
    assert "keeps returning" in str(caught.value.exceptions[0])


def test_cancelled_while_it_waits_for_its_restart():
    """A task in its back-off ends at once when it is asked to."""
    with duodao.Group() as group:
        task = group.start(fail, lane="thread", restart=duodao.Restart(delay=1000, at_most=1000), daemon=True)
        while task.state != "ready":
            assert task.is_alive()
        task.terminate()
        assert task.join(timeout=10)
    assert task.exitcode == -15


def test_coroutines_of_one_group_share_a_loop():
    """They can await each other, and what they leave running on the loop is cancelled at the end."""
    left = []

    async def one():
        left.append(asyncio.create_task(asyncio.sleep(1000)))
        return asyncio.get_running_loop()

    async def two(task):
        return await task is asyncio.get_running_loop()

    with duodao.Group() as group:
        first = group.start(one)
        second = group.start(two, first)
    assert second.result() is True
    assert left[0].cancelled()


def test_async_with_runs_on_the_caller_s_loop():
    """`async with`: coroutine tasks run on the running loop, which goes on while the block's end waits."""

    async def who():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def main():
        ticks = []

        async def tick():
            for _ in range(3):
                await asyncio.sleep(0)
                ticks.append(1)

        beside = asyncio.create_task(tick())
        async with duodao.Group() as group:
            same = group.start(who)
            thread = group.start(threading.get_ident, lane="thread")
            process = group.start(len, (1, 2), lane="process")
        assert same.result() is asyncio.get_running_loop()
        assert thread.result() != threading.get_ident()
        assert process.result() == 2
        await beside
        return ticks

    assert asyncio.run(main()) == [1, 1, 1]


def test_async_failures():
    """`async with`: a failure cancels the body's await and the other tasks, and arrives in a group."""

    async def bad():
        raise ValueError("async")

    async def main():
        task = None
        with pytest.raises(ExceptionGroup) as caught:
            async with duodao.Group() as group:
                task = group.start(asyncio.sleep, 1000)
                other = group.start(wait_for_ever, lane="thread")
                group.start(bad)
                await asyncio.sleep(1000)
        assert [type(error) for error in caught.value.exceptions] == [ValueError]
        assert task.exitcode == other.exitcode == -15
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # no cancellation is left over

    asyncio.run(main())


def test_an_outer_cancellation_goes_through():
    """A task that is cancelled in its block's end cancels its tasks, and ends as cancelled."""

    async def owner(inside, begun):
        async with duodao.Group() as group:
            inside.append(group.start(asyncio.sleep, 1000))
            begun.set()

    async def main():
        inside, begun = [], asyncio.Event()
        task = asyncio.create_task(owner(inside, begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inside[0].exitcode == -15

    asyncio.run(main())


def test_a_failure_as_the_async_body_ends():
    """A failure that comes before the body's next await cancels nobody twice: only the group of it arrives."""

    async def main():
        with pytest.raises(ExceptionGroup):
            async with duodao.Group() as group:
                task = group.start(fail, lane="thread")
                while task.is_alive():
                    pass
        await asyncio.sleep(0)

    asyncio.run(main())


def test_the_interrupt_of_another_goes_through():
    """A Cancelled that is not the group's own leaves its block as it came."""
    with pytest.raises(Cancelled), duodao.Group():
        raise Cancelled("from outside")
