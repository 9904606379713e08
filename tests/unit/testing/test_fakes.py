"""The fakes keep the rules of what they stand for."""

from __future__ import annotations

import queue

import pytest

from duodao.lanes.base import Batch
from duodao.testing.clock import FakeClock, Stalled
from duodao.testing.lane import ScriptedLane


def test_get_jumps_to_the_deadline():
    """An empty inbox ends at the deadline, at once; an entry comes without any time passing."""
    clock, inbox = FakeClock(), queue.SimpleQueue()
    assert clock.get(inbox, 5.0) is None
    assert clock.now() == 5.0
    inbox.put("x")
    assert clock.get(inbox, 5.0) == "x"
    assert clock.now() == 5.0


def test_planned_events_happen_on_the_way():
    """An event before the deadline happens at its own time and may fill the inbox."""
    clock, inbox = FakeClock(), queue.SimpleQueue()
    clock.after(2.0, lambda: inbox.put("later"))
    clock.after(1.0, lambda: inbox.put("sooner"))
    assert clock.get(inbox, None) == "sooner"
    assert clock.now() == 1.0
    assert clock.get(inbox, 9.0) == "later"
    clock.advance(3.0)
    assert clock.jumps == [1.0, 2.0, 5.0]


def test_a_wait_without_end_is_found_out():
    """Waiting for nothing without a time-out is an error and not a hang."""
    with pytest.raises(Stalled):
        FakeClock().get(queue.SimpleQueue(), None)


def test_scripted_outcomes_in_any_order():
    """Parts, failures and losses arrive as the test says, each position once."""
    got, lane = [], ScriptedLane(str.upper)
    lane.start(Batch(range(4), ["a", "b", "c", "d"]), got.append)
    out = lane.open[0]
    out.finish(2)
    out.fail(0, ValueError("no"))
    out.lose(3)
    out.finish()
    assert [list(r.positions) for r in got] == [[2], [0], [3], [1]]
    assert got[0].values == ["C"]
    assert got[2].errors[0].kind == "lost"
    assert not lane.open
    with pytest.raises(AssertionError, match="delivered before"):
        out.finish(1)


def test_a_plan_with_a_clock():
    """A plan answers every batch, as late as it says."""
    clock, inbox = FakeClock(), queue.SimpleQueue()
    lane = ScriptedLane(lambda x: 1 // x, plan=lambda out: out.finish(after=3.0), clock=clock)
    lane.start(Batch(range(2), [1, 0]), inbox.put)
    result = clock.get(inbox, None)
    assert clock.now() == 3.0
    assert result.positions is None
    assert type(result.errors[1].error) is ZeroDivisionError
