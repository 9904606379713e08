"""The contract of lanes/base.py, as far as it applies to programs: over both protocols of the command lane."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from lane_cases import Gate, Inbox

from duodao.errors import CallTimeout, Closed, CommandFailed
from duodao.lanes.base import Batch, Work
from duodao.lanes.command import Commands
from duodao.lanes.program import Command

PROGRAM = str(Path(__file__).with_name("program_calls.py"))
PYTHON = (sys.executable, "-I", "-S")


@pytest.fixture(params=["once", "jsonl"])
def protocol(request):
    return request.param


@pytest.fixture
def make(protocol):
    """Makes lanes; closes them, and holds invariant 5 for all of them together."""
    made = []

    def factory(what, *args, workers=2, timeout=None):
        command = Command([*PYTHON, PROGRAM, protocol, what, *args], protocol=protocol)
        lane = Commands(Work(command, what, timeout=timeout), workers)
        made.append(lane)
        return lane, _Numbers(lane)

    yield factory
    for lane in made:
        lane.close(5.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "duodao-command-lane"]


class _Numbers(Inbox):
    """What a program prints is text."""

    def finish(self):
        super().finish()
        self.values = {number: int(value) for number, value in self.values.items()}


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.close()


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("size", [1, 2, 24])
def test_each_position_exactly_once(make, size, careful):
    """Every position of a batch, plain or careful, is delivered once and with its own value."""
    _, inbox = make("square")
    inbox.start(list(range(size)), careful=careful)
    inbox.finish()
    assert inbox.values == {i: i * i for i in range(size)}
    assert not inbox.failures


def test_an_empty_batch(make):
    """A batch without items is delivered as such, and starts nothing."""
    lane, inbox = make("square")
    lane.start(Batch(range(0), []), inbox.queue.put)
    assert inbox.queue.get(timeout=30).values == []


def test_many_batches_at_once(make, protocol):
    """Batches that overlap on several programs don't mix their outcomes; ids may have gaps."""
    _, inbox = make("square", workers=3)
    each = 50 if protocol == "jsonl" else 3
    for first in range(0, 10 * each, each):
        inbox.start(list(range(first, first + each)), ids=[2 * n for n in range(first, first + each)])
    inbox.finish()
    assert inbox.values == {2 * i: i * i for i in range(10 * each)}


def test_errors_are_the_items_own(make):
    """What a program says of an item fails that item and no other."""
    _, inbox = make("odd_fails")
    inbox.start(list(range(6)))
    inbox.finish()
    assert inbox.values == {0: 0, 2: 2, 4: 4}
    for number in (1, 3, 5):
        failure = inbox.failures[number]
        assert failure.kind == "error"
        assert type(failure.error) is CommandFailed
        assert f"odd {number}" in str(failure.error)


def test_a_slow_call_is_delivered_when_it_completes(make, gate):
    """A call of 20 ms or more doesn't wait for the rest of its batch."""
    _, inbox = make("gated", gate.gate, gate.started)
    inbox.start([1000, -1])
    while 0 not in inbox.values:
        inbox.next()
    assert 1 not in inbox.values
    gate.begun()
    gate.open()
    inbox.finish()
    assert inbox.values == {0: 1000, 1: -1}


def test_a_call_that_hangs_holds_up_no_other_worker(make, gate):
    """While one call waits, other batches end on the other worker."""
    _, inbox = make("gated", gate.gate, gate.started)
    inbox.start([-1])
    gate.begun()
    inbox.start([1, 2, 3], ids=[1, 2, 3])
    while len(inbox.values) < 3:
        inbox.next()
    gate.open()
    inbox.finish()
    assert inbox.values == {0: -1, 1: 1, 2: 2, 3: 3}


def test_workers_run_at_the_same_time(make, gate):
    """`workers` calls are in flight together, and not one more."""
    _, inbox = make("gated", gate.gate, gate.started, workers=3)
    for number in range(4):
        inbox.start([-1 - number], ids=[number])
    begun = gate.begun(3)
    assert len(begun) == 3
    gate.open()
    inbox.next()
    assert begun | gate.begun() == {-1, -2, -3, -4}
    gate.open(3)
    inbox.finish()


def test_timeout(make, gate):
    """A call that runs too long fails with CallTimeout; its mates, before and after it, succeed."""
    _, inbox = make("gated", gate.gate, gate.started, timeout=2.0, workers=1)
    inbox.start([1, -1, 3, 4])
    inbox.finish()
    gate.begun()
    assert inbox.values == {0: 1, 2: 3, 3: 4}
    failure = inbox.failures[1]
    assert failure.kind == "timeout"
    assert isinstance(failure.error, CallTimeout)
    assert failure.seconds >= 2.0


def test_cancel_stops_what_runs_and_what_has_not_begun(make, gate):
    """After cancel the batch's program is gone, its rest doesn't run, and the lane goes on with others."""
    lane, inbox = make("gated", gate.gate, gate.started, workers=1)
    first = inbox.start([-1, -2, -3])
    gate.begun()
    lane.cancel(first)
    second = inbox.start([5], ids=[7])
    while 7 not in inbox.values:
        result = inbox.queue.get(timeout=30)
        if result.batch is second:
            inbox.values[7] = int(result.values[0])
    lane.close(5.0)
    gate.mark()
    assert gate.begun() == {0}, "an item that had not begun was run"


def test_cancel_of_what_is_over_or_unknown(make):
    """cancel is a no-op for a batch that has ended and for one the lane never saw."""
    lane, inbox = make("square")
    batch = inbox.start([1])
    inbox.finish()
    lane.cancel(batch)
    lane.cancel(Batch(range(1), [1]))
    inbox.start([2], ids=[5])
    inbox.finish()
    assert inbox.values == {0: 1, 5: 4}


def test_close_twice_and_before_use(make):
    """close is idempotent, also for a lane that never ran anything; then start says that it is closed."""
    lane, inbox = make("square")
    lane.close(1.0)
    lane.close(1.0)
    lane, inbox = make("square")
    inbox.start([1])
    inbox.finish()
    lane.close(1.0)
    lane.close(1.0)
    with pytest.raises(Closed):
        inbox.start([2], ids=[9])


def test_close_with_work_in_flight(make, gate):
    """close(0) kills what runs and returns when it is gone; close(grace) lets it end."""
    lane, inbox = make("gated", gate.gate, gate.started)
    inbox.start([-1, -5, -6])
    inbox.start([-2], ids=[3])
    gate.begun(2)
    lane.close(0.0)
    lane, inbox = make("gated", gate.gate, gate.started)
    inbox.start([-1])
    gate.begun()
    closing = threading.Thread(target=lane.close, args=(30.0,))
    closing.start()
    gate.open()
    inbox.finish()
    closing.join(10)
    assert not closing.is_alive()
    assert inbox.values == {0: -1}


def test_descriptors_are_given_back(make):
    """Lanes made, used and closed leave no descriptor open."""

    def use():
        lane, inbox = make("square")
        inbox.start([1, 2, 3])
        inbox.finish()
        lane.close(5.0)

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        use()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_times_are_told(make):
    """The seconds of a delivery cover its calls; `each` sums up to no more."""
    _, inbox = make("gated", "", "")
    inbox.start([1000, 1, 2])
    inbox.finish()
    assert sum(result.seconds for result in inbox.results) >= 0.029
    for result in inbox.results:
        assert sum(result.each) <= result.seconds * 1.01 + 0.001
