"""One contract for pools on every lane: what a caller sees is the same, and is what `concurrent.futures` does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import pickle
import threading
import weakref

import pool_calls as calls
import pytest

import duodao
from duodao.errors import UsageError

LANES = ("thread", "process", "coroutine", "inline")
PATIENCE = 60


@pytest.fixture(params=LANES)
def pool(request):
    """A pool of two on each lane."""
    with duodao.Pool(2, lane=request.param) as made:
        yield made


def fit(pool, function):
    return calls.wrap(pool.lane, function)


def test_submit(pool):
    """A value comes back; positional and keyword arguments arrive, also ones called self and fn."""
    assert pool.submit(fit(pool, calls.square), 7).result(PATIENCE) == 49
    assert pool.submit(fit(pool, calls.add), 1, b=5).result(PATIENCE) == 6


def test_error(pool):
    """A call's exception arrives with its type and arguments, by result() and by exception()."""
    future = pool.submit(fit(pool, calls.fail), KeyError("k"))
    assert isinstance(future.exception(PATIENCE), KeyError)
    with pytest.raises(KeyError, match="k"):
        future.result()


def test_exit_in_a_call(pool):
    """sys.exit() in a call ends that call with SystemExit, as in concurrent.futures; the pool goes on."""
    error = pool.submit(fit(pool, calls.leave), 3).exception(PATIENCE)
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert pool.submit(fit(pool, calls.square), 2).result(PATIENCE) == 4


def test_many(pool):
    """A thousand calls, each its own value; as_completed and wait see all of them."""
    futures = {pool.submit(fit(pool, calls.square), n): n for n in range(1000)}
    for future in concurrent.futures.as_completed(futures, timeout=PATIENCE):
        assert future.result() == futures[future] ** 2
    done, rest = concurrent.futures.wait(futures, timeout=PATIENCE)
    assert len(done) == 1000
    assert not rest


def test_map(pool):
    """In the order of the inputs, over several iterables, the shortest ends it; an error ends it where it stands."""
    square, add = fit(pool, calls.square), fit(pool, calls.add)
    assert list(pool.map(square, range(100))) == [n * n for n in range(100)]
    assert list(pool.map(add, [1, 2], chunksize=7)) == [2, 3]
    values = pool.map(fit(pool, calls.fail), [ValueError(1)])
    with pytest.raises(ValueError, match="1"):
        next(values)


def test_map_with_buffersize(pool):
    """With buffersize=n at most n inputs are ahead of what was taken; the iterable is read as values are taken."""
    read = []

    def inputs():
        for n in range(20):
            read.append(n)
            yield n

    values = pool.map(fit(pool, calls.square), inputs(), buffersize=3)
    assert read == [0, 1, 2]
    assert next(values) == 0
    assert len(read) == 4
    assert list(values) == [n * n for n in range(1, 20)]
    for wrong, error in ((0, ValueError), ("3", TypeError)):
        with pytest.raises(error, match="buffersize"):
            pool.map(calls.square, [1], buffersize=wrong)
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(calls.square, [1], chunksize=0)


def test_callbacks(pool):
    """Callbacks run in this process, each with the future; one that raises is logged, and the others run."""
    seen = []
    ended = threading.Event()
    future = pool.submit(fit(pool, calls.square), 3)
    future.add_done_callback(lambda f: seen.append(f.result()))
    future.add_done_callback(lambda f: 1 // 0)
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(PATIENCE)
    assert seen == [9]


def test_raising_callback_is_logged(pool, caplog):
    """What a callback raises is logged as concurrent.futures logs it."""
    ended = threading.Event()
    future = pool.submit(fit(pool, calls.square), 3)
    future.result(PATIENCE)
    future.add_done_callback(lambda f: 1 // 0)
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(PATIENCE)
    assert "exception calling callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_asyncio(pool):
    """run_in_executor and wrap_future work from a running loop."""

    async def main():
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(pool, fit(pool, calls.square), 5)
        second = asyncio.wrap_future(pool.submit(fit(pool, calls.square), 6))
        return await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)

    assert asyncio.run(main()) == [25, 36]


def test_shutdown(pool):
    """After shutdown everything submitted has ended, and a submit raises with the standard text; twice is fine."""
    futures = [pool.submit(fit(pool, calls.square), n) for n in range(50)]
    pool.shutdown()
    pool.shutdown()
    assert [future.result(0) for future in futures] == [n * n for n in range(50)]
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        pool.submit(fit(pool, calls.square), 1)


def test_shutdown_without_waiting(pool):
    """shutdown(wait=False) returns at once; what was submitted still runs."""
    futures = [pool.submit(fit(pool, calls.square), n) for n in range(50)]
    pool.shutdown(wait=False)
    assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(50)]


