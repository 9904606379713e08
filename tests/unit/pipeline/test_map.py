"""map, run and Pipeline through the public API, on lanes of this process."""

import asyncio
import dataclasses
import gc
import itertools
import threading
import time
import weakref

import pytest

import duodao
from duodao.errors import RemoteError, TooManyFailures, UsageError

LANES = ["inline", "thread"]


def square(x):
    return x * x


def odd_fails(x):
    if x % 2:
        raise ValueError(x)
    return x


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("make", [list, iter, lambda r: (x for x in r), set, lambda r: dict.fromkeys(r)])
def test_results_come_in_input_order(lane, make):
    """Sequences, other containers and iterators give the same results, in order."""
    assert list(duodao.map(square, make(range(1000)), lane=lane)) == [x * x for x in range(1000)]


def test_unordered_gives_each_once():
    """ordered=False gives every result exactly once."""
    assert sorted(duodao.map(square, range(1000), lane="thread", ordered=False)) == [x * x for x in range(1000)]


def test_a_failure_is_raised_at_its_place():
    """errors="raise": all results before the failure come first; then the user's own exception, with a note."""
    own = KeyError("mine")

    def fail(x):
        if x == 5:
            raise own
        return x

    results = duodao.map(fail, range(100), lane="thread")
    got = []
    with pytest.raises(KeyError) as caught:
        for value in results:
            got.append(value)
    assert got == [0, 1, 2, 3, 4]
    assert caught.value is own
    assert "input 5 (5), stage " in own.__notes__[0] and "lane thread, attempt 1" in own.__notes__[0]


def test_collected_outcomes_cover_every_input():
    """errors="collect": one Outcome per input, in order, with its error or value."""
    outcomes = list(duodao.map(odd_fails, range(20), lane="thread", errors="collect"))
    assert [o.index for o in outcomes] == list(range(20))
    assert [o.ok for o in outcomes] == [x % 2 == 0 for x in range(20)]
    assert all(o.unwrap() == o.input for o in outcomes if o.ok)
    with pytest.raises(ValueError):
        outcomes[1].unwrap()


def test_stop_iteration_in_a_call_does_not_end_the_loop_silently():
    """A StopIteration out of the user's function becomes a RuntimeError, as in a generator (PEP 479)."""

    def stop(x):
        raise StopIteration

    with pytest.raises(RuntimeError):
        list(duodao.map(stop, range(3), lane="thread"))


def test_an_endless_input_of_slow_items_is_read_no_further_than_the_window():
    """Ten results of an endless generator pull at most window inputs more than ten."""
    pulled = itertools.count()
    gate = threading.Event()
    last = 0

    def inputs():
        nonlocal last
        for last in pulled:
            yield last

    def wait(x):
        if x >= 10:
            gate.wait(30)
        return x

    with duodao.map(wait, inputs(), lane="thread", workers=4, window=16) as results:
        assert list(itertools.islice(results, 10)) == list(range(10))
        assert last < 10 + 16
        gate.set()


def test_a_blocking_input_does_not_delay_a_finished_result():
    """A result is handed on while the input iterator blocks before its next item."""
    more = threading.Event()

    def inputs():
        yield 1
        yield 2
        more.wait(30)
        yield 3

    results = duodao.map(square, inputs(), lane="thread", workers=2)
    assert next(results) == 1
    assert next(results) == 4
    more.set()
    assert list(results) == [9]


def test_an_input_iterator_that_raises_ends_the_run_after_what_it_gave():
    """What the iterator gave before its error is finished and seen; then its own error is raised."""

    def inputs():
        yield from range(5)
        raise OSError("disk")

    got = []
    with pytest.raises(OSError, match="disk"):
        for value in duodao.map(square, inputs(), lane="thread"):
            got.append(value)
    assert got == [0, 1, 4, 9, 16]


