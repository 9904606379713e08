"""What a pool does beyond the standard library: calls that wait for calls, circles, workers that come and go."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time

import pytest

import duodao
from duodao.errors import Deadlock
from duodao.pipeline import crew
from duodao.sync import Lock

PATIENCE = 60


def tree(pool, depth):
    """A call that submits two to its own pool and waits for both."""
    if not depth:
        return 1
    futures = [pool.submit(tree, pool, depth - 1) for _ in range(2)]
    return sum(future.result() for future in futures)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_calls_that_wait_for_their_own_pool(workers):
    """63 calls that wait for each other end on any number of threads: whoever waits runs the call itself."""
    with duodao.Pool(workers, lane="thread") as pool:
        assert pool.submit(tree, pool, 6).result(PATIENCE) == 64


def test_help_needs_no_thread():
    """A pool of one runs a nested call in the thread that waits for it."""
    with duodao.Pool(1, lane="thread") as pool:
        outer, inner = pool.submit(lambda: (threading.get_ident(), pool.submit(threading.get_ident).result())).result()
        assert outer == inner


def test_error_of_a_helped_call():
    """What the nested call raises is raised where its result is asked for."""
    with duodao.Pool(1, lane="thread") as pool:
        error = pool.submit(lambda: pool.submit(lambda: 1 // 0).result()).exception(PATIENCE)
        assert isinstance(error, ZeroDivisionError)


def test_a_timeout_holds_inside_the_pool():
    """result(timeout=) of a queued call of the own pool doesn't run it here: TimeoutError when the time is over."""
    go = threading.Event()
    with duodao.Pool(1, lane="thread") as pool:

        def outer():
            inner = pool.submit(go.wait, PATIENCE)
            with pytest.raises(TimeoutError):
                inner.result(timeout=0.01)
            go.set()
            return inner.result(timeout=PATIENCE)

        assert pool.submit(outer).result(PATIENCE) is True


def nested(pool, depth, means):
    if not depth:
        return 1
    futures = [pool.submit(nested, pool, depth - 1, means) for _ in range(2)]
    return sum(future.result() for future in means(futures))


def by_wait(futures):
    return concurrent.futures.wait(futures).done


@pytest.mark.parametrize("means", [by_wait, concurrent.futures.as_completed], ids=["wait", "as_completed"])
def test_the_standard_waits_inside_the_pool(means):
    """concurrent.futures.wait and as_completed in a call don't starve: the thread lends its place meanwhile."""
    with duodao.Pool(1, lane="thread") as pool:
        assert pool.submit(nested, pool, 4, means).result(PATIENCE) == 16
        roster = pool._roster
    assert roster._lent == 0
    assert roster._blocked == {}
    assert roster._count == 0


def test_lent_places_are_bounded(monkeypatch):
    """When as many places are lent as may be, one more standard wait is refused with Deadlock, not left to hang."""
    monkeypatch.setattr(crew, "LENT", 2)
    with duodao.Pool(1, lane="thread") as pool:

        def deep(depth):
            future = pool.submit(deep, depth - 1) if depth else pool.submit(int)
            concurrent.futures.wait([future])
            return future.result()

        error = pool.submit(deep, 5).exception(PATIENCE)
    assert isinstance(error, Deadlock)
    assert "wait by future.result()" in str(error)


def circle_of_futures(pool, size):
    """`size` calls, each waiting for the next one's future; the exceptions that they end with."""
    futures = []
    ready = threading.Barrier(size + 1)

    def member(number):
        ready.wait(PATIENCE)
        ready.wait(PATIENCE)
        return futures[(number + 1) % size].result()

    futures += [pool.submit(member, number) for number in range(size)]
    ready.wait(PATIENCE)
    ready.wait(PATIENCE)
    return [future.exception(PATIENCE) for future in futures]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_circle_of_futures(size):
    """Calls that wait for each other in a circle: one gets Deadlock, which the others then have as their result."""
    with duodao.Pool(size, lane="thread") as pool:
        errors = circle_of_futures(pool, size)
    assert all(isinstance(error, Deadlock) for error in errors)
    assert "the result of <Future" in str(errors[0])


def test_waiting_for_oneself():
    """A call that waits for its own future is a circle of one."""
    box = []
    known = threading.Event()
    with duodao.Pool(1, lane="thread") as pool:
        box.append(pool.submit(lambda: known.wait(PATIENCE) and box[0].result()))
        known.set()
        assert isinstance(box[0].exception(PATIENCE), Deadlock)


