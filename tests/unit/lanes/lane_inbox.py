"""What the lane tests wait on: deliveries, entered by position. No wait is timed but to fail."""

from __future__ import annotations

import queue

from duodao.lanes.base import Batch


class Outcomes:
    """Deliveries of one or more batches."""

    def __init__(self, lane):
        self.lane = lane
        self.queue = queue.SimpleQueue()
        self.values = {}
        self.failures = {}
        self.notices = []
        self.results = []

    def start(self, items, first=0):
        """Start a batch whose ids begin at `first`."""
        batch = Batch(range(first, first + len(items)), list(items))
        self.lane.start(batch, self.queue.put)
        return batch

    def next(self):
        """Enter one delivery."""
        result = self.queue.get(timeout=30)
        assert result.fatal is None, result.fatal
        self.results.append(result)
        self.notices += result.notices
        where = range(len(result.values)) if result.positions is None else result.positions
        for index, position in enumerate(where):
            number = result.batch.ids[position]
            assert number not in self.values
            assert number not in self.failures
            if index in (result.errors or {}):
                self.failures[number] = result.errors[index]
            else:
                self.values[number] = result.values[index]
        return result

    def until(self, count):
        """Enter deliveries until so many outcomes are known."""
        while len(self.values) + len(self.failures) < count:
            self.next()
        return self
