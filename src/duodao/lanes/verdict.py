"""What becomes of items: packed for their worker, lost with it, or found guilty of its death."""

from __future__ import annotations

from collections.abc import Sequence

from duodao.errors import Broken, CallTimeout, NotPicklable, WorkerDied
from duodao.lanes import payload, wire
from duodao.lanes.base import Batch, Deliver, Failure, Result, Work
from duodao.lanes.link import Lease, Link


def pack(
    batch: Batch, deliver: Deliver, seq: int, work: Work, span: Sequence[int] | None = None, *, splits: bool = False
) -> Lease | list[Sequence[int]] | None:
    """The batch, or the `span` of its positions, as a lease with its frame.

    Items that can't be pickled are delivered as failures; None when all are such. Positions in several spans when the
    items of a batch, or with `splits` of a span, are too large to travel together: they are then packed as workers come
    to them.
    """
    items = batch.items if span is None else [batch.items[at] for at in span]
    if not items:
        deliver(Result(batch, []))
        return None
    positions: Sequence[int] | None = span
    blobs: list[bytes] | None = None
    bad: dict[int, NotPicklable] = {}
    large = None
    body = b""
    if batch.careful and len(items) > 1:
        blobs, bad = wire.dump_each(items, "input")
    else:
        try:
            body, large = payload.pack(items)
        except wire.Raised:
            blobs, bad = wire.dump_each(items, "input")
    flags = wire.CAREFUL if batch.careful else 0
    if blobs is not None:
        flags |= wire.ITEMISED
        blobs, positions = _without(bad, blobs, positions, batch, deliver)
        if not blobs:
            return None
        body = wire.plain(blobs)
    elif large is not None and (span is None or splits) and large.size > payload.SPAN and len(items) > 1:
        return _spans(range(len(items)) if span is None else span, large.size)
    count = len(items) - len(bad)
    lease = Lease(batch, deliver, seq, positions, count)
    piece: int | None = None
    places: list[payload.Place] = []
    if large is not None:
        exported = payload.export(large)
        if exported is None:
            body = wire.dumps(items)
        else:
            piece, places = exported
    ids = _ids(batch, positions) if work.seed is not None else None
    meta = None if ids is None and piece is None else (ids, piece, places)
    lease.load(wire.parts(wire.BATCH, seq, flags=flags, count=count, meta=meta, body=body), piece)
    return lease


def _without(
    bad: dict[int, NotPicklable], blobs: list[bytes], positions: Sequence[int] | None, batch: Batch, deliver: Deliver
) -> tuple[list[bytes], Sequence[int] | None]:
    """Deliver those that can't be pickled; the pickles and positions of the others."""
    if not bad:
        return blobs, positions
    every = range(len(blobs)) if positions is None else positions
    errors = {number: Failure(error) for number, error in enumerate(bad.values())}
    deliver(Result(batch, [None] * len(bad), positions=[every[at] for at in bad], errors=errors))
    kept = [at for at in range(len(blobs)) if at not in bad]
    return [blobs[at] for at in kept], [every[at] for at in kept]


def _spans(places: Sequence[int], size: int) -> list[Sequence[int]]:
    """Spans of about payload.SPAN bytes, at least one item in each, and fewer than all."""
    length = max(1, min(len(places) - 1, len(places) * payload.SPAN // size))
    return [places[first : first + length] for first in range(0, len(places), length)]


def _ids(batch: Batch, positions: Sequence[int] | None) -> tuple[int, int, int] | list[int]:
    """The items' numbers, for their random state."""
    if positions is not None:
        return [batch.ids[at] for at in positions]
    if isinstance(batch.ids, range):
        return batch.ids.start, batch.ids.stop, batch.ids.step
    return list(batch.ids)


def lost(lease: Lease, first: int | None = None, count: int | None = None) -> None:
    """Tell the engine to run these again: all that have no outcome, unless said otherwise."""
    first = lease.done if first is None else first
    count = lease.count - first if count is None else count
    if count > 0:
        errors = {at: Failure(None, "lost") for at in range(count)}
        lease.deliver(Result(lease.batch, [None] * count, positions=lease.places(first, count), errors=errors))


def returned(lease: Lease, count: int) -> None:
    """The worker gives back the last `count`, which wait behind a call that takes long."""
    back = lease.give_back(count)
    if not lease.cancelled:
        errors = {at: Failure(None, "lost") for at in range(count)}
        lease.deliver(Result(lease.batch, [None] * count, positions=back, errors=errors))


def culprit(link: Link, leases: list[Lease], work: Work) -> bool:
    """After a death: deliver what was before the item it was inside of, as lost, and that item with its error.

    The slot counts only now that nobody writes to it. An item that ended before its kill arrived has its outcome, and
    who came after it is innocent. False when no item is to blame.
    """
    seq, item, since = link.slot.read()
    why = ""
    if link.killed is not None:
        why, seq, item = link.killed
    lease = leases[0] if leases else None
    if lease is None or lease.seq != seq or not lease.done <= item < lease.count or why == "close":
        return False
    if why == "unclean" or lease.cancelled:
        return False
    code = link.child.exitcode if link.child is not None else None
    guilty = failure(why, described(lease, item), code if code is not None else -9, work, since)
    lost(lease, lease.done, item - lease.done)
    lease.deliver(Result(lease.batch, [None], positions=lease.places(item, 1), errors={0: guilty}))
    lease.done = item + 1
    return True


def failure(why: str, what: str, code: int, work: Work, since: float) -> Failure:
    """Why an item has no value whose worker died inside it, or was killed because of it."""
    from time import monotonic

    seconds = max(0.0, monotonic() - since)
    if why == "timeout":
        limit = work.timeout
        return Failure(
            CallTimeout(f"{what} ran longer than the time-out of {limit} s; its worker was killed"), "timeout", seconds
        )
    if why == "memory":
        text = f"{what} was killed: its worker held more than max_memory, {work.max_memory} bytes"
        return Failure(WorkerDied(text, exitcode=code), "died", seconds)
    return Failure(WorkerDied.at(what, code), "died", seconds)


def described(lease: Lease, item: int) -> str:
    """The sent item as messages name it."""
    at = lease.places(item, 1)[0]
    return f"input {lease.batch.ids[at]} ({wire.shown(lease.batch.items[at])})"


def barren(work: Work, deaths: int, ready: bool, code: int | None) -> Broken:
    """The error for workers that die and no item is to blame."""
    when = "between items" if ready else f"before its first item, while {work.name} was loaded or setup= opened"
    died = WorkerDied.at(f"a worker of {work.name}", code if code is not None else -9)
    error = Broken(f"{deaths} workers in a row died, the last {when}: no call can run")
    error.__cause__ = died
    return error
