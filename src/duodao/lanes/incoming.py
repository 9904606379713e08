"""What a worker's frames mean: outcomes for the engine, output for the caller, news for the lane."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Protocol

from duodao import arena
from duodao.errors import RemoteError, SetupFailed
from duodao.lanes import forward, payload, verdict, wire
from duodao.lanes.base import Failure, Result
from duodao.lanes.foreign import said
from duodao.lanes.wire import ITEMISED, LAST, Frame

if TYPE_CHECKING:
    from duodao.lanes.link import Lease, Link


class Host(Protocol):
    """What the lane does about a frame."""

    def finished(self, link: Link) -> None: ...
    def delivered(self) -> None: ...
    def unloaded(self, link: Link, error: BaseException) -> None: ...
    def end(self, error: BaseException) -> None: ...
    def idle(self, link: Link, clean: bool, modules: list[tuple[str, int]]) -> None: ...


class Incoming:
    """Takes frames, on the dispatcher's thread."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def take(self, link: Link, frame: Frame) -> None:
        """Act on one frame of this worker."""
        kind = frame.kind
        if kind == wire.PART:
            self._outcomes(link, frame)
        elif kind in (wire.OUTPUT, wire.LOG):
            said_aside(frame)
        elif kind == wire.READY:
            link.ready = True
        elif kind == wire.UNREAD:
            verdict.lost(link.leases[0])
            link.leases[0].done = link.leases[0].count
            self._host.finished(link)
        elif kind == wire.UNLOADED:
            self._host.unloaded(link, wire.load_error(bytes(frame.body)))
        elif kind == wire.FATAL:
            link.retiring = True
            self._host.end(not_set_up(frame))
        elif kind == wire.REPLACE:
            link.retiring = True
        elif kind == wire.RETURNED:
            verdict.returned(link.leases[0], frame.number)
        else:
            self._host.idle(link, *frame.meta)

    def _outcomes(self, link: Link, frame: Frame) -> None:
        lease = link.leases[0]
        first, count = lease.done, frame.number
        errors, each, where, kept, freed = frame.meta or (None, None, None, False, ())
        result = None
        if count and not lease.cancelled:
            result = self._result(lease, frame, first, errors, each, where)
        lease.done = first + count
        if where is not None:
            payload.clear(where[0])
        if count:
            self._host.delivered()
        for piece in freed:
            link.kept.discard(piece)
            arena.get().free(piece)
        if kept and lease.piece is not None:
            link.kept.add(lease.piece)
            lease.piece = None
        if frame.flags & LAST:
            self._host.finished(link)
        if result is not None:  # last: who starts more because of it finds the worker free
            lease.deliver(result)

    def _result(
        self,
        lease: Lease,
        frame: Frame,
        first: int,
        errors: dict[int, bytes] | None,
        each: list[float] | None,
        where: tuple[int, list[payload.Place]] | None,
    ) -> Result:
        failures = {at: Failure(wire.load_error(blob)) for at, blob in errors.items()} if errors else {}
        values = loaded(frame, failures, where)
        if each is not None:
            for at, failure in failures.items():
                failure.seconds = each[at]
        positions = None if lease.whole and frame.number == lease.count else lease.places(first, frame.number)
        return Result(
            lease.batch, values, positions=positions, errors=failures or None, seconds=frame.seconds, each=each
        )


def loaded(frame: Frame, failures: dict[int, Failure], where: tuple[int, list[payload.Place]] | None) -> list[Any]:
    """The values of a PART; those that can't be unpickled here, or must be sent each by itself, are in `failures`."""
    if frame.flags & ITEMISED:
        return _each(frame, failures)
    try:
        values: list[Any] = pickle.loads(frame.body, buffers=payload.copies(where[1]) if where else ())
    except BaseException as error:  # this thread has no Ctrl-C of its own: it is the object's
        if frame.number == 1:
            failures[0] = Failure(_unreadable(error))
        else:  # run again with care, each is pickled by itself
            for at in range(frame.number):
                failures.setdefault(at, Failure(None, "lost"))
        return [None] * frame.number
    return values


def _each(frame: Frame, failures: dict[int, Failure]) -> list[Any]:
    values: list[Any] = []
    for at, blob in enumerate(pickle.loads(frame.body)):
        value = None
        if at not in failures:
            try:
                value = pickle.loads(blob)
            except BaseException as error:
                failures[at] = Failure(_unreadable(error))
        values.append(value)
    return values


def _unreadable(error: BaseException) -> RemoteError:
    wrapped = RemoteError(f"the result can't be unpickled here ({said(error)})", type(error).__name__)
    wrapped.__cause__ = error
    return wrapped


def said_aside(frame: Frame) -> None:
    """A worker's output or log record, for the caller's streams or loggers."""
    if frame.kind == wire.OUTPUT:
        forward.emit_output(frame.seq, str(frame.body, "utf-8", "surrogatepass"))
    else:
        _log(frame)


def not_set_up(frame: Frame) -> SetupFailed:
    """The error of a FATAL frame."""
    error = SetupFailed(frame.meta)
    error.__cause__ = wire.load_error(bytes(frame.body))
    return error


def _log(frame: Frame) -> None:
    try:
        fields = pickle.loads(frame.body)
    except BaseException:
        return  # a record with an attribute that can't be had here is the smaller loss
    forward.emit_record(fields)
