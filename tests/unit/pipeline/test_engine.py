"""The engine against a lane that lies and a clock that obeys: nothing here waits, and every schedule has a seed."""

import itertools
import random

import pytest

from duodao.errors import SetupFailed, TooManyFailures, WorkerDied
from duodao.pipeline.engine import Engine
from duodao.pipeline.ledger import Ledger
from duodao.pipeline.rate import Rate
from duodao.pipeline.retry import Retry
from duodao.pipeline.stages import Batched, make_stage
from duodao.testing.clock import FakeClock
from duodao.testing.lane import ScriptedLane


def build(plans, inputs, *, functions=None, groups=(), window=None, collect=True, ordered=True, max_failures=None,
          clock=None, workers=2, **options):  # fmt: skip
    """(engine, lanes): one stage per plan."""
    clock = clock or FakeClock()
    functions = functions or [lambda x: x] * len(plans)
    lanes = [ScriptedLane(f, plan=p, clock=clock, workers=workers) for f, p in zip(functions, plans, strict=True)]
    steps = [make_stage(f, {"lane": "thread", "workers": workers, **options}) for f in functions]
    for at, group in groups:
        steps.insert(at, group)
    ledger = Ledger(
        ordered=ordered, whole=collect, raising=not collect, outcomes=collect, max_failures=max_failures, keeper=None
    )
    pool = iter(lanes)
    engine = Engine(steps, inputs, ledger, lambda *a, **k: next(pool), ordered=ordered, window=window, clock=clock)
    return engine, lanes


def collect(engine, *, peak=None):
    out = []
    while (results := engine.next_list()) is not None:
        out += results
        if peak is not None:
            peak.append(engine.read - engine.ledger.passed)
    engine.close()
    return out


def chaos(rng):
    """Each delivery: late by a random time, in parts, lost, dead or failed."""

    def plan(out):
        positions = list(range(len(out.batch.items)))
        rng.shuffle(positions)
        while positions:
            position, after, kind = positions.pop(), rng.choice([0.0, 0.1, 1.0]), rng.random()
            if kind < 0.1:
                out.lose(position, after=after)
            elif kind < 0.13 and out.batch.attempt == 1:
                out.die(position, after=after)
            elif kind < 0.2 and out.batch.attempt < 3:
                out.fail(position, OSError("flaky"), after=after)
            else:
                out.finish(position, after=after)

    return plan


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("ordered", [True, False])
def test_every_input_has_one_outcome_whatever_lanes_do(seed, ordered):
    """Lost, dead, failed, late and partial deliveries: each input ends once, in order, with its value."""
    rng = random.Random(seed)
    plans = [chaos(rng), chaos(rng)]
    source = list(range(300)) if seed % 2 else iter(range(300))
    clock = FakeClock(threads=True)
    functions = [lambda x: x + 1, lambda x: x * 2]
    engine, _ = build(plans, source, functions=functions, clock=clock, ordered=ordered, retries=Retry(5, first=0.5))
    outcomes = collect(engine)
    assert all(o.ok for o in outcomes)
    if not ordered:
        outcomes.sort(key=lambda o: o.index)
    assert [(o.index, o.input, o.value) for o in outcomes] == [(x, x, (x + 1) * 2) for x in range(300)]
    assert not engine.ledger.tries and not engine.ledger.spent


@pytest.mark.parametrize("seed", range(20))
def test_groups_survive_chaos(seed):
    """Groups hold every value once, in order, although members are late, lost or run again; failures are left out."""
    rng = random.Random(seed)

    def odd(x):
        if x % 7 == 3:
            raise ValueError(x)
        return x

    groups, retry = [(1, Batched(5)), (3, Batched(2))], Retry(5, on=OSError, first=0.5)
    plans = [chaos(rng), chaos(rng)]
    engine, _ = build(plans, list(range(100)), functions=[odd, sum], groups=groups, retries=retry)
    outcomes = collect(engine)
    good = [x for x in range(100) if x % 7 != 3]
    assert [v for o in outcomes if o.ok for v in o.value] == [sum(good[i : i + 5]) for i in range(0, len(good), 5)]
    assert [o.index for o in outcomes if not o.ok] == [x for x in range(100) if x % 7 == 3]


@pytest.mark.parametrize("window", [1, 5, 64])
def test_the_window_is_never_exceeded(window):
    """Inputs read and not handed on never exceed the window, although one result is held back for long."""

    def plan(out):
        for position, item in enumerate(out.batch.items):
            out.finish(position, after=50.0 if item % 40 == 0 else 0.1)

    read = 0

    def inputs():
        nonlocal read
        for read in range(200):
            yield read

    peak = []
    engine, _ = build([plan], inputs(), window=window, clock=FakeClock(threads=True))
    outcomes = collect(engine, peak=peak)
    assert [o.value for o in outcomes] == list(range(200))
    assert max(peak) <= window