@pytest.mark.parametrize("lane", LANES)
def test_dropped(lane):
    """A pool that nobody holds any more finishes what it was given, and lets its workers go."""
    pool = duodao.Pool(2, lane=lane)
    futures = [pool.submit(calls.wrap(lane, calls.square), n) for n in range(20)]
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(20)]


def test_no_stale_references(pool):
    """Once a call has ended the pool holds neither its arguments nor its value."""

    class Thing:
        pass

    if pool.lane == "process":
        future = pool.submit(calls.square, 2)
        future.result(PATIENCE)
        gone = weakref.ref(future)
        pool.submit(calls.square, 2).result(PATIENCE)  # the lane has dropped what came before
        del future
    else:
        thing = Thing()
        pool.submit(fit(pool, calls.fail), thing).exception(PATIENCE)  # raising it is a TypeError that doesn't hold it
        pool.submit(fit(pool, calls.square), 2).result(PATIENCE)
        gone = weakref.ref(thing)
        del thing
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_workers_are_reused(lane):
    """One call after the other needs one worker; two at a time need two at most."""
    with duodao.Pool(2, lane=lane) as pool:
        assert len({pool.submit(calls.where).result(PATIENCE) for _ in range(5)}) == 1
        assert len({future.result(PATIENCE) for future in [pool.submit(calls.where) for _ in range(50)]}) <= 2


def test_running_and_cancel():
    """A call that waits can be cancelled and never runs; one that runs can't."""
    begun, go = threading.Event(), threading.Event()
    ran = []
    with duodao.Pool(1, lane="thread") as pool:
        first = pool.submit(lambda: (begun.set(), go.wait(PATIENCE)))
        second = pool.submit(ran.append, 2)
        assert begun.wait(PATIENCE)
        assert first.running()
        assert not first.cancel()
        assert second.cancel()
        go.set()
    assert second.cancelled()
    assert ran == []
    with pytest.raises(concurrent.futures.CancelledError):
        second.result()


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_anything_callable(lane):
    """Lambdas, closures, bound methods and partial functions, also in processes."""
    three = 3
    with duodao.Pool(2, lane=lane) as pool:
        assert pool.submit(lambda x: x + three, 1).result(PATIENCE) == 4
        assert pool.submit("abc".upper).result(PATIENCE) == "ABC"
        assert [f.result(PATIENCE) for f in [pool.submit(lambda x: x * three, n) for n in range(200)]][-1] == 597


def test_context_variables():
    """Threads see the context variables of the place where the pool was made."""
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("made")
    with duodao.Pool(1, lane="thread") as pool:
        assert pool.submit(variable.get).result(PATIENCE) == "made"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lane": "auto"}, "valid: thread, process, coroutine, inline"),
        ({"workers": 0}, "at least 1"),
        ({"workers": 1.5}, "whole number"),
        ({"idle": -1}, "seconds"),
        ({"max_calls": 2}, "lane='process'"),
    ],
)
def test_wrong_options(options, text):
    """A wrong option is refused before anything starts, and the valid ones are named."""
    with pytest.raises(UsageError, match=text):
        duodao.Pool(**options)


def test_initializer_must_be_callable():
    """As in concurrent.futures."""
    with pytest.raises(TypeError, match="initializer must be a callable"):
        duodao.Pool(initializer=1)


@pytest.mark.parametrize("lane", LANES)
def test_a_failed_initializer_breaks_the_pool(lane, caplog):
    """What waits has BrokenExecutor with the initializer's own error as its cause; so has every later submit."""
    with duodao.Pool(1, lane=lane, initializer=calls.fail, initargs=(ValueError("no"),)) as pool:
        error = pool.submit(calls.wrap(lane, calls.square), 1).exception(PATIENCE)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
        assert isinstance(error.__cause__, ValueError)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no"):
            pool.submit(calls.wrap(lane, calls.square), 1)
    assert "Exception in initializer" in caplog.text


def test_a_pool_does_not_travel(pool):
    """Sending the pool itself says what to do instead."""
    with pytest.raises(TypeError, match="make a pool inside"):
        pickle.dumps(pool)


def test_text(pool):
    """repr names the pool, its lane, its width and its state."""
    assert repr(pool) == f"<Pool {pool.name!r} lane={pool.lane} workers=2 open>"
    pool.shutdown()
    assert repr(pool).endswith("shut down>")
