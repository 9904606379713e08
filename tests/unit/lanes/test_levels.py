"""A width per level: who gets what. What calls and deaths do is in tests/contract and tests/faults/test_nested.py."""

from __future__ import annotations

import os
import queue
import threading
import time

import pytest

import duodao
from duodao.lanes.base import Batch, Result, Work
from duodao.lanes.choose import make
from duodao.lanes.nested import Nested
from duodao.lanes.spread import Spread


def where(_):
    time.sleep(0.02)
    return os.getpid(), threading.get_ident()


async def where_async(_):
    return where(_)


class Recorder:
    """A lane that runs nothing and keeps what it is given."""

    name, workers, target, depth, singly = "fake", 1, 0.01, 4, True

    def __init__(self):
        self.open = {}
        self.cancelled = []
        self.closed = []

    def start(self, batch, deliver):
        self.open[batch] = deliver

    def cancel(self, batch):
        self.cancelled.append(batch)
        del self.open[batch]

    def close(self, grace):
        self.closed.append(grace)

    def items(self):
        return [item for batch in self.open for item in batch.items]

    def finish(self):
        for batch, deliver in list(self.open.items()):
            del self.open[batch]
            deliver(Result(batch, [-item for item in batch.items]))


def test_spread_gives_each_item_to_the_emptiest():
    """Items go where the fewest are, outcomes come back at their own positions, and a lane that ended gets more."""
    lanes = [Recorder(), Recorder(), Recorder()]
    spread, got = Spread(lanes), []
    batch = Batch(range(100, 107), [1, 2, 3, 4, 5, 6, 7])
    spread.start(batch, got.append)
    assert [len(lane.items()) for lane in lanes] == [3, 2, 2]
    lanes[1].finish()
    assert {batch.items[at]: value for at, value in zip(got[0].positions, got[0].values, strict=True)} == {2: -2, 5: -5}
    assert got[0].batch is batch
    spread.start(Batch(range(2), [8, 9]), got.append)
    assert sorted(lanes[1].items()) == [8, 9]
    assert spread.workers == 3


def test_spread_forgets_what_is_cancelled():
    """After a cancel its lanes are as empty as before; an outcome that still comes changes nothing."""
    lanes = [Recorder(), Recorder()]
    spread, got = Spread(lanes), []
    batch = Batch(range(1), [1])
    spread.start(batch, got.append)
    late = list(lanes[0].open.items())
    spread.cancel(batch)
    spread.start(Batch(range(1), [2]), got.append)
    assert [lane.items() for lane in lanes] == [[2], []]
    for part, deliver in late:
        deliver(Result(part, part.items))
    spread.start(Batch(range(3), [3, 4, 5]), got.append)
    assert [len(lane.items()) for lane in lanes] == [2, 2]
    spread.close(1.5)
    assert [lane.closed for lane in lanes] == [[1.5], [1.5]]


def test_a_host_gets_no_more_than_run_together():
    """What waits, waits in the lane: no process holds an item that it can't run at once."""
    lane = Nested("thread", Work(where, "where"), (2, 3))
    inbox = queue.SimpleQueue()
    try:
        lane.start(Batch(range(40), list(range(40))), inbox.put)
        seen, done = [], 0
        while done < 40:
            result = inbox.get(timeout=30)
            done += len(result.values)
            with lane._lock:
                seen += [host.load for host in lane._hosts]
        assert max(seen) <= 3
        assert len(lane._hosts) == 2
    finally:
        lane.close(1.0)


@pytest.mark.parametrize(
    ("function", "lane", "workers", "processes", "threads"),
    [
        (where, "thread", (2, 2), 2, 4),
        (where_async, "coroutine", (2, 5), 2, 2),
        (where_async, "coroutine", (2, 2, 5), 2, 4),
    ],
)
def test_widths(function, lane, workers, processes, threads):
    """Calls run in as many processes, and in as many threads of them, as the widths say."""
    made = duodao.map(function, range(40), lane=lane, workers=workers)
    rows = list(made)
    assert len({process for process, _ in rows}) == processes
    assert len(set(rows)) == threads
    assert os.getpid() not in {process for process, _ in rows}


def test_one_call_starts_one_process():
    """A process is made when there is something for it to do."""
    lane = make("thread", Work(where, "where"), (4, 4))
    inbox = queue.SimpleQueue()
    try:
        lane.start(Batch(range(1), [0]), inbox.put)
        inbox.get(timeout=30)
        assert len(lane._hosts) == 1
    finally:
        lane.close(1.0)
