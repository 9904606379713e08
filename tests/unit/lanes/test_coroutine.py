"""The coroutine lane beyond the contract: stubborn calls, blocked loops, loops that belong to somebody else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest
from lane_inbox import Outcomes

from duodao.errors import CallExited, SetupFailed
from duodao.lanes import coroutine
from duodao.lanes.base import Batch, Work
from duodao.lanes.coroutine import Coroutines


@pytest.fixture
def make():
    lanes = []

    def factory(function, workers=2, **options):
        lane = Coroutines(Work(function, "f", is_async=True, **options), workers)
        lanes.append(lane)
        return lane, Outcomes(lane)

    yield factory
    for lane in lanes:
        lane.close(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "duodao-coroutine"]


def test_a_call_that_swallows_its_cancellation_is_given_up(make, monkeypatch):
    """After the grace the item fails, the notice says so, another worker takes over, and its late value is dropped."""
    monkeypatch.setattr(coroutine, "STUBBORN", 0.05)
    late = threading.Event()

    async def call(item):
        if item == "stubborn":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await ended.wait()
            late.set()
        if item == "end":
            ended.set()
        return item

    ended = asyncio.Event()
    _, got = make(call, workers=1, timeout=0.05)
    got.start(["stubborn", 1])
    got.until(2)
    assert got.values == {1: 1}
    assert got.failures[0].kind == "timeout"
    assert ["given up" in notice for notice in got.notices] == [True]
    got.start(["end"], first=2)
    got.until(3)
    assert late.wait(30)
    assert got.queue.empty()


def test_a_call_that_swallows_and_then_ends_is_a_time_out(make):
    """A value that comes after the time-out, within the grace, doesn't turn the time-out into a success."""

    async def call(item):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late"

    _, got = make(call, workers=1, timeout=0.02)
    got.start([1, 2])
    got.until(2)
    assert {failure.kind for failure in got.failures.values()} == {"timeout"}
    assert not got.notices


def test_the_cause_of_a_time_out_shows_where_the_call_was(make):
    """CallTimeout's cause is what the call raised when it was cancelled."""

    async def call(item):
        await asyncio.sleep(60)

    _, got = make(call, timeout=0.02)
    got.start([1])
    got.until(1)
    assert isinstance(got.failures[0].error.__cause__, asyncio.CancelledError)


def test_a_cancelled_error_of_its_own(make):
    """A function that raises CancelledError ends its item; the worker and the lane go on."""

    async def call(item):
        if item == 1:
            raise asyncio.CancelledError
        return item

    _, got = make(call, workers=1)
    got.start([0, 1, 2])
    got.until(3)
    assert got.values == {0: 0, 2: 2}
    assert type(got.failures[1].error) is CallExited


async def cancel_itself(x):
    if x % 2:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)
    return x


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_that_cancel_themselves(make, workers):
    """A call that cancels its own task has a failure, and what waits behind it runs, with one worker, too."""
    _, got = make(cancel_itself, workers=workers)
    got.start(list(range(7)))
    got.until(7)
    assert got.values == {0: 0, 2: 2, 4: 4, 6: 6}
    assert {type(failure.error) for failure in got.failures.values()} == {CallExited}


def test_nested_time_outs_work_after_a_cancelled_call(make):
    """A worker whose call was cancelled has no stale cancellation: asyncio.timeout inside the next call is exact."""

    async def call(item):
        if item == 0:
            await asyncio.sleep(60)
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return asyncio.current_task().cancelling()

    _, got = make(call, workers=1, timeout=0.5)
    got.start([0, 1])
    got.until(2)
    assert got.values == {1: 0}


def test_a_function_that_blocks_the_loop_is_named_once(make):
    """A turn of the loop of more than 100 ms is told once, with the function's name."""

    async def call(item):
        time.sleep(0.12)  # noqa: ASYNC251 - the fault under test
        return item

    _, got = make(call)
    got.start([0, 1, 2])
    got.until(3)
    assert len(got.notices) == 1
    assert got.notices[0].startswith("f held its event loop")


def test_waiting_calls_are_no_blocked_loop(make):
    """Calls that wait longer than that, as they should, are not told."""

    async def call(item):
        await asyncio.sleep(0.12)
        return item

    _, got = make(call, workers=1)
    got.start([0, 1])
    got.until(2)
    assert not got.notices


def test_calls_that_never_wait_are_delivered_on_the_way(make, monkeypatch):
    """Coroutines that never suspend don't keep the loop, or the outcomes, for the length of the queue."""
    monkeypatch.setattr(coroutine, "BREATH", 0.0)

    async def call(item):
        return item

    _, got = make(call, workers=1)
    got.start(range(100))
    got.until(100)
    assert len(got.results) > 1


def test_workers_are_made_on_demand(make):
    """No more tasks than there were items at once."""

    async def call(item):
        return len(asyncio.all_tasks())

    _, got = make(call, workers=500)
    got.start([0])
    got.until(1)
    assert got.values[0] == 1


