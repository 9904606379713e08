"""The thread lane beyond the contract: sharing, the watchdog, time-outs, builds without the GIL."""

from __future__ import annotations

import contextvars
import random
import threading
import time

import pytest
from lane_inbox import Outcomes

from duodao.lanes import shares, thread
from duodao.lanes.base import Work
from duodao.lanes.thread import Threads


@pytest.fixture
def make():
    lanes = []

    def factory(function, workers=2, **options):
        lane = Threads(Work(function, "f", **options), workers)
        lanes.append(lane)
        return lane, Outcomes(lane)

    yield factory
    for lane in lanes:
        lane.close(10)
        if lane._watchdog is not None:
            assert not lane._watchdog.is_alive()


class Hold:
    """A function that waits for the test at item "wait"."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, item):
        if item == "wait":
            self.begun.set()
            assert self.go.wait(30)
        return item


@pytest.mark.parametrize("size", [5, 500])
def test_another_thread_takes_what_a_slow_call_holds_up(make, size):
    """One call that hangs doesn't hold up the rest of its batch: another thread joins, in both forms of a run."""
    hold = Hold()
    _, got = make(hold)
    got.start([*range(3), "wait", *range(size)])
    got.until(3 + size)
    assert 3 not in got.values
    hold.go.set()
    got.until(4 + size)


@pytest.mark.parametrize("size", [5, 500])
def test_what_has_ended_goes_out_though_the_only_thread_hangs(make, size):
    """Outcomes before a call that hangs are delivered after 20 ms, with no second thread to help."""
    hold = Hold()
    _, got = make(hold, workers=1)
    got.start([*range(size), "wait", "last"])
    got.until(size)
    assert hold.begun.wait(30)
    hold.go.set()
    got.until(size + 2)
    assert list(got.values.values()).count("last") == 1


def test_a_thread_that_becomes_free_joins_before_it_blocks(make):
    """A thread that ends its own batch helps with one that is under way."""
    first, second = Hold(), Hold()
    _, got = make(lambda item: item[0](item[1]))
    got.start([(first, "wait")])
    assert first.begun.wait(30)
    got.start([(second, "wait"), (second, 1), (second, 2)], first=10)
    assert second.begun.wait(30)
    first.go.set()
    got.until(3)
    assert {0, 11, 12} == set(got.values)
    second.go.set()
    got.until(4)


def test_splits_lose_and_repeat_nothing(make, monkeypatch):
    """The watchdog splits runs at every moment of their life: each position is still delivered once."""
    monkeypatch.setattr(thread, "PROMPT", 0.0)
    _, got = make(lambda item: item, workers=4)
    total = 0
    for size in random.Random(5).choices([64, 65, 100, 3000], k=150):
        got.start(range(total, total + size), total)
        total += size
    got.until(total)
    assert got.values == {i: i for i in range(total)}


def test_time_out_gives_the_call_up_and_says_so(make):
    """The item fails, another thread takes over, the notice says the call may still run, its late result is dropped."""
    hold = Hold()
    lane, got = make(hold, workers=1, timeout=0.05)
    got.start([1, "wait", 2])
    got.until(3)
    assert got.values == {0: 1, 2: 2}
    assert got.failures[1].kind == "timeout"
    assert ["may still run" in notice for notice in got.notices] == [True]
    stuck = [t for t in threading.enumerate() if t.name.startswith("duodao-thread-") and t.daemon]
    hold.go.set()
    lane.close(10)
    for other in stuck:
        other.join(10)
    assert got.queue.empty()


