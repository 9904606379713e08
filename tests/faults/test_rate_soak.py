"""Rates on every lane in real time: the long form of what the engine's tests hold on a clock of their own."""

import bisect
import os
import time

import pytest

import duodao

RATES = [5, 50, 400]


def stamp(x):
    return time.clock_gettime(time.CLOCK_MONOTONIC), os.getpid()


async def astamp(x):
    return stamp(x)


@pytest.mark.soak
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("lane", ["inline", "thread", "process", "coroutine"])
def test_no_second_sees_more_than_the_rate(lane, rate):
    """At most rate + 5 % + 1 calls start in any second, and the mean over ten seconds is within 5 %."""
    function = astamp if lane == "coroutine" else stamp
    times = sorted(at for at, _ in duodao.map(function, range(rate * 10), lane=lane, rate=rate))
    most = max(bisect.bisect_left(times, at + 1.0) - place for place, at in enumerate(times))
    assert most <= rate * 1.05 + 1
    assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(rate, rel=0.05)