def test_a_lost_item_runs_again_carefully_and_uncounted():
    """What was lost comes again in a careful batch, with the same attempt number."""
    first = []

    def plan(out):
        if not first:
            first.append(out)
            out.lose()
        else:
            out.finish()

    engine, (lane,) = build([plan], [1])
    (outcome,) = collect(engine)
    assert outcome.ok and outcome.attempts == 1 and outcome.tries == ()
    assert [b.careful for b in lane.started] == [False, True]


def test_an_input_that_ends_two_workers_is_given_up():
    """The first death runs again alone and carefully, the second is the input's error, with both attempts told."""

    def plan(out):
        for position, item in enumerate(out.batch.items):
            out.die(position) if item == 3 else out.finish(position)

    engine, (lane,) = build([plan], list(range(10)))
    outcomes = collect(engine)
    assert [o.index for o in outcomes if not o.ok] == [3]
    assert isinstance(outcomes[3].error, WorkerDied) and outcomes[3].error.deaths == 2
    assert [t.number for t in outcomes[3].tries] == [1, 2]
    again = [b for b in lane.started if 3 in b.ids]
    assert len(again) == 2 and again[1].careful and list(again[1].ids) == [3]


def test_retries_wait_on_the_clock():
    """A retry starts after its wait, not before, and others are not held up."""
    clock = FakeClock()
    starts = []

    def plan(out):
        starts.append((clock.now(), list(out.batch.ids), out.batch.attempt))
        for position, item in enumerate(out.batch.items):
            if item == 0 and out.batch.attempt == 1:
                out.fail(position, OSError("once"))
            else:
                out.finish(position, after=0.01)

    retry = Retry(1, delay=lambda error, attempt: 7.0)
    engine, _ = build([plan], list(range(20)), clock=clock, retries=retry)
    assert all(o.ok for o in collect(engine))
    (again,) = [at for at, ids, attempt in starts if attempt == 2]
    assert again == pytest.approx(7.0, abs=0.05)
    assert max(at for at, _, attempt in starts if attempt == 1) < 1.0


def test_a_pause_holds_the_stage_back():
    """After Retry.pause nothing starts until it is over."""
    clock = FakeClock()
    starts = []

    def plan(out):
        starts.append(clock.now())
        for position, item in enumerate(out.batch.items):
            if item == 0 and out.batch.attempt == 1:
                out.fail(position, OSError("429"))
            else:
                out.finish(position, after=0.01)

    retry = Retry(1, delay=lambda error, attempt: Retry.pause(5.0))
    engine, _ = build([plan], list(range(50)), clock=clock, retries=retry)
    assert all(o.ok for o in collect(engine))
    assert not [at for at in starts if 0.1 < at < 5.0] and [at for at in starts if at >= 5.0]