def test_a_circle_through_a_lock():
    """One holds a lock and waits for a call that wants the lock: Deadlock in one of them, and the rest goes on."""
    plate = Lock(name="plate")

    def wants():
        with plate:
            return "had it"

    with duodao.Pool(2, lane="thread") as pool:
        seen = []
        with plate:
            future = pool.submit(wants)
            try:
                seen.append(future.result())
            except Deadlock as error:
                seen.append(error)
        if not isinstance(seen[0], Deadlock):
            pytest.fail("the wait came to an end")
    assert "plate" in str(seen[0])


def test_a_circle_through_a_full_pool():
    """Waiting with a lock for a queued call, while every thread waits for the lock: found, though nobody runs it."""
    plate = Lock(name="plate")
    begun = threading.Barrier(3)

    def wants():
        begun.wait(PATIENCE)
        with plate:
            return 1

    with duodao.Pool(2, lane="thread") as pool:
        with plate:
            holders = [pool.submit(wants) for _ in range(2)]
            begun.wait(PATIENCE)
            queued = pool.submit(int)
            errors = [_error(queued.result)]
        errors += [future.exception(PATIENCE) for future in holders]
        assert queued.result(PATIENCE) == 0
    assert any(isinstance(error, Deadlock) for error in errors)


def _error(call):
    try:
        call()
    except BaseException as error:
        return error
    return None


def test_shutdown_that_a_call_waits_for():
    """shutdown(wait=True) in a call of the own pool waits for itself: Deadlock, not a hang."""
    pool = duodao.Pool(1, lane="thread")
    assert isinstance(pool.submit(pool.shutdown).exception(PATIENCE), Deadlock)
    pool.shutdown()


def test_no_false_alarm():
    """Many calls that take locks in order and wait for calls of their own pool: no Deadlock."""
    locks = [Lock() for _ in range(3)]

    def inner(n):
        with locks[n % 3]:
            return n

    def outer(n):
        return sum(future.result() for future in [pool.submit(inner, n + k) for k in range(5)])

    with duodao.Pool(4, lane="thread") as pool:
        assert list(pool.map(outer, range(100))) == [5 * n + 10 for n in range(100)]


def test_idle_threads_end():
    """After `idle` seconds without a call a thread ends; the next call has a new one."""
    with duodao.Pool(2, lane="thread", idle=0.01) as pool:
        thread = pool.submit(threading.current_thread).result(PATIENCE)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert pool.submit(int).result(PATIENCE) == 0


def test_idle_processes_end(monkeypatch):
    """After `idle` seconds without a call a worker goes to the idle ones of the program, while others still work."""
    from duodao.lanes.fleet import FLEET

    gone = threading.Event()
    put = FLEET.put
    monkeypatch.setattr(FLEET, "put", lambda *args: (put(*args), gone.set()))
    with duodao.Pool(2, lane="process", idle=0.01) as pool:
        assert pool.submit(os.getpid).result(PATIENCE)
        assert gone.wait(PATIENCE)
        assert pool.submit(int).result(PATIENCE) == 0


def test_max_calls():
    """max_calls=2: a worker process runs two calls, then another takes its place."""
    with duodao.Pool(1, lane="process", max_calls=2) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_names_of_threads():
    """Threads are named after the pool and numbered from 0, as the standard library's."""
    with duodao.Pool(1, lane="thread", name="cook") as pool:
        assert pool.submit(lambda: threading.current_thread().name).result(PATIENCE) == "cook_0"


def test_a_callback_that_blocks_holds_nothing_up():
    """Callbacks of a process pool have a thread of their own: results arrive while one of them blocks."""
    go, seen = threading.Event(), []
    with duodao.Pool(1, lane="process") as pool:
        first = pool.submit(pow, 2, 3)
        first.add_done_callback(lambda _: go.wait(PATIENCE))
        first.add_done_callback(lambda f: seen.append((f.result(), os.getpid())))
        assert pool.submit(pow, 3, 2).result(PATIENCE) == 9
        go.set()
    assert seen == [(8, os.getpid())]


def test_callback_that_submits_and_waits():
    """A callback may use the pool and wait for it."""
    seen = threading.Event()
    values = []
    with duodao.Pool(1, lane="process") as pool:
        future = pool.submit(pow, 2, 3)

        def more(_):
            values.append(pool.submit(pow, 5, 2).result())
            seen.set()

        future.add_done_callback(more)
        assert seen.wait(PATIENCE)
    assert values == [25]


def test_a_pool_inside_of_a_call_of_processes():
    """A closure over the pool can't travel, and the error says what to do; a pool made in the worker works."""
    with duodao.Pool(1, lane="process") as pool:
        error = pool.submit(lambda: pool.submit(int)).exception(PATIENCE)
        assert isinstance(error, duodao.errors.NotPicklable)
        assert "make a pool inside of the call" in str(error)
        assert pool.submit(own_pool).result(PATIENCE) == 16


def own_pool():
    with duodao.Pool(1, lane="thread") as pool:
        return pool.submit(pow, 4, 2).result()