def test_setup_opens_and_closes_in_one_task(make):
    """One task enters and leaves every resource, as anyio's cancel scopes insist; both forms: the async one is used."""
    tasks = []

    class Resource:
        async def __aenter__(self):
            tasks.append(asyncio.current_task())
            return "async"

        async def __aexit__(self, *_):
            tasks.append(asyncio.current_task())

        def __enter__(self):
            raise AssertionError

        def __exit__(self, *_):
            raise AssertionError

    async def call(item, thing):
        return thing

    lane, got = make(call, setup={"thing": Resource})
    got.start([0, 1])
    got.until(2)
    lane.close(5)
    assert got.values == {0: "async", 1: "async"}
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


def test_close_while_setup_is_opening(make):
    """A factory that hangs is cancelled by close, and nothing is delivered."""
    opening = threading.Event()

    async def factory():
        opening.set()
        await asyncio.sleep(60)

    async def call(item, thing):
        return item

    lane, got = make(call, setup={"thing": factory})
    got.start([0])
    assert opening.wait(30)
    lane.close(0)
    assert got.queue.empty()


def test_close_ends_generators_and_background_tasks(make):
    """close runs the `finally` of the call, of its async generators and of the tasks it left behind."""
    events, waiting = [], threading.Event()

    async def ticks():
        try:
            while True:
                yield 1
                waiting.set()
                await asyncio.sleep(60)
        finally:
            events.append("generator")

    async def behind():
        try:
            await asyncio.sleep(60)
        finally:
            events.append("task")

    tasks = []

    async def call(item):
        tasks.append(asyncio.create_task(behind()))
        try:
            async for _ in ticks():
                pass
        finally:
            events.append("call")

    lane, got = make(call)
    got.start([0])
    assert waiting.wait(30)
    lane.close(0)
    assert sorted(events) == ["call", "generator", "task"]


def test_context_variables(make):
    """Calls see the context of the place where the lane was made."""
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    async def call(item):
        return variable.get()

    _, got = make(call)
    got.start([1])
    got.until(1)
    assert got.values == {0: 7}


def test_uvloop_where_it_is_installed(make):
    """The lane's own loop is uvloop's when that is there."""
    uvloop = pytest.importorskip("uvloop")

    async def call(item):
        return isinstance(asyncio.get_running_loop(), uvloop.Loop)

    _, got = make(call)
    got.start([1])
    got.until(1)
    assert got.values == {0: True}


def run_on_given_loop(scenario, **options):
    """asyncio.run a scenario(lane, start) where start(items) returns the results as they were delivered."""
    seen = []

    async def main():
        lane = Coroutines(Work(is_async=True, name="f", **options), 3, loop=asyncio.get_running_loop())
        full = asyncio.Event()

        def deliver(result):
            assert threading.current_thread() is threading.main_thread()
            assert asyncio.get_running_loop()
            seen.append(result)
            if sum(len(one.values) for one in seen) >= 3 or result.fatal:
                full.set()

        lane.start(Batch(range(3), [0, 1, 2]), deliver)
        await scenario(lane, full)

    asyncio.run(main())
    return seen


def test_a_given_loop_runs_the_calls_and_gets_the_deliveries():
    """On a loop that is given, calls and deliveries happen on that loop, and aclose waits for the end of all of it."""
    events = []

    class Resource:
        async def __aenter__(self):
            events.append("open")

        async def __aexit__(self, *_):
            await asyncio.sleep(0)
            events.append("close")

    async def call(item, thing):
        return asyncio.get_running_loop()

    async def scenario(lane, full):
        await full.wait()
        await lane.aclose(1)
        assert events == ["open", "close"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    seen = run_on_given_loop(scenario, function=call, setup={"thing": Resource})
    assert len({id(loop) for result in seen for loop in result.values}) == 1


@pytest.mark.parametrize("close", [True, False])
def test_a_given_loop_that_ends_takes_the_lane_with_it(close):
    """asyncio.run returns though calls hang, closed or forgotten; resources are closed, nothing is left pending."""
    events = []

    class Resource:
        async def __aenter__(self):
            events.append("open")

        async def __aexit__(self, *_):
            events.append("close")

    async def call(item, thing):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            events.append("call")

    begun = asyncio.Event()

    async def scenario(lane, full):
        await begun.wait()
        await asyncio.sleep(0)
        if close:
            lane.close(0)

    run_on_given_loop(scenario, function=call, setup={"thing": Resource})
    assert events == ["open", "call", "call", "call", "close"]


def test_a_setup_that_fails_on_a_given_loop():
    """The fatal result comes through the loop as any other."""

    async def factory():
        raise OSError("no database")

    async def call(item, thing):
        return item

    async def scenario(lane, full):
        await full.wait()
        await lane.aclose(1)

    seen = run_on_given_loop(scenario, function=call, setup={"thing": factory})
    assert type(seen[0].fatal) is SetupFailed
