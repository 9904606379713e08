"""The inline lane beyond the contract: parts, slices, and whose random state it is."""

from __future__ import annotations

import random
import time
import warnings

import pytest
from lane_inbox import Outcomes

from duodao.lanes.base import Work
from duodao.lanes.inline import Inline


def lane_of(function, **options):
    return Inline(Work(function, "f", **options))


def test_a_long_batch_is_delivered_in_parts():
    """Whenever 20 ms have passed, what has ended goes out; the positions of all parts cover the batch in order."""
    got = Outcomes(lane_of(lambda x: time.sleep(x) or x))
    got.start([0.0, 0.025, 0.025, 0.0])
    got.until(4)
    assert [list(result.positions) for result in got.results] == [[0, 1], [2], [3]]


def test_a_batch_that_ends_in_time_is_one_delivery():
    """Quick calls arrive whole: positions None, no time per call."""
    got = Outcomes(lane_of(lambda x: x))
    for first in range(0, 4096 * 3, 4096):
        got.start(range(4096), first)
    got.until(4096 * 3)
    assert [result.positions for result in got.results[1:]] == [None, None]
    assert got.results[-1].each is None


def test_slow_calls_after_quick_ones_are_timed_singly():
    """A slice that turns out slow makes the next ones short: later slow calls are delivered alone."""
    lane = lane_of(lambda x: time.sleep(x) or x)
    got = Outcomes(lane)
    got.start([0.0] * 50)
    lane._slice = 1000  # as after thousands of calls of a microsecond
    got.start([0.0] * 10 + [0.021] * 3, first=100)
    got.start([0.021] * 2, first=200)
    got.until(65)
    assert [list(result.positions or range(2)) for result in got.results[-2:]] == [[0], [1]]


def test_failures_in_every_form_of_the_loop():
    """An error costs its own item whether calls are timed singly or run in slices."""
    got = Outcomes(lane_of(lambda x: 1 // (x % 7)))
    for first in range(0, 20_000, 4000):
        got.start(range(first, first + 4000), first)
    got.until(20_000)
    assert sorted(got.failures) == list(range(0, 20_000, 7))


def test_seed_sets_the_global_state_and_gives_it_back():
    """With seed a function may use `random` itself; the caller's own dice are not touched."""
    got = Outcomes(lane_of(lambda _: random.random(), seed=3))
    random.seed(99)
    expected = random.random()
    random.seed(99)
    got.start(range(3), first=10)
    assert random.random() == expected
    again = Outcomes(lane_of(lambda _: random.random(), seed=3))
    again.start(range(2), first=11)
    got.until(3)
    again.until(2)
    assert [got.values[11], got.values[12]] == [again.values[11], again.values[12]]


def test_numpy_draws_depend_on_the_seed_too():
    """numpy's global state is set as well, where numpy is loaded."""
    numpy = pytest.importorskip("numpy")
    one, two = (Outcomes(lane_of(lambda _: float(numpy.random.random()), seed=3)) for _ in range(2))
    one.start([0, 0])
    two.start([0, 0])
    assert one.until(2).values == two.until(2).values


def test_a_resource_that_fails_to_close_warns():
    """close() tells of a resource that could not be closed, and ends all the same."""

    class Stubborn:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError("won't close")

    lane = lane_of(lambda x, thing: x, setup={"thing": Stubborn})
    Outcomes(lane).start([1])
    with pytest.warns(RuntimeWarning, match="won't close"):
        lane.close(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lane.close(0)