def test_arguments_that_do_not_travel():
    """An argument that can't be pickled fails its call alone."""
    with duodao.Pool(1, lane="process") as pool:
        bad = pool.submit(id, threading.Lock())
        good = pool.submit(pow, 2, 2)
        assert isinstance(bad.exception(PATIENCE), duodao.errors.NotPicklable)
        assert good.result(PATIENCE) == 4


def test_a_long_call_holds_nobody_up(tmp_path):
    """A call that turns out long, in a batch of short ones, gives back what waits behind it: another worker runs it."""
    gate = os.fspath(tmp_path / "gate")
    os.mkfifo(gate)
    with duodao.Pool(2, lane="process") as pool:
        list(pool.map(short, [None] * 500))  # it is known to be short now
        long = pool.submit(short, gate)
        assert [f.result(PATIENCE) for f in [pool.submit(short, None) for _ in range(300)]] == [None] * 300
        assert not long.done()
        with open(gate, "w") as file:
            file.write("x")
        assert long.result(PATIENCE) == "x"


def short(gate):
    if gate is None:
        return None
    with open(gate) as file:
        return file.read()


def test_coroutine_that_blocks_its_own_loop():
    """result() on the loop that is to run the call: Deadlock, which says to await it."""
    with duodao.Pool(2, lane="coroutine") as pool:

        async def outer():
            return pool.submit(asyncio.sleep, 0).result()

        error = pool.submit(outer).exception(PATIENCE)
    assert isinstance(error, Deadlock)
    assert "await asyncio.wrap_future" in str(error)


def test_coroutines_that_await_their_own_pool():
    """Nested calls that are awaited run."""
    with duodao.Pool(10, lane="coroutine") as pool:

        async def outer():
            return await asyncio.wrap_future(pool.submit(asyncio.sleep, 0, "inner"))

        assert pool.submit(outer).result(PATIENCE) == "inner"


@pytest.mark.parametrize("workers", [1, 2])
def test_coroutines_that_await_more_than_may_run(workers):
    """Who awaits calls of its own pool lends its place: they run, however deep and many, and never more at a time."""
    running: set[int] = set()
    most = 0

    async def count(depth):
        nonlocal most
        running.add(depth)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.discard(depth)
        if not depth:
            return 1
        calls = [asyncio.wrap_future(pool.submit(count, depth - 1)) for _ in range(3)]
        return 1 + sum(await asyncio.gather(*calls))

    with duodao.Pool(workers, lane="coroutine") as pool:
        assert pool.submit(count, 4).result(PATIENCE) == 1 + 3 + 9 + 27 + 81
    assert most <= workers


def test_a_stand_in_survives_what_its_calls_do():
    """A call that raises, is cancelled, or raises CancelledError itself doesn't keep the next from being run."""

    async def fails(error):
        raise error

    async def outer():
        calls = [pool.submit(fails, error) for error in (ValueError(), asyncio.CancelledError(), SystemExit())]
        calls.append(pool.submit(asyncio.sleep, 0))
        waiting = [asyncio.wrap_future(call) for call in calls]
        assert calls[3].cancel()
        waiting.append(asyncio.wrap_future(pool.submit(asyncio.sleep, 0, "last")))
        return await asyncio.gather(*waiting, return_exceptions=True)

    with duodao.Pool(1, lane="coroutine") as pool:
        found = pool.submit(outer).result(PATIENCE)
    assert [type(each) for each in found[:4]] == [
        ValueError,
        asyncio.CancelledError,
        SystemExit,
        asyncio.CancelledError,
    ]
    assert found[4] == "last"


def test_standard_waits_that_block_their_own_loop():
    """concurrent.futures.wait and as_completed on the loop that is to run the call: Deadlock, as for result()."""
    with duodao.Pool(1, lane="coroutine") as pool:

        async def waits():
            return concurrent.futures.wait([pool.submit(asyncio.sleep, 0)])

        async def completes():
            return list(concurrent.futures.as_completed([pool.submit(asyncio.sleep, 0)]))

        for outer in (waits, completes):
            assert isinstance(pool.submit(outer).exception(PATIENCE), Deadlock)


def test_plain_function_on_a_loop():
    """A plain function on the coroutine lane is a TypeError of its call, which names lanes that fit."""
    with duodao.Pool(2, lane="coroutine") as pool:
        error = pool.submit(int).exception(PATIENCE)
    assert isinstance(error, TypeError)
    assert "lane='thread'" in str(error)


def test_idle_loop_ends():
    """After `idle` seconds without a call the loop's thread ends; the next call has a new one."""
    with duodao.Pool(2, lane="coroutine", idle=0.01) as pool:
        thread = pool.submit(athread).result(PATIENCE)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert pool.submit(athread).result(PATIENCE) is not thread


