"""The least engine a process lane needs: it runs lost items again with care, and died ones once more, alone."""

from __future__ import annotations

import os
import queue
from time import monotonic

from duodao.children import guard
from duodao.lanes.base import Batch, Work
from duodao.lanes.fleet import FLEET
from duodao.lanes.process import Processes

PATIENCE = 60.0


class Run:
    """Batches through one lane; `outcomes` maps ids to values or exceptions, `results` keeps every delivery."""

    def __init__(self, function, workers=2, lane=Processes, **options):
        self.lane = lane(Work(function, getattr(function, "__name__", "work"), **options), workers)
        self.queue = queue.SimpleQueue()
        self.outcomes = {}
        self.kinds = {}
        self.results = []
        self.lost = 0
        self._open = {}
        self._died = set()
        self._next = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lane.close(0.0)

    def start(self, items, careful=False, ids=None):
        ids = range(self._next, self._next + len(items)) if ids is None else ids
        self._next = max(self._next, max(ids) + 1)
        batch = Batch(ids, list(items), careful=careful)
        self._open[batch] = set(range(len(items)))
        self.lane.start(batch, self.queue.put)
        return batch

    def take(self):
        """One delivery, with what an engine does about it."""
        result = self.queue.get(timeout=PATIENCE)
        self.results.append(result)
        if result.fatal is not None:
            raise result.fatal
        batch, left = result.batch, self._open[result.batch]
        where = range(len(batch.items)) if result.positions is None else result.positions
        assert len(where) == len(result.values)
        lost = []
        for at, position in enumerate(where):
            left.remove(position)
            number = batch.ids[position]
            failure = (result.errors or {}).get(at)
            if failure is None:
                self.outcomes[number] = result.values[at]
            elif failure.kind == "lost":
                lost.append(position)
            elif failure.kind == "died" and number not in self._died:
                self._died.add(number)
                self.start([batch.items[position]], careful=True, ids=[number])
            else:
                self.outcomes[number] = failure.error
                self.kinds[number] = failure.kind
        if lost:
            self.lost += len(lost)
            self.start([batch.items[p] for p in lost], careful=True, ids=[batch.ids[p] for p in lost])
        return result

    def finish(self):
        """Until nothing is out; the outcomes in order."""
        while any(self._open.values()):
            self.take()
        return [self.outcomes[number] for number in sorted(self.outcomes)]

    def warm(self):
        """Bring both workers into the fast loop."""
        for _ in range(2 * self.lane.workers):
            self.start(["warm"] * 50)
        self.finish()
        self.outcomes.clear()
        self._next = 0


def marked(pid):
    """The processes that descend from the guards of process `pid`."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if f"DUODAO_GUARD={pid}-".encode() in file.read():
                        found.add(int(name))
            except OSError:
                continue
    return found


def survivors():
    """Descendants that are left once every lane is closed and the fleet is empty, the guard apart."""
    FLEET.clear()
    until = monotonic() + 10
    while (left := _descendants()) and monotonic() < until:
        os.sched_yield()  # a worker's group is killed as it ends; those in it need a moment to be gone
    return left


def _descendants():
    return marked(os.getpid()) - {guard._home.get().pid}
