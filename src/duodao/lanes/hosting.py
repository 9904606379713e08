"""A process of a nested lane, seen by the lane: what it has, what it sent, and what becomes of it when it dies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import monotonic

from duodao.lanes import verdict, wire
from duodao.lanes.base import Failure, Result, Work
from duodao.lanes.incoming import loaded
from duodao.lanes.link import Lease, Link

_SLACK = 3.0
"""Seconds over its time-out that a call may be without outcome: inner lanes give theirs one second to end."""
_OPENING = 30.0
"""The same, where the call's thread may have to open resources first."""


class Task:
    """What a host has under one number. left: places without an outcome; since: when it was handed over."""

    __slots__ = ("lease", "left", "since")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.left = set(range(lease.count))
        self.since = monotonic()


class Host(Link):
    """One process. open: its tasks by number; load: their items; stuck: calls it gave up, which may still run."""

    def __init__(self, notify: Callable[[Link], object], buffer: bytearray, entry: str, more: str) -> None:
        super().__init__(notify, buffer, entry, more)
        self.open: dict[int, Task] = {}
        self.load = self.stuck = 0

    def lease(self, lease: Lease) -> None:
        """Hand items over."""
        self.open[lease.seq] = Task(lease)
        self.load += lease.count
        self.write(lease.parts)

    def leased(self) -> list[Lease]:
        """What it has."""
        return [task.lease for task in list(self.open.values())]

    def over(self, seq: int) -> None:
        """It has ended what it had under that number."""
        task = self.open.pop(seq)
        self.load -= len(task.left)
        task.lease.discard()

    def overdue(self, work: Work) -> float:
        """When it is certain that its inner lane can't enforce the time-out: a call holds the GIL, or the hub."""
        if work.timeout is None or not self.ready:
            return math.inf
        oldest = next((task.since for task in self.open.values() if task.left), math.inf)
        return oldest + work.timeout + (_OPENING if work.setup else _SLACK)

    def bid_farewell(self, grace: float, handshake: float) -> None:
        """Have it close its inner lane and end; its calls have `grace` seconds, and it `handshake` more."""
        self.ending = monotonic() + grace + handshake
        self.write(wire.parts(wire.END, seconds=grace))


def outcomes(lease: Lease, frame: wire.Frame) -> Result:
    """What a PART of a host says."""
    places, errors, each, where, _, _, notices = frame.meta
    failures = {
        at: Failure(wire.load_error(blob) if blob else None, kind, seconds)
        for at, (kind, blob, seconds) in (errors or {}).items()
    }
    values = loaded(frame, failures, where)
    positions = None
    if places is not None or len(values) < len(lease.batch.items):
        positions = [lease.places(at, 1)[0] for at in places or range(len(values))]
    return Result(
        lease.batch,
        values,
        positions=positions,
        errors=failures or None,
        seconds=frame.seconds,
        each=each,
        notices=tuple(notices),
    )


def lost(lease: Lease, places: Sequence[int]) -> None:
    """Tell the engine to run these again."""
    errors = {at: Failure(None, "lost") for at in range(len(places))}
    where = [lease.places(at, 1)[0] for at in places]
    lease.deliver(Result(lease.batch, [None] * len(places), positions=where, errors=errors))


def blame(host: Host, task: Task, code: int | None, work: Work) -> None:
    """The item that is left of it was alone in a host that died."""
    lease, item = task.lease, min(task.left)
    what = verdict.described(lease, item)
    code = code if code is not None else -9
    why = host.killed[0] if host.killed is not None else ""
    failure = verdict.failure(why, what, code, work, task.since)
    lease.deliver(Result(lease.batch, [None], positions=lease.places(item, 1), errors={0: failure}))