@pytest.mark.parametrize(("rate", "workers"), [(10, 1), (100, 4), (1000, 16)])
def test_calls_start_at_the_rate(rate, workers):
    """One token per attempt, retries included: at most rate + 5 % + 1 in any second, the mean within 5 %."""
    clock = FakeClock(threads=True)
    starts = []

    def plan(out):
        starts.extend([clock.now()] * len(out.batch.items))
        for position, item in enumerate(out.batch.items):
            if item % 10 == 0 and out.batch.attempt == 1:
                out.fail(position, OSError("again"))
            else:
                out.finish(position, after=0.001)

    count = 10 * rate
    engine, _ = build([plan], iter(range(count)), clock=clock, workers=workers, rate=rate, retries=Retry(1, first=0.01))
    assert len(collect(engine)) == count
    assert len(starts) == count + count // 10
    assert max(sum(1 for t in starts if at <= t < at + 1) for at in starts[:: max(1, rate // 10)]) <= rate * 1.05 + 1
    assert starts[-1] == pytest.approx(11.0, rel=0.05)


def test_a_rate_with_costs():
    """Inputs of different cost share the tokens."""
    clock = FakeClock()
    engine, _ = build(
        [lambda out: out.finish()], list(range(100)), clock=clock, rate=Rate(10, cost=lambda x: 1 + x % 3)
    )
    assert len(collect(engine)) == 100
    assert clock.now() == pytest.approx(199 / 10, rel=0.06)


def test_batches_near_the_end_shrink():
    """With a known length no batch takes more than a fair part of what is left, so workers end together."""
    sizes = []

    def plan(out):
        sizes.append(len(out.batch.items))
        out.finish(after=0.001 * len(out.batch.items), seconds=0.00005)

    engine, _ = build([plan], list(range(5000)))
    assert len(collect(engine)) == 5000
    assert max(sizes) > 100 and sizes[-1] <= 2
    assert all(size <= -(-left // 4) + 1 for size, left in zip(sizes, 5000 - _before(sizes), strict=True))


def _before(sizes):
    import numpy

    return numpy.array([0, *itertools.accumulate(sizes)][:-1])


def test_a_fatal_result_ends_the_run():
    """A lane's fatal error is raised at once and every lane is closed."""
    engine, lanes = build(
        [lambda out: out.fatal(SetupFailed("no database"))], itertools.count(), clock=FakeClock(threads=True)
    )
    with pytest.raises(SetupFailed, match="no database"):
        collect(engine)
    engine.close()
    assert lanes[0].closed


def test_deliveries_after_cancel_are_harmless():
    """What a lane still delivers after the run was closed changes nothing."""
    engine, (lane,) = build([None], list(range(10)))
    engine._feed()
    engine.close()
    assert lane.cancelled
    for out in list(lane.open):
        out.finish()


def test_failures_beyond_the_limit_stop_new_work():
    """After max_failures nothing new is started."""

    def plan(out):
        for position in range(len(out.batch.items)):
            out.fail(position, ValueError())

    engine, (lane,) = build([plan], itertools.count(), max_failures=5, clock=FakeClock(threads=True))
    with pytest.raises(TooManyFailures):
        collect(engine)
    engine.close()
    assert sum(len(b.items) for b in lane.started) < 20


def test_idle_waits_have_no_end():
    """While calls run and nothing is due, the engine waits without a time-out: idle costs no CPU."""
    clock = FakeClock()
    engine, _ = build([lambda out: out.finish(after=100.0)], list(range(4)), clock=clock)
    assert len(collect(engine)) == 4
    assert clock.jumps == [100.0]


def test_seconds_add_up_over_attempts_and_stages():
    """An Outcome's seconds are those of all its calls: failed attempts and earlier stages included."""

    def first(out):
        for position in range(len(out.batch.items)):
            if out.batch.attempt == 1:
                out.fail(position, OSError("once"), seconds=0.5)
            else:
                out.finish(position, seconds=0.25)

    plans = [first, lambda out: out.finish(seconds=2.0)]
    engine, _ = build(plans, [1], retries=Retry(1, first=0.0))
    (outcome,) = collect(engine)
    assert outcome.seconds == pytest.approx(0.5 + 0.25 + 2.0)
    assert [t.seconds for t in outcome.tries] == [0.5]


def test_an_empty_delivery_only_asks_for_more():
    """A lane may deliver nothing, with a notice or without; no input is counted for it."""

    def plan(out):
        out.notify("still at it")
        out.finish()

    engine, _ = build([plan], list(range(5)))
    assert [o.value for o in collect(engine)] == list(range(5))
    assert "still at it" in engine.notices


def test_odd_exceptions_do_not_end_the_run():
    """An exception whose str raises, or whose notes are no list, is that input's error all the same."""

    class Odd(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    odd = Odd()
    odd.__notes__ = "not a list"
    engine, _ = build([lambda out: out.fail(0, odd) if out.batch.items == [0] else out.finish()], [0, 1], retries=0)
    outcomes = collect(engine)
    assert outcomes[0].error is odd and outcomes[1].ok


def test_a_token_that_comes_due_while_the_engine_looks_at_the_clock():
    """Time goes on between two looks at the clock: a token or a pause that ends in between is not slept through."""

    class Ticking(FakeClock):
        def now(self):
            self._now += 0.00007
            return self._now

    rng = random.Random(1)
    late = lambda out: out.finish(after=rng.uniform(0.0001, 0.001))
    engine, _ = build([late], list(range(500)), clock=Ticking(), rate=1000, workers=1)
    assert len(collect(engine)) == 500
    retry = Retry(1, delay=lambda error, attempt: Retry.pause(0.0005))

    def plan(out):
        for position in range(len(out.batch.items)):
            out.fail(position, OSError()) if out.batch.attempt == 1 else out.finish(position)

    engine, _ = build([plan], list(range(100)), clock=Ticking(), retries=retry)
    assert all(o.ok for o in collect(engine))


def test_a_stopped_run_hands_over_what_it_has_finished():
    """max_failures ends the run; outcomes that waited for an earlier input are seen before the error is raised."""
    first = []

    def plan(out):
        for position, item in enumerate(out.batch.items):
            if item == 0:
                first.append(out)  # never ends
            elif item % 2:
                out.fail(position, ValueError(item))
            else:
                out.finish(position)

    engine, _ = build([plan], list(range(100)), max_failures=3, workers=4)
    seen = []
    with pytest.raises(TooManyFailures) as caught:
        while (results := engine.next_list()) is not None:
            seen += results
    engine.close()
    assert first and [o.index for o in seen] == sorted(o.index for o in seen)
    assert sum(not o.ok for o in seen) == caught.value.report.failed
    assert sum(o.ok for o in seen) == caught.value.report.succeeded


def test_a_window_smaller_than_a_group_of_groups_still_ends():
    """The window makes room for one whole group of the last batch, however many inputs that takes."""
    groups = [(1, Batched(3)), (2, Batched(4))]
    engine, _ = build([lambda out: out.finish()], list(range(30)), groups=groups, window=2)
    assert [x for o in collect(engine) for part in o.value for x in part] == list(range(30))
