"""`duodao.map` is the builtin `map`, wherever the calls run and however they fail on the way."""

from __future__ import annotations

import collections
import itertools
import random
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import duodao

FAST = settings(max_examples=40, deadline=None)
FORKING = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PLAIN_LANES = ("inline", "thread", "process")
ITEMS = st.lists(
    st.one_of(st.integers(), st.text(max_size=20), st.none(), st.tuples(st.integers(), st.binary())), max_size=60
)


def wrap(x: object) -> tuple[object, str]:
    return (x, repr(x))


async def awrap(x: object) -> tuple[object, str]:
    return wrap(x)


def increment(x: int) -> int:
    return x + 1


async def adouble(x: int) -> int:
    return x * 2


def negate(x: int) -> int:
    return -x


def draw(_: int) -> float:
    return random.random()


def draw_own(_: int, rng: random.Random) -> float:
    return rng.random()


def fail_if_negative(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return x


@pytest.mark.parametrize("lane", PLAIN_LANES)
@FORKING
@given(items=ITEMS, workers=st.integers(1, 3))
def test_equals_the_builtin(lane, items, workers) -> None:
    """The results of any list on any lane with any width are those of the builtin, in the same order."""
    assert list(duodao.map(wrap, items, lane=lane, workers=1 if lane == "inline" else workers)) == list(
        map(wrap, items)
    )


@FAST
@given(items=ITEMS, workers=st.integers(1, 5))
def test_coroutines_equal_the_builtin(items, workers) -> None:
    """An async function gives the results of its plain twin under the builtin."""
    assert list(duodao.map(awrap, items, workers=workers)) == list(map(wrap, items))


@FORKING
@given(items=ITEMS)
def test_auto_equals_the_builtin(items) -> None:
    """Whatever lane is chosen, the results are those of the builtin."""
    assert list(duodao.map(wrap, items)) == list(map(wrap, items))


@pytest.mark.parametrize("lane", PLAIN_LANES)
@FORKING
@given(items=st.lists(st.integers(-3, 50), max_size=60))
def test_unordered_is_a_permutation(lane, items) -> None:
    """Without order the same results come, each as often."""
    found = duodao.map(increment, items, lane=lane, ordered=False)
    assert collections.Counter(found) == collections.Counter(map(increment, items))


STEPS = {"increment": increment, "negate": negate, "adouble": adouble}
STAGES = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(PLAIN_LANES), st.integers(1, 3)), min_size=1, max_size=4
)


@FORKING
@given(items=st.lists(st.integers(), max_size=40), stages=STAGES)
def test_pipelines_equal_composition(items, stages) -> None:
    """A pipeline over any mixture of lanes gives what its functions give one after the other."""
    line, expected = None, items
    for name, lane, workers in stages:
        options = {} if name == "adouble" else {"lane": lane}
        width = 1 if options.get("lane") == "inline" else workers
        step = STEPS[name]
        line = (
            duodao.Pipeline(step, workers=width, **options)
            if line is None
            else line.then(step, workers=width, **options)
        )
        plain = {"increment": increment, "negate": negate, "adouble": lambda x: x * 2}[name]
        expected = [plain(x) for x in expected]
    assert list(duodao.map(line, items)) == expected


@FAST
@given(items=st.lists(st.integers(), max_size=60), size=st.integers(1, 9))
def test_batches_concatenate_to_the_input(items, size) -> None:
    """Batches hold every value once and in order, each is full but the last, none is empty."""
    batches = list(duodao.map(duodao.Pipeline(increment, lane="thread").batch(size), items))
    assert list(itertools.chain.from_iterable(batches)) == [x + 1 for x in items]
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)


@pytest.mark.parametrize("lane", ["inline", "thread"])
@FAST
@given(failures=st.lists(st.integers(0, 4), max_size=30), times=st.integers(0, 3))
def test_each_input_has_one_outcome(lane, failures, times) -> None:
    """Whatever fails how often: each input gets exactly one outcome, and as many attempts as it needs or may have."""
    left, lock = dict(enumerate(failures)), threading.Lock()

    def shaky(index: int) -> int:
        with lock:
            left[index] -= 1
            fails = left[index] >= 0
        if fails:
            raise OSError(index)
        return index

    retry = duodao.Retry(times, first=0) if times else 0
    outcomes = list(duodao.map(shaky, range(len(failures)), lane=lane, retries=retry, errors="collect"))
    assert [outcome.index for outcome in outcomes] == list(range(len(failures)))
    for outcome, count in zip(outcomes, failures, strict=True):
        assert outcome.ok == (count <= times)
        assert outcome.attempts == min(count, times) + 1
        assert outcome.ok or isinstance(outcome.error, OSError)


@pytest.mark.parametrize("lane", PLAIN_LANES)
@FORKING
@given(items=st.lists(st.integers(-2, 8), max_size=40))
def test_the_first_failure_is_raised_in_its_place(lane, items) -> None:
    """With errors="raise" the results before the first failing input come, then its own exception."""
    got, expected = [], list(itertools.takewhile(lambda x: x >= 0, items))
    if len(expected) == len(items):
        assert list(duodao.map(fail_if_negative, items, lane=lane)) == items
        return
    with pytest.raises(ValueError) as caught, duodao.map(fail_if_negative, items, lane=lane) as results:
        got.extend(results)
    assert caught.value.args == (items[len(expected)],)
    assert got == expected


@pytest.mark.parametrize("lane", ["inline", "thread", "process"])
@FORKING
@given(window=st.integers(1, 40), take=st.integers(0, 25))
def test_the_window_is_never_exceeded(lane, window, take) -> None:
    """At no moment are more than `window` inputs read and not yet handed to the caller."""
    read = 0

    def source():
        nonlocal read
        for x in itertools.count():
            read += 1
            yield x

    with duodao.map(increment, source(), lane=lane, window=window) as results:
        for handed, value in enumerate(itertools.islice(results, take)):
            assert value == handed + 1
            assert read <= handed + window + 1
    assert read <= take + window


@FORKING
@given(seed=st.integers(0, 2**40), n=st.integers(0, 40), workers=st.integers(1, 3))
def test_seeds_are_reproducible(seed, n, workers) -> None:
    """With `seed` a random result depends on seed and input position alone: not on lane, width or run."""
    reference = list(duodao.map(draw, range(n), lane="inline", seed=seed))
    assert list(duodao.map(draw, range(n), lane="process", workers=workers, seed=seed)) == reference
    own = list(duodao.map(draw_own, range(n), lane="inline", seed=seed))
    assert list(duodao.map(draw_own, range(n), lane="thread", workers=workers, seed=seed)) == own
    assert len(set(reference)) == n