def test_leaving_the_loop_closes_generator_and_threads():
    """Leaving a `for` early ends the run at once, without a garbage collection."""
    closed = threading.Event()

    def inputs():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    gc.disable()
    try:
        for value in duodao.map(square, inputs(), lane="thread", workers=3):
            if value > 100:
                break
        assert closed.wait(10)
    finally:
        gc.enable()
    for thread in threading.enumerate():
        if thread.name.startswith("duodao"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_dropped_map_warns():
    """A map that is never iterated says that nothing has run."""
    with pytest.warns(RuntimeWarning, match="nothing has run"):
        duodao.map(square, range(3))


def test_iteration_can_be_left_and_taken_up_again():
    """While the Map is held, a loop that was left can be continued."""
    results = duodao.map(square, range(6), lane="inline")
    for value in results:
        if value == 4:
            break
    assert list(results) == [9, 16, 25]


def test_retries_run_again_and_are_told():
    """A failed call runs again; the Outcome tells every attempt."""
    seen = {}

    def flaky(x):
        seen[x] = seen.get(x, 0) + 1
        if seen[x] < 3:
            raise OSError(f"try {seen[x]}")
        return x

    retry = duodao.Retry(3, first=0.001)
    outcomes = list(duodao.map(flaky, range(5), lane="thread", retries=retry, errors="collect"))
    assert [o.value for o in outcomes] == list(range(5))
    assert all(o.attempts == 3 and [t.number for t in o.tries] == [1, 2] for o in outcomes)
    assert outcomes[0].tries[0].error == "OSError: try 1"


def test_retries_end():
    """After the last attempt the error is final and says its number."""
    outcome = next(duodao.map(odd_fails, [1], lane="thread", retries=duodao.Retry(2, first=0.0), errors="collect"))
    assert outcome.attempts == 3 and len(outcome.tries) == 3
    assert "attempt 3" in outcome.error.__notes__[-1]


@pytest.mark.parametrize(("limit", "stops"), [(2, True), (60, False), (0.1, True), (0.6, False), (0, True)])
def test_max_failures_ends_the_run(limit, stops):
    """A number or a share of failures over max_failures ends the run with TooManyFailures and a report."""
    results = duodao.map(odd_fails, range(100), lane="inline", errors="collect", max_failures=limit)
    if not stops:
        assert len(list(results)) == 100
        return
    with pytest.raises(TooManyFailures) as caught:
        list(results)
    assert "max_failures" in caught.value.report.stopped


def test_pipelines_compose():
    """A Pipeline gives what its functions give one after the other."""
    pipeline = duodao.Pipeline(square, lane="thread", workers=2).then(str, lane="inline").then(len, lane="thread")
    assert list(duodao.map(pipeline, range(500))) == [len(str(x * x)) for x in range(500)]


def test_neighbours_on_the_same_lane_run_as_one_call():
    """Stages that name the same lane and width are fused; the report shows one stage."""
    pipeline = duodao.Pipeline(square, lane="thread", workers=2).then(str, lane="thread", workers=2)
    report = duodao.run(pipeline, range(10))
    assert [stage.name for stage in report.stages] == ["square+str"]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_hold_what_follows(size):
    """batch(size) gives lists of values that follow each other; the last one may be short."""
    pipeline = duodao.Pipeline(square, lane="thread").batch(size).then(list, lane="thread", workers=3)
    got = list(duodao.map(pipeline, iter(range(50))))
    want = [x * x for x in range(50)]
    assert got == [want[i : i + size] for i in range(0, 50, size)]


def test_batches_leave_out_what_failed_before():
    """An input that failed before the batch is its own outcome and in no list."""
    pipeline = duodao.Pipeline(odd_fails, lane="thread").batch(3).then(sum, lane="inline")
    outcomes = list(duodao.map(pipeline, range(12), errors="collect"))
    assert [o.index for o in outcomes if not o.ok] == [1, 3, 5, 7, 9, 11]
    assert [o.value for o in outcomes if o.ok] == [0 + 2 + 4, 6 + 8 + 10]


def test_batches_within_a_batch():
    """Lists of lists: every value is in exactly one."""
    pipeline = duodao.Pipeline(square, lane="inline").batch(2).batch(3)
    got = list(duodao.map(pipeline, range(13)))
    flat = [x for outer in got for inner in outer for x in inner]
    assert flat == [x * x for x in range(13)] and len(got) == 3


def test_a_batch_closes_by_time():
    """within= gives out a half-full list although the input goes on."""
    more = threading.Event()

    def inputs():
        yield from (1, 2)
        more.wait(30)

    results = duodao.map(duodao.Pipeline(square, lane="thread").batch(100, within=0.01), inputs())
    assert next(results) == [1, 4]
    more.set()
    assert list(results) == []


def test_drain_finishes_what_is_in_flight_and_takes_nothing_more():
    """drain(): started calls are finished and seen, batches are flushed, the rest is counted as not started."""
    started, gate = threading.Semaphore(0), threading.Event()

    def work(x):
        started.release()
        gate.wait(30)
        return x

    run = duodao.map(duodao.Pipeline(work, lane="thread", workers=2).batch(100), itertools.count())
    results = []
    thread = threading.Thread(target=lambda: results.extend(run))
    thread.start()
    assert started.acquire(timeout=30) and started.acquire(timeout=30)
    run.drain()
    gate.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(results) == 1 and results[0][:2] == [0, 1]
    assert run.report.stopped == "interrupted"


@pytest.mark.parametrize("kind", ["list", "function", "none"])
def test_run_puts_results_into(kind):
    """run(into=) fills a list, calls a function, or drops results; the Report counts."""
    got = []
    report = duodao.run(
        square, range(10), lane="thread", into={"list": got, "function": got.append, "none": None}[kind]
    )
    assert report.succeeded == report.total == 10 and report.ok
    assert got == ([] if kind == "none" else [x * x for x in range(10)])


def test_star_and_common():
    """star=True spreads tuples over the arguments; common= gives constants by name."""
    assert list(
        duodao.map(lambda a, b, c: a + b + c, [(1, 2), (3, 4)], star=True, common={"c": 10}, lane="thread")
    ) == [13, 17]


def test_rng_of_a_call_depends_on_seed_and_input_alone():
    """With seed= the result of an input doesn't depend on lane, width or order."""

    def draw(x, rng):
        return x + rng.random()

    one = list(duodao.map(draw, range(50), lane="inline", seed=7))
    many = list(duodao.map(draw, range(50), lane="thread", workers=8, seed=7))
    other = list(duodao.map(draw, range(50), lane="inline", seed=8))
    assert one == many != other


def test_a_map_inside_a_running_loop():
    """async for runs plain functions on threads and async functions on the caller's own loop."""

    async def where(x):
        return asyncio.get_running_loop()

    async def main():
        loop = asyncio.get_running_loop()
        assert [v async for v in duodao.map(square, range(20), lane="thread")] == [x * x for x in range(20)]
        assert {v async for v in duodao.map(where, range(3))} == {loop}
        report = await duodao.arun(square, range(5), lane="thread")
        assert report.succeeded == 5
        assert list(duodao.map(square, range(5), lane="thread")) == [0, 1, 4, 9, 16]

    asyncio.run(main())


def test_leaving_an_async_loop_cancels_calls():
    """Leaving `async for` through `async with` cancels the calls in flight and closes the input."""
    cancelled = []

    async def forever(x):
        if x == 0:
            return x
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(x)
            raise

    async def main():
        async with duodao.map(forever, range(4)) as results:
            async for value in results:
                assert value == 0
                break
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert sorted(cancelled) == [1, 2, 3]


def test_async_inputs_need_async_for():
    """An async iterable with a plain `for` is refused; with `async for` it works."""

    async def inputs():
        for x in range(5):
            yield x

    source = inputs()
    with pytest.raises(UsageError, match="async for"):
        list(duodao.map(square, source, lane="thread"))

    async def main():
        return [v async for v in duodao.map(square, inputs(), lane="thread")]

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_progress_gets_snapshots_and_is_closed():
    """progress= is called with Snapshots, the last of them "done", and its close() is called also after an error."""

    class Show:
        def __init__(self):
            self.seen, self.closed = [], 0

        def __call__(self, snapshot):
            self.seen.append(snapshot)

        def close(self):
            self.closed += 1

    show = Show()
    duodao.run(square, range(100), lane="thread", progress=show)
    assert show.seen[-1].state == "done" and show.seen[-1].done == 100 and show.closed == 1
    show = Show()
    with pytest.raises(ValueError):
        duodao.run(odd_fails, range(100), lane="thread", progress=show)
    assert show.seen[-1].state == "done" and show.closed == 1


async def acall(x):
    return x


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: duodao.map(square, [1], lane="threads"), "valid: auto, inline, thread, process, coroutine"),
        (lambda: duodao.map(square, [1], worker=2), "did you mean 'workers'"),
        (lambda: duodao.map(square, [1], workers=0), "from 1"),
        (lambda: duodao.map(square, [1], workers=2.0), "from 1"),
        (lambda: duodao.map(square, [1], timeout=-1), "timeout=-1"),
        (lambda: duodao.map(square, [1], timeout=0), "timeout=0"),
        (lambda: duodao.map(square, [1], lane="inline", timeout=1), "can't stop a call"),
        (lambda: duodao.map(square, [1], rate=0), "over 0"),
        (lambda: duodao.map(square, [1], retries=-1), "retries=-1"),
        (lambda: duodao.map(square, [1], errors="ignore"), "'raise' or 'collect'"),
        (lambda: duodao.map(square, [1], window=0), "window=0"),
        (lambda: duodao.map(square, [1], max_failures=-1), "max_failures=-1"),
        (lambda: duodao.map(square, [1], max_failures=1.5), "max_failures=1.5"),
        (lambda: duodao.map(square, [1], key="mtime"), "needs journal="),
        (lambda: duodao.map(square, [1], progress=3), "Snapshot"),
        (lambda: duodao.map(square, 5), "iterate"),
        (lambda: duodao.map("square", [1]), "a function is needed"),
        (lambda: duodao.map(lambda a, b: 0, [1]), "takes 2 arguments (a, b)"),
        (lambda: duodao.map(lambda: 0, [1]), "takes no input"),
        (lambda: duodao.map(square, [1], common={"y": 1}), "takes no argument 'y'"),
        (lambda: duodao.map(acall, [1], lane="thread"), "lane='coroutine'"),
        (lambda: duodao.map(square, [1], lane="coroutine"), "lane='thread'"),
        (lambda: duodao.map(square, [1], lane="thread", seed=1), "rng"),
        (lambda: duodao.map(square, [1], lane="thread", max_memory=10), "lane='process'"),
        (lambda: duodao.map(duodao.Pipeline(square), [1], lane="thread"), "given to Pipeline"),
        (lambda: duodao.Pipeline(square).batch(0), "batch(size=0)"),
        (lambda: duodao.Pipeline(square).batch(2, within=0), "within=0"),
        (lambda: duodao.Pipeline(square).then(square, ordered=False), "unknown option 'ordered'"),
        (lambda: duodao.run(square, [1], into=5), "into=5"),
        (lambda: duodao.map(square, [1], setup={"db": 5}), "context manager"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(call, says):
    """Each wrong option is a UsageError whose message names what is valid."""
    with pytest.raises(UsageError) as caught:
        call()
    assert says in str(caught.value)


def test_memory_stays_flat_on_an_endless_input():
    """Half a million items from a generator leave no more behind than the first ten thousand did."""
    import tracemalloc

    results = iter(duodao.map(square, itertools.count(), lane="thread", workers=2))
    for _ in range(10_000):
        next(results)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200_000):
            next(results)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    del results
    assert grown < 5_000_000


