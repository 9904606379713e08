"""Several lanes of one process as one: loops in threads of their own, each with a share of the calls."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

from duodao.lanes.base import Batch, Deliver, Lane, Result


class _Part:
    """What one lane has of a batch. left: items without an outcome."""

    __slots__ = ("batch", "lane", "left", "places")

    def __init__(self, batch: Batch, lane: int, places: list[int]) -> None:
        self.batch = Batch([batch.ids[at] for at in places], [batch.items[at] for at in places])
        self.lane = lane
        self.places = places
        self.left = len(places)


class Spread:
    """Gives each item to the lane that has the fewest. All lanes run the same work and are of one kind."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        first = lanes[0]
        self.name, self.target, self.depth, self.singly = first.name, first.target, first.depth, first.singly
        self.workers = sum(lane.workers for lane in lanes)
        self._lanes = lanes
        self._lock = threading.Lock()
        self._loads = [0] * len(lanes)
        self._parts: dict[Batch, list[_Part]] = {}

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Hand over to each lane its share, as a batch of its own."""
        if not batch.items:
            deliver(Result(batch, []))
            return
        shares: list[list[int]] = [[] for _ in self._lanes]
        with self._lock:
            for at in range(len(batch.items)):
                lane = min(range(len(shares)), key=self._loads.__getitem__)
                self._loads[lane] += 1
                shares[lane].append(at)
            parts = [_Part(batch, lane, places) for lane, places in enumerate(shares) if places]
            self._parts[batch] = list(parts)
        for part in parts:
            self._lanes[part.lane].start(part.batch, functools.partial(self._pass_on, batch, part, deliver))

    def _pass_on(self, batch: Batch, part: _Part, deliver: Deliver, result: Result) -> None:
        inner = range(len(result.values)) if result.positions is None else result.positions
        with self._lock:
            parts = self._parts.get(batch, [])
            if part in parts:  # else it was cancelled
                part.left -= len(inner)
                self._loads[part.lane] -= len(inner)
                if not part.left:
                    parts.remove(part)
                    if not parts:
                        del self._parts[batch]
        result.batch, result.positions = batch, [part.places[at] for at in inner]
        deliver(result)

    def cancel(self, batch: Batch) -> None:
        """Cancel its parts."""
        with self._lock:
            parts = self._parts.pop(batch, [])
            for part in parts:
                self._loads[part.lane] -= part.left
        for part in parts:
            self._lanes[part.lane].cancel(part.batch)

    def close(self, grace: float) -> None:
        """Close all at once: each has `grace` seconds, not its share of them."""
        threads = [threading.Thread(target=lane.close, args=(grace,)) for lane in self._lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
