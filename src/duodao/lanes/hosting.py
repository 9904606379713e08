"""A process of a nested lane, seen by the lane: what it has, what it sent, and what becomes of it when it dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from duodao.errors import WorkerDied
from duodao.lanes import verdict, wire
from duodao.lanes.base import Failure, Result, Work
from duodao.lanes.incoming import loaded
from duodao.lanes.link import Lease, Link


class Host(Link):
    """One process. open: what it has, by number, with the places that have no outcome yet; load: items of these."""

    load = 0

    def __init__(self, notify: Callable[[Link], object], buffer: bytearray, entry: str, more: str) -> None:
        super().__init__(notify, buffer, entry, more)
        self.open: dict[int, tuple[Lease, set[int]]] = {}

    def lease(self, lease: Lease) -> None:
        """Hand items over."""
        self.open[lease.seq] = lease, set(range(lease.count))
        self.load += lease.count
        self.write(lease.parts)

    def over(self, seq: int) -> None:
        """It has ended what it had under that number."""
        lease, left = self.open.pop(seq)
        self.load -= len(left)
        lease.discard()


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


def blame(lease: Lease, item: int, host: Host, code: int | None, work: Work) -> None:
    """The item was alone in a host that died."""
    what = verdict.described(lease, item)
    code = code if code is not None else -9
    error = WorkerDied.at(what, code)
    if host.killed is not None and host.killed[0] == "memory":
        text = f"{what} was killed: its worker held more than max_memory, {work.max_memory} bytes"
        error = WorkerDied(text, exitcode=code)
    lease.deliver(Result(lease.batch, [None], positions=lease.places(item, 1), errors={0: Failure(error, "died")}))
