"""When a task runs again, and the timers that see to it."""

from __future__ import annotations

import logging
import threading

import pytest

from duodao.clock import SYSTEM
from duodao.errors import UsageError
from duodao.pipeline.restart import Intensity, Restart, as_restart
from duodao.pipeline.timers import Timers
from duodao.testing.clock import FakeClock


def test_what_restart_accepts():
    """None, the two words, or a plan; everything else names them."""
    assert as_restart(None) is None
    assert as_restart("on-failure") == Restart()
    assert as_restart("always") == Restart("always")
    plan = Restart(limit=1)
    assert as_restart(plan) is plan
    for bad in ("never", True, 3):
        with pytest.raises(UsageError, match="on-failure"):
            as_restart(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"when": "never"}, {"limit": 0}, {"limit": 1.5}, {"limit": True}, {"period": -1}, {"delay": "x"},
        {"factor": 0.5}, {"jitter": 2}, {"jitter": -1}, {"at_most": float("nan")},
    ],
)  # fmt: skip
def test_wrong_plans(bad):
    """A wrong option is named."""
    with pytest.raises(UsageError, match=next(iter(bad))):
        Restart(**bad)


def test_only_failures():
    """ "on-failure" lets a success be the end; "always" doesn't."""
    clock = FakeClock()
    assert Intensity(Restart(), clock).after(failed=False) is None
    assert Intensity(Restart("always", jitter=0), clock).after(failed=False) == 0.1


def test_the_delay_grows_and_falls_back():
    """Each restart within the period waits longer; once they are old, the first delay counts again."""
    clock = FakeClock()
    counted = Intensity(Restart(limit=10, period=30, delay=1, factor=2, at_most=5, jitter=0), clock)
    assert [counted.after(failed=True) for _ in range(5)] == [1, 2, 4, 5, 5]
    clock.advance(31)
    assert counted.after(failed=True) == 1


def test_the_limit_is_within_the_period():
    """limit restarts within period seconds: the next end is the last; slower ones go on for ever."""
    clock = FakeClock()
    quick = Intensity(Restart(limit=3, period=10), clock)
    assert [quick.after(failed=True) is None for _ in range(4)] == [False, False, False, True]
    assert quick.spent
    slow = Intensity(Restart(limit=3, period=10), clock)
    for _ in range(100):
        assert slow.after(failed=True) is not None
        clock.advance(4)
    assert not slow.spent


def test_jitter_adds():
    """The delay is between delay and delay * (1 + jitter)."""
    counted = Intensity(Restart(limit=1000, factor=1, delay=1, jitter=0.5), FakeClock())
    delays = [counted.after(failed=True) for _ in range(200)]
    assert 1 <= min(delays) < max(delays) <= 1.5


def test_timers_call_in_order_of_time():
    """Whatever was planned first: the earliest is called first."""
    clock, seen, over = FakeClock(threads=True), [], threading.Event()
    gate = threading.Event()
    timers = Timers("test-timers", clock)
    timers.call(0, lambda: gate.wait(10))
    timers.call(3, lambda: (seen.append(3), over.set()))
    timers.call(1, lambda: seen.append(1))
    timers.call(2, lambda: seen.append(2))
    gate.set()
    assert over.wait(10)
    timers.close()
    assert seen == [1, 2, 3]


def test_a_timer_that_fails_harms_no_other(caplog):
    """It is logged, and the next is called."""
    over = threading.Event()
    timers = Timers("test-timers", FakeClock(threads=True))
    with caplog.at_level(logging.ERROR, "duodao"):
        timers.call(1, lambda: 1 / 0)
        timers.call(2, over.set)
        assert over.wait(10)
        timers.close()
    assert "ZeroDivisionError" in caplog.text


def test_closed_timers_call_nothing():
    """What was not due is dropped, what comes later is not taken, and closing again is nothing."""
    timers = Timers("test-timers", FakeClock(threads=True))
    assert timers.thread is None
    timers.close()
    timers.call(0, pytest.fail)
    assert timers.thread is None
    timers.close()


def test_a_thousand_restarts():
    """The delay grows to its end, also where the factor's power is above what a float holds."""
    clock = FakeClock()
    counted = Intensity(Restart(limit=3000, period=1e9, delay=1, at_most=5, jitter=0), clock)
    assert {counted.after(failed=True) for _ in range(1100)} == {1, 2, 4, 5}
    at_once = Intensity(Restart(limit=3000, period=1e9, delay=0), clock)
    assert {at_once.after(failed=True) for _ in range(1100)} == {0}


@pytest.mark.parametrize("delay", [1e12, float("inf")])
def test_a_timer_that_is_never_due(delay):
    """It neither fails nor keeps the others from their times."""
    called = threading.Event()
    timers = Timers("test-far", SYSTEM)
    timers.call(delay, lambda: None)
    timers.call(0, called.set)
    assert called.wait(10)
    timers.close()