def test_a_thread_that_was_given_up_still_closes_its_resources(make):
    """Resources of a lost thread are closed when its call ends at last; its successor opens its own."""
    hold, events = Hold(), []
    lock = threading.Lock()

    class Resource:
        def __enter__(self):
            with lock:
                events.append("open")
            return self

        def __exit__(self, *_):
            with lock:
                events.append("close")

    lane, got = make(lambda item, thing: hold(item), workers=1, timeout=0.05, setup={"thing": Resource})
    got.start(["wait", 2])
    got.until(2)
    lost = [t for t in threading.enumerate() if t.name == "duodao-thread-1"]
    hold.go.set()
    for other in lost:
        other.join(10)
    lane.close(10)
    assert sorted(events) == ["close", "close", "open", "open"]


def test_an_idle_lane_wakes_nobody(make, monkeypatch):
    """When nothing runs the watchdog waits without a time-out."""
    idle = threading.Event()

    class Clock:
        @staticmethod
        def get(inbox, timeout):
            if timeout is None and started:
                idle.set()
            return real.get(inbox, timeout)

    started, real = [], thread.SYSTEM
    monkeypatch.setattr(thread, "SYSTEM", Clock)
    _, got = make(lambda item: time.sleep(0.001) or item, timeout=60)
    got.start(range(5))
    got.until(5)
    started.append(True)
    # The last deadline it knows of is 60 s away or 20 ms old: it comes to rest at the end of the first or at once.
    got.lane._bell.put(True)
    assert idle.wait(30)


def test_no_thread_before_the_first_batch(make):
    """A lane that is only made costs no thread."""
    lane, _ = make(lambda item: item)
    assert not lane._threads
    assert lane._watchdog is None


def test_context_variables(make):
    """Calls see the context of the place where the lane was made, and what they set stays in their thread."""
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    def call(item):
        seen = variable.get()
        variable.set(item)
        return seen

    _, got = make(call, workers=1)
    got.start([1, 2])
    got.until(2)
    assert got.values == {0: 7, 1: 1}
    assert variable.get() == 7


def test_without_the_gil(make, monkeypatch):
    """On a build without the GIL every run is shared through a guarded iterator; each item comes out once."""
    monkeypatch.setattr(shares, "_gil", lambda: False)
    _, got = make(lambda item: item, workers=4)
    for first in range(0, 8000, 1000):
        got.start(range(first, first + 1000), first)
    got.until(8000)
    assert got.values == {i: i for i in range(8000)}


def test_guarded_iterator():
    """Eight threads that pull from one Guarded get every item once between them."""
    guarded, found = shares.Guarded(list(range(20_000))), []
    threads = [threading.Thread(target=lambda: found.extend(guarded)) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found) == list(range(20_000))


def test_a_machine_out_of_threads(make, monkeypatch):
    """When no further thread can be had, the first does all the work; when there is none at all, start says so."""
    hold = Hold()
    lane, got = make(hold, workers=4)
    got.start(["wait"])
    assert hold.begun.wait(30)
    real = threading.Thread.start

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    got.start([1], first=1)
    hold.go.set()
    got.until(2)
    monkeypatch.setattr(threading.Thread, "start", real)
    assert lane._threads


def test_a_resource_that_fails_to_close_warns(make):
    """close() tells of a resource that could not be closed."""

    class Stubborn:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError("won't close")

    lane, got = make(lambda item, thing: item, workers=1, setup={"thing": Stubborn})
    got.start([1])
    got.until(1)
    with pytest.warns(RuntimeWarning, match="won't close"):
        lane.close(10)


def test_resources_are_closed_when_close_returns(make):
    """Without grace too, a thread that is in no call has closed what `setup=` opened: the program may end next."""
    entered, leave, closed = threading.Event(), threading.Event(), []

    class Resource:
        def __enter__(self):
            return 1

        def __exit__(self, *_):
            entered.set()
            leave.wait(30)
            closed.append(True)

    lane, inbox = make(lambda x, thing: x + thing, workers=1, setup={"thing": Resource})
    inbox.start([1])
    inbox.until(1)
    opener = threading.Thread(target=lambda: entered.wait(30) and leave.set())
    opener.start()
    lane.close(0.0)
    opener.join()
    assert closed == [True]
