"""Lock and RLock: what they add to `threading`'s; the rest is in contract/test_cpython_locks.py."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
from tests.unit.sync.meeting import PATIENCE, Runner, all_of, noticing

from duodao.sync import Lock, RLock, graph

KINDS = pytest.mark.parametrize("kind", [Lock, RLock])


@KINDS
def test_a_name_or_the_place_where_it_was_made(kind):
    """A lock is called as it was named, else by its file and line; its repr says so."""
    assert kind(name="plate").name == "plate"
    lock = kind()
    assert lock.name == f"test_lock.py:{sys._getframe().f_lineno - 1}"
    lock.name = "later"
    assert "'later'" in repr(lock)
    assert repr(lock).startswith(f"<unlocked duodao.sync.{kind.__name__} object")


@KINDS
def test_statistics(kind):
    """Statistics name the holder and those that wait, in order."""
    lock = kind(name="plate")
    parked = noticing(lock)
    assert lock.statistics() == type(lock.statistics())("plate", locked=False, owner=None, waiters=())

    def want():
        with lock:
            pass

    with lock:
        first = Runner(want, name="first")
        parked.reach(1)
        second = Runner(want, name="second")
        parked.reach(2)
        now = lock.statistics()
        assert now.locked
        assert now.owner == "thread 'MainThread'"
        assert now.waiters == ("thread 'first'", "thread 'second'")
    first.result()
    second.result()

    async def hold():
        async with lock:
            return lock.statistics().owner

    assert asyncio.run(hold()).startswith("task 'Task-")
    assert not lock.locked()


@KINDS
def test_released_by_its_holder_only(kind):
    """A release by anybody else is a RuntimeError that names the holder, and changes nothing."""
    lock = kind(name="plate")
    with pytest.raises(RuntimeError, match="nobody holds it"):
        lock.release()
    with lock:
        stranger = Runner(lock.release, name="stranger").done()
        assert isinstance(stranger.error, RuntimeError)
        assert "can't be released by thread 'stranger': thread 'MainThread' holds it" in str(stranger.error)
        assert lock.locked()

    async def main():
        async with lock:
            other = asyncio.create_task(give(), name="other")
            with pytest.raises(RuntimeError, match="can't be released by task 'other': task 'Task-"):
                await other
            assert lock.locked()
        with pytest.raises(RuntimeError, match="nobody holds it"):
            await lock.__aexit__(None, None, None)

    async def give():
        lock.release()

    asyncio.run(main())


def test_an_rlock_of_a_task_is_taken_again_by_that_task_only():
    """A task may take its RLock again; another task of the same loop, and the loop's own thread, may not."""
    lock = RLock(name="plate")

    async def main():
        async with lock, lock:
            assert await lock.aacquire()
            lock.release()
            other = asyncio.create_task(lock.aacquire(timeout=0.01))
            assert await other is False
            assert lock.acquire(False) is False
        assert not lock.locked()

    asyncio.run(main())


def test_a_thread_and_a_task_exclude_each_other():
    """What a thread holds, no task has, and the other way round."""
    lock, value, rounds = Lock(), [0], 300

    def by_thread():
        for _ in range(rounds):
            with lock:
                seen = value[0]
                value[0] = seen + 1

    async def by_task():
        for _ in range(rounds):
            async with lock:
                seen = value[0]
                await asyncio.sleep(0)
                value[0] = seen + 1

    async def main():
        await asyncio.gather(*(by_task() for _ in range(3)))

    sides = [Runner(by_thread), Runner(by_thread), Runner(lambda: asyncio.run(main()))]
    for side in sides:
        side.join(60)
        side.result()
    assert value == [5 * rounds]


@KINDS
def test_tasks_take_turns(kind):
    """A task that takes a lock again and again lets those in between that wait for it, first come first served."""
    lock, order = kind(), []

    async def play(name):
        for _ in range(5):
            async with lock:
                await asyncio.sleep(0)
                order.append(name)

    async def main():
        await asyncio.gather(play("a"), play("b"), play("c"))

    asyncio.run(main())
    assert order == [*"abc"] * 5