async def athread():
    return threading.current_thread()


def test_default_sizes():
    """The default is as many calls at a time as the lane's table says."""
    from duodao.lanes.choose import default_workers

    for lane in ("thread", "process", "coroutine", "inline"):
        with duodao.Pool(lane=lane) as pool:
            assert pool.workers == default_workers(lane)


def test_pace():
    """A function is short once its calls were; a long call counts at once; partials are known by their function."""
    from functools import partial

    from duodao.pipeline.pace import SHORT, Pace

    pace = Pace()
    assert pace.of(short) == SHORT
    pace.note(short, 0.0001)
    assert pace.of(partial(short, 1)) < SHORT
    pace.note(short, 1.0)
    assert pace.of(short) == 1.0
    assert time.sleep is not short


def test_functions_by_value_are_sent_as_they_are_now():
    """A closure sees what its variables are when it is submitted, also when they, or what they hold, have changed."""
    factor, seen = 2, []

    def times(x):
        return x * factor

    def count():
        return len(seen)

    with duodao.Pool(1, lane="process") as pool:
        first = [pool.submit(times, 3).result(PATIENCE), pool.submit(count).result(PATIENCE)]
        factor = 5
        seen.append(1)
        assert [pool.submit(times, 3).result(PATIENCE), pool.submit(count).result(PATIENCE)] == [15, 1]
    assert first == [6, 0]


def test_a_function_by_value_is_pickled_once():
    """While nothing it refers to changes, a function is pickled once; a function that it calls counts as well."""
    from duodao.pickling import dumps
    from duodao.pipeline.freezer import Freezer

    blobs = []
    freeze = Freezer(lambda function: blobs.append(dumps(function)) or blobs[-1])
    step = 1
    inner = lambda x: x + step
    outer = lambda x: inner(x) * 2
    assert freeze(outer) is freeze(outer)
    assert len(blobs) == 1
    step = 2
    freeze(outer)
    assert len(blobs) == 2
    assert freeze(own_pool) is own_pool


def test_many_calls_that_do_not_travel():
    """Ten thousand calls that can't be pickled fail each by itself, without one inside of the other's failing."""
    lock = threading.Lock()
    with duodao.Pool(1, lane="process") as pool:
        futures = [pool.submit(id, lock) for _ in range(3000)] + [pool.submit(lambda: lock) for _ in range(3000)]
        assert {type(future.exception(PATIENCE)) for future in futures} == {duodao.errors.NotPicklable}


def hold(lock):
    with lock:
        return "had it"


@pytest.mark.parametrize("warm", [True, False])
def test_a_circle_between_processes(warm):
    """Waiting, with a shared lock, for a call of a worker process that wants the lock: Deadlock in one of the two.

    Also when the wait begins while there is no worker yet.
    """
    plate = Lock(name="plate", shared=True)
    with duodao.Pool(1, lane="process") as pool:
        if warm:
            pool.submit(int).result(PATIENCE)
        with plate:
            future = pool.submit(hold, plate)
            errors = [_error(future.result)]
        errors.append(future.exception(PATIENCE))
    assert any(isinstance(error, Deadlock) for error in errors), errors
    plate.close()


def test_a_lent_place_is_lent_until_the_last_future(tmp_path):
    """as_completed over a call that runs and one that is queued: the place stays lent when the first has ended."""
    begun, go = threading.Event(), threading.Event()
    with duodao.Pool(2, lane="thread") as pool:

        def outer():
            running = pool.submit(lambda: begun.set() or go.wait(PATIENCE))
            assert begun.wait(PATIENCE)
            block = threading.Event()
            queued = [pool.submit(block.wait, PATIENCE), pool.submit(block.set)]
            seen = concurrent.futures.as_completed([running, *queued])
            go.set()
            return len(list(seen))

        assert pool.submit(outer).result(PATIENCE) == 3
    assert pool._roster._lent == 0


def mixed(pool, depth, seed):
    if not depth:
        return 1
    futures = [pool.submit(mixed, pool, depth - 1, seed * 2 + side) for side in (0, 1)]
    means = (seed * 2654435761 >> 7) % 4
    if means == 0:
        concurrent.futures.wait(futures)
    elif means == 1:
        futures = list(concurrent.futures.as_completed(futures))
    return sum(future.result(timeout=PATIENCE if means == 2 else None) for future in futures)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_mixed_waits_never_starve(workers):
    """Trees of calls that wait in all ways, one inside the other: each ends, and all lent places are given back."""
    for seed in range(12):
        with duodao.Pool(workers, lane="thread") as pool:
            assert pool.submit(mixed, pool, 5, seed + 1).result(PATIENCE) == 32
        assert (pool._roster._lent, pool._roster._count, pool._roster._blocked) == (0, 0, {})
