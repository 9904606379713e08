"""Tokens and retries, on a clock that the test moves."""

import random

import pytest

from duodao.errors import UsageError, WorkerDied
from duodao.pipeline.rate import Meter, Rate, as_rates
from duodao.pipeline.retry import Pause, Retry, as_retry


def starts(rates, seconds, price=None, step=0.001):
    """Call times of a greedy caller that asks whenever the meter says so."""
    meter = Meter(as_rates(rates), 0.0)
    now, out = 0.0, []
    while now < seconds:
        count, wait = meter.admit([price] * 1000, now)
        out += [now] * count
        now += max(wait, step)
    return out


@pytest.mark.parametrize("rate", [1, 3, 10, 37, 100, 1000, 0.5])
def test_no_second_sees_more_than_the_rate(rate):
    """At most rate + 5 % + 1 calls start in any second, and the mean over ten seconds is within 5 % (and one call)."""
    times = starts(rate, 10.0)
    most = max(sum(1 for t in times if at <= t < at + 1.0) for at in sorted(set(times)))
    assert most <= rate * 1.05 + 1 + 1e-9
    assert abs(len(times) - 10 * rate) <= 0.05 * 10 * rate + 1


def test_several_limits_hold_together():
    """Of several limits the narrowest decides at each moment."""
    times = starts([Rate(100), Rate(120, per=60)], 60.0, step=0.01)
    assert abs(len(times) - 120) <= 6


def test_cost_is_taken_per_input():
    """cost= makes one input take several tokens."""
    times = starts(Rate(100, cost=lambda item: 10), 10.0)
    assert abs(len(times) - 100) <= 6


def test_a_call_dearer_than_the_bucket_goes_when_it_is_full():
    """An input that costs more than a second's tokens is delayed, never stuck."""
    times = starts(Rate(2, cost=lambda item: 10), 30.0)
    assert len(times) in (6, 7)


@pytest.mark.parametrize("wrong", [0, -1, "10", True, float("nan"), Ellipsis])
def test_wrong_rates_are_refused(wrong):
    """A rate that is no number over 0 is a UsageError."""
    with pytest.raises(UsageError):
        as_rates(wrong)


def test_waits_grow_and_are_capped():
    """Waits grow by `factor` up to `at_most`, less a random part of at most a half."""
    retry = Retry(10, first=1.0, factor=2.0, at_most=5.0)
    random.seed(1)
    waits = [retry.wait(ValueError(), attempt) for attempt in range(1, 6)]
    for wait, full in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert full / 2 <= wait <= full
    assert retry.wait(ValueError(), 11) is None


def test_only_named_errors_are_retried():
    """`on` limits retries to these types; a worker's death is not one of them."""
    retry = Retry(3, on=OSError)
    assert retry.wait(OSError(), 1) is not None
    assert retry.wait(ValueError(), 1) is None
    assert Retry(3).wait(WorkerDied("x", exitcode=-9), 1) is None


def test_delay_function_decides_and_may_pause():
    """delay(error, attempt) replaces the formula; Retry.pause marks a wait for the whole stage."""
    retry = Retry(3, delay=lambda error, attempt: Retry.pause(attempt * 2))
    wait = retry.wait(ValueError(), 2)
    assert wait == 4 and type(wait) is Pause


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, None])
def test_wrong_retries_are_refused(wrong):
    """retries= takes a whole number from 0 or a Retry."""
    with pytest.raises(UsageError):
        as_retry(wrong)