@KINDS
def test_a_thread_is_not_starved(kind):
    """A thread gets its turn, though two others take the lock again as soon as they have released it."""
    lock, enough = kind(), threading.Event()

    def rival():
        while not enough.is_set():
            with lock:
                enough.wait(0)

    rivals = [Runner(rival) for _ in range(2)]
    try:
        for _ in range(50):
            assert lock.acquire(timeout=PATIENCE)
            lock.release()
    finally:
        enough.set()
    all_of(*rivals)


@KINDS
def test_async_acquire(kind):
    """`aacquire` gives True, or False when the time is over, and `release` gives it back."""
    lock = kind()

    async def main():
        assert await lock.aacquire() is True
        assert lock.locked()
        assert await asyncio.create_task(lock.aacquire(timeout=0)) is False
        lock.release()
        assert not lock.locked()
        async with lock as got:
            assert got is True

    asyncio.run(main())


def test_async_forms_need_a_task():
    """Outside a task there is nobody to hold it."""
    coroutine = Lock(name="plate").aacquire()
    with pytest.raises(RuntimeError):
        coroutine.send(None)


@KINDS
def test_wrong_arguments(kind):
    """Options are those of `threading`, plus name and shared by keyword only."""
    with pytest.raises(TypeError):
        kind("plate")
    with pytest.raises(TypeError):
        kind(colour="red")
    with pytest.raises(ValueError, match="non-blocking"):
        kind().acquire(False, 1)
    with pytest.raises(ValueError, match="non-negative"):
        kind().acquire(timeout=-2)
    with pytest.raises(ValueError, match="non-negative"):
        kind().acquire(timeout=math.nan)


@KINDS
def test_a_lock_in_use_keeps_nothing_alive(kind):
    """A lock that was waited for, by a thread and by a task, is freed with its last reference."""
    lock = kind()
    parked = noticing(lock)

    def want(lock):
        with lock:
            pass

    async def hold(lock):
        async with lock:
            pass

    with lock:
        waiter = Runner(want, lock)
        parked.reach(1)
    waiter.result()
    asyncio.run(hold(lock))
    ref = weakref.ref(lock)
    del lock, parked, waiter
    gc.collect()
    assert ref() is None


def test_a_signal_handler_may_wait_for_a_lock_too():
    """A handler that waits while its thread waits: both get what they wait for, and the outer wait stays published."""
    outer, inner = Lock(name="outer"), Lock(name="inner")
    outside, inside = noticing(outer), noticing(inner)
    seen = []

    def handler(number, frame):
        with inner:
            pass
        wait = graph.waiting(threading.get_ident())
        seen.append(None if wait is None else wait.on)

    def play():
        with outer:
            with inner:
                ready.set()
                outside.reach(1)
                signal.pthread_kill(main, signal.SIGUSR1)
                inside.reach(1)
        return True

    main, ready = threading.get_ident(), threading.Event()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        helper = Runner(play)
        assert ready.wait(PATIENCE)
        with outer:
            pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert helper.result()
    assert seen == [outer] or seen == [None]  # None: the signal came before the wait was published
    assert not graph._waits


PROGRAM = """
import threading
from duodao.sync import {names}
held, lock = threading.Event(), {make}
def hold():
    {hold}
    held.set()
    threading.Event().wait(60)
threading.Thread(target=hold, daemon=True).start()
held.wait()
try:
    print("ready", flush=True)
    {wait}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("names", "make", "hold", "wait"),
    [
        ("Lock", "Lock()", "lock.acquire()", "lock.acquire()"),
        ("RLock", "RLock()", "lock.acquire()", "lock.__enter__()"),
        ("Lock", "Lock()", "lock.acquire()", "lock.acquire(timeout=60)"),
        ("Semaphore", "Semaphore(0)", "pass", "lock.acquire()"),
        ("Event", "Event()", "pass", "lock.wait()"),
        ("Condition", "Condition()", "pass", "[lock.acquire(), lock.wait()]"),
        ("Barrier", "Barrier(2)", "pass", "lock.wait()"),
        ("Lock, locks", "Lock()", "lock.acquire()", "locks(Lock(), lock).__enter__()"),
    ],
)
def test_ctrl_c_ends_any_wait_of_the_main_thread(names, make, hold, wait):
    """SIGINT ends a program that waits for a primitive of ours without a time-out."""
    program = PROGRAM.format(names=names, make=make, hold=hold, wait=wait)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            os.kill(child.pid, signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()
