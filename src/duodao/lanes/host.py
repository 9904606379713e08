"""What runs in a process of a nested lane: it starts batches on a lane of its own and sends outcomes as they come.

    task pipe --> main thread: reads, unpickles --> inner lane: threads, loops or greenlets
    result pipe <-- whichever thread of the inner lane has an outcome: pickles, writes

The main thread waits in a poll and reads without blocking, so that in a patched process (`hub`) other greenlets run
meanwhile. A batch's items may end in any order; each delivery says which they are.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import os
import pickle
import select
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from duodao import arena
from duodao.lanes import payload, wire
from duodao.lanes.base import Batch, Failure, Result
from duodao.lanes.forward import apply_levels
from duodao.lanes.loops import Slot
from duodao.lanes.outlet import Outlet, packed
from duodao.lanes.stint import Stint, unread
from duodao.lanes.wire import CAREFUL, ITEMISED, LAST, Frame, Raised, dump_error, dumps
from duodao.lanes.worker import adopt

if TYPE_CHECKING:
    from duodao.lanes.base import Lane, Work

_BUFFER = 256 << 10


def main(arg: bytes, fds: list[int]) -> int:
    """The entry: arg is "SLOT NAME WIDTH [WIDTH]"; fds are the task pipe's read end and the result pipe's write end."""
    faulthandler.enable(2)
    slot, name, *widths = arg.decode().split()
    _Host(int(slot), name, tuple(map(int, widths)), *fds).serve()
    return 0


def inner(name: str, work: Work, widths: tuple[int, ...]) -> Lane:
    """The lane in this process: `widths` are those of the levels below processes."""
    if name == "thread":
        from duodao.lanes.thread import Threads

        return Threads(work, widths[0])
    if name == "greenlet":
        from duodao.lanes.greenlet import Greenlets

        return Greenlets(work, widths[0])
    from duodao.lanes.coroutine import Coroutines

    if len(widths) == 1:
        return Coroutines(work, widths[0])
    from duodao.lanes.spread import Spread

    loops, width = widths
    return Spread([Coroutines(work, width) for _ in range(loops)])


class _Job:
    """A batch in the host. count: its items; left: those without an outcome. parts: what the inner lane has of it.

    careful: each result travels by itself, so that one that can't be unpickled harms no other.
    """

    __slots__ = ("careful", "count", "left", "parts", "seq", "views")

    def __init__(self, seq: int, count: int, views: payload.Views | None, *, careful: bool) -> None:
        self.seq = seq
        self.careful = careful
        self.parts: list[Batch] = []
        self.count = self.left = count
        self.views = views


class _Host:
    def __init__(self, slot: int, name: str, widths: tuple[int, ...], tasks: int, results: int) -> None:
        self._slot = Slot(arena.get().view(slot, arena.SLOT))
        self._name = name
        self._widths = widths
        self._tasks = tasks
        os.set_blocking(tasks, False)
        self._reader = wire.Reader(tasks, bytearray(_BUFFER))
        self._outlet = Outlet(results, tasks)
        self._send = self._outlet.send
        self._sending = threading.RLock()  # of a batch's outcomes: the outbox and the list of what is kept
        self._outbox: payload.Outbox | None = None
        self._kept: list[payload.Views] = []
        self._jobs: dict[int, _Job] = {}
        self._lane: Lane | None = None
        self._ready = False

    def serve(self) -> None:
        """Act on frames until the lane says END, or is gone."""
        poller = select.poll()
        poller.register(self._tasks, select.POLLIN)
        grace: float | None = None
        while grace is None:
            poller.poll()
            try:
                for frame in self._reader.read():
                    if frame.kind == wire.END:
                        grace = frame.seconds
                    else:
                        self._act(frame)
            except BlockingIOError:
                continue
            except EOFError:
                grace = 0.0
        if self._lane is not None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._lane.close(grace)
            for warning in caught:
                self._send(wire.NOTICE, meta=str(warning.message))
        self._outlet.finish()

    def _act(self, frame: Frame) -> None:
        if frame.kind == wire.BATCH:
            if self._lane is not None:
                self._begin_batch(self._lane, frame)
        elif frame.kind == wire.RUN:
            self._begin_run(frame)
        elif frame.kind == wire.OUTBOX:
            with self._sending:
                self._outbox = payload.Outbox(*frame.meta)
        elif frame.kind == wire.CANCEL:
            self._cancel(frame.seq)

    def _begin_run(self, frame: Frame) -> None:
        cwd, path, argv, environ, levels, common = frame.meta
        try:
            adopt(cwd, path, argv, environ)
            apply_levels(levels, self._outlet.logs)
            work = Stint(pickle.loads(frame.body), common).complete()
        except Raised as error:
            self._send(wire.UNLOADED, body=dump_error(error))
            return
        if work.setup:
            work = dataclasses.replace(work, function=functools.partial(self._first_call, work.function))
        else:
            self._tell_ready()
        self._lane = inner(self._name, work, self._widths)

    def _tell_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._send(wire.READY)

    def _first_call(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """The function of a run with resources: that a call begins says that those could be opened."""
        if not self._ready:
            self._tell_ready()
        return function(*args, **named)

    # Batches

    def _begin_batch(self, lane: Lane, frame: Frame) -> None:
        ids, piece, places = frame.meta if frame.meta is not None else (None, None, ())
        self._slot.note(frame.seq, 0)  # a death while it is unpickled is that item's, if it is alone
        views = payload.Views(piece, places) if piece is not None else None
        bad: dict[int, bytes] = {}
        try:
            items = pickle.loads(frame.body, buffers=views.buffers if views is not None else ())
        except Raised as error:
            if frame.number > 1:
                self._send(wire.UNREAD, frame.seq)
                return
            items, bad[0] = [None], unread(error)
        else:
            if frame.flags & ITEMISED:
                items = _each(items, bad)
        items = list(payload.Thawed(items)) if views is not None else items
        self._slot.idle()
        numbers = range(*ids) if isinstance(ids, tuple) else range(len(items)) if ids is None else ids
        job = self._jobs[frame.seq] = _Job(frame.seq, len(items), views, careful=bool(frame.flags & CAREFUL))
        good = [at for at in range(len(items)) if at not in bad]
        step = max(
            1, len(good) if lane.singly else -(-len(good) // lane.workers)
        )  # else one thread would have them all
        starts = []
        for first in range(0, len(good), step):
            places = good[first : first + step]
            job.parts.append(Batch([numbers[at] for at in places], [items[at] for at in places]))
            starts.append(functools.partial(lane.start, job.parts[-1], functools.partial(self._deliver, job, places)))
        del items
        if bad:
            errors = {at: ("error", blob, 0.0) for at, blob in enumerate(bad.values())}
            with self._sending:
                self._send_some(job, list(bad), [None] * len(bad), errors, None, ())
        for start in starts:
            start()

    def _deliver(self, job: _Job, places: list[int], result: Result) -> None:
        """An outcome of the inner lane, on any of its threads. places: of the items that this part has."""
        if result.fatal is not None:
            cause = result.fatal.__cause__ or result.fatal
            self._send(wire.FATAL, meta=str(result.fatal), body=dump_error(cause))
            return
        positions = places if result.positions is None else [places[at] for at in result.positions]
        errors = {at: _dumped(failure) for at, failure in (result.errors or {}).items()}
        each = result.each
        if each is None and result.values:
            each = [result.seconds / len(result.values)] * len(result.values)
        with self._sending:
            if self._jobs.get(job.seq) is job:
                self._send_some(job, positions, result.values, errors, each, result.notices)

    def _send_some(
        self,
        job: _Job,
        positions: Sequence[int],
        values: list[Any],
        errors: dict[int, tuple[str, bytes, float]],
        each: list[float] | None,
        notices: tuple[str, ...],
    ) -> None:
        """Send outcomes, as far as they may travel together, then the others."""
        unsent: dict[int, bytes] = {}
        body, itemised, large = packed(values, unsent, each_alone=job.careful)
        count = len(values)
        if large is not None and large.size > payload.SPAN and count > 1:
            half = count // 2
            first = {at: error for at, error in errors.items() if at < half}
            second = {at - half: error for at, error in errors.items() if at >= half}
            early, late = (each[:half], each[half:]) if each is not None else (None, None)
            del body, large
            self._send_some(job, positions[:half], values[:half], first, early, notices)
            self._send_some(job, positions[half:], values[half:], second, late, ())
            return
        where = None
        if large is not None:
            where = self._outbox.put(large) if self._outbox is not None else None
            if where is None:  # no room in the outbox now: into the pickle after all
                body = dumps(values)
        del values, large
        errors.update({at: ("error", blob, each[at] if each is not None else 0.0) for at, blob in unsent.items()})
        inorder = count == job.count and _ascending(positions)
        job.left -= count
        last = job.left <= 0
        kept, freed = self._let_go(job) if last else (False, [])
        meta = (None if inorder else list(positions), errors or None, each, where, kept, freed, notices)
        flags = (ITEMISED if itemised else 0) | (LAST if last else 0)
        seconds = sum(each) if each is not None else 0.0
        self._send(wire.PART, job.seq, flags=flags, count=count, seconds=seconds, meta=meta, body=body)

    def _let_go(self, job: _Job) -> tuple[bool, list[int]]:
        """Forget the batch: whether something still looks at its large inputs, and which pieces of earlier ones are
        free by now."""
        self._jobs.pop(job.seq, None)
        freed: list[int] = []
        if self._kept:
            self._kept = payload.release_all(self._kept, freed.append)
        views, job.views = job.views, None
        if views is None or views.release():
            return False, freed
        self._kept.append(views)
        return True, freed

    def _cancel(self, seq: int) -> None:
        job = self._jobs.get(seq)
        if job is None or self._lane is None:
            return
        for part in job.parts:
            self._lane.cancel(part)
        with self._sending:
            if self._jobs.get(seq) is job:
                kept, freed = self._let_go(job)
                self._send(wire.PART, seq, flags=LAST, meta=([], None, None, None, kept, freed, ()), body=dumps([]))


def _each(blobs: list[bytes], bad: dict[int, bytes]) -> list[Any]:
    """Items that travelled each by itself; those that can't be unpickled are in `bad`."""
    items: list[Any] = []
    for at, blob in enumerate(blobs):
        item = None
        try:
            item = pickle.loads(blob)
        except Raised as error:
            bad[at] = unread(error)
        items.append(item)
    return items


def _dumped(failure: Failure) -> tuple[str, bytes, float]:
    return failure.kind, dump_error(failure.error) if failure.error is not None else b"", failure.seconds


def _ascending(positions: Sequence[int]) -> bool:
    return all(at == place for at, place in enumerate(positions))