def test_a_paused_stage_starts_nothing():
    """Retry.pause holds back the other calls of the stage, not only the one that failed."""
    calls = []

    def work(x):
        calls.append((x, time.perf_counter()))
        if len(calls) == 1:
            raise OSError("429")
        return x

    retry = duodao.Retry(1, delay=lambda error, attempt: duodao.Retry.pause(0.2))
    assert list(duodao.map(work, range(6), lane="thread", workers=1, retries=retry)) == list(range(6))
    failed_at = calls[0][1]
    late = [at for x, at in calls[1:] if at - failed_at >= 0.19]
    assert len(late) >= 4  # those handed over before the pause may have run


def test_values_are_released_when_they_have_been_seen():
    """The engine keeps no reference to a value that was handed on."""

    class Value:
        pass

    results = duodao.map(lambda x: Value(), range(10), lane="thread", workers=1)
    first = weakref.ref(next(results))
    for _ in results:
        pass
    assert first() is None


def test_results_that_are_always_ready_leave_the_loop_to_others():
    """`async for` over quick calls lets other tasks of the loop run, so that a time-out or a cancel can reach it."""

    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        async for _ in duodao.map(square, range(200_000), lane="inline"):
            pass
        task.cancel()
        return turns

    assert asyncio.run(main()) > 10


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818
    """Nothing can be set on it by `error.name = value`."""

    code: int = 1


def raise_frozen(_):
    raise Frozen


@pytest.mark.parametrize("lane", LANES)
def test_an_error_that_is_frozen(lane):
    """A frozen dataclass arrives as itself, with its notes, also from stages that run as one."""
    for line in (
        duodao.Pipeline(raise_frozen, lane=lane),
        duodao.Pipeline(abs, lane=lane).then(raise_frozen, lane=lane),
    ):
        with pytest.raises(Frozen) as caught:
            list(duodao.map(line, [1]))
        assert "input 0 (1), stage " in caught.value.__notes__[-1]


def test_an_error_that_is_frozen_while_the_lane_is_chosen():
    """The calls that `auto` measures let it through as well; pickle can't set what is frozen, so its text arrives."""
    with pytest.raises((Frozen, RemoteError)):
        list(duodao.map(raise_frozen, [1]))
