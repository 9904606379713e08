"""The process lane: calls run in worker processes, one private pipe pair each.

    start() -- pickled list --> [pipe] --> worker --> [pipe] -- pickled list --> dispatcher thread --> deliver()

`start` pickles in the caller's thread and writes what the pipe takes at once. One thread per lane polls all pipes: it
writes the rest, reads results, starts and buries workers, and keeps the time-outs. Whole lists go in and come out: on
the fast path nothing here is done per item.

Races closed:
  - Two full pipes facing each other: the lane's ends never block, so it reads while a worker waits to be read.
  - A worker that is killed, or stopped, in the middle of a frame: no lock and no queue is shared, nobody else notices.
  - A kill for a time-out that comes as the item ends: what the worker sent is read to its end before it is judged, and
    the slot is read again after its death.
  - A worker's death seen only as the end of its pipe: a child of its own may hold that open, so the guard's word
    counts.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from duodao.errors import Broken, Closed, DuodaoError, NotPicklable
from duodao.lanes import deadlines, verdict
from duodao.lanes.base import Batch, Deliver, Result, Work
from duodao.lanes.dispatcher import Dispatcher
from duodao.lanes.fleet import FLEET
from duodao.lanes.incoming import Incoming
from duodao.lanes.launch import Launch
from duodao.lanes.link import Lease, Link, share

BARREN = 3
"""So many workers in a row may die before their first item, or outside of any, until the run ends."""
_SOON = 0.002
"""Seconds until a worker that was reading is asked again."""


class Processes(Dispatcher):
    """Calls run in up to `workers` processes. idle: seconds until one without work is let go, None for as long as the
    lane is open."""

    name = "process"
    target = 0.020
    depth = 2
    singly = False

    def __init__(self, work: Work, workers: int, idle: float | None = None, **_: Any) -> None:
        super().__init__()
        self._take = Incoming(self).take  # type: ignore[method-assign]
        self.workers = self._limit = workers
        self._work = work
        self._idle = idle
        self._launch: Launch | None = None
        self._waiting: deque[tuple[Batch, Deliver, Sequence[int]]] = deque()
        self._seq = itertools.count(1)
        self._again: float | None = None
        self._pause = _SOON
        self._barren = 0
        self._fatal: BaseException | None = None

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Hand a batch to the least loaded worker. Never blocks."""
        if self._closing is not None:
            raise Closed("the process lane is closed; it starts nothing more")
        if self._fatal is None and self._launch is None:
            try:
                self._launch = Launch(self._work, self.workers)
            except (DuodaoError, MemoryError) as error:
                self._fatal = error
        if self._fatal is not None:
            deliver(Result(batch, [], fatal=self._fatal))
            return
        packed = self._pack(batch, deliver)
        if packed is None:
            return
        with self._lock:
            if isinstance(packed, Lease):
                known = len(self._links)
                link = self._choose()
                link.lease(packed)
                new = len(self._links) > known  # nobody listens to it yet
                waits = new or link.backlog or self._work.timeout is not None
            else:
                self._waiting.extend((batch, deliver, span) for span in packed)
                waits = True
        self._ensure_thread()
        if waits:
            self._wake()

    def _pack(
        self, batch: Batch, deliver: Deliver, span: Sequence[int] | None = None
    ) -> Lease | list[Sequence[int]] | None:
        return verdict.pack(batch, deliver, next(self._seq), self._work, span)

    def _feed(self) -> None:
        """Give workers the next parts of batches too large to travel whole: `depth` each, so memory stays bounded."""
        while self._waiting:
            with self._lock:
                if not self._waiting or len(self._choose().leases) >= self.depth:
                    return
                entry = self._waiting.popleft()
            lease = self._pack(*entry)
            with self._lock:
                if isinstance(lease, Lease):
                    self._choose().lease(lease)

    def cancel(self, batch: Batch) -> None:
        """Drop it where it has not been begun, else ignore what comes of it."""
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not batch)
            for link in self._links:
                for lease in link.leases:
                    if lease.batch is batch:
                        lease.cancelled = True
                if any(lease.cancelled for lease in link.leases):
                    for lease in link.take_back() or ():
                        if lease.cancelled:
                            lease.discard()
                        else:
                            link.lease(lease)

    def close(self, grace: float) -> None:
        """End the run: idle workers go to the fleet, busy ones have `grace` seconds. Idempotent; waits for it all."""
        with self._lock:
            self._waiting.clear()
            self._close_at(grace)
        self._await_end()

    # Workers

    def _choose(self) -> Link:
        """An idle worker, else a new one, else the one with the fewest batches."""
        open_ = [link for link in self._links if link.ending is None and not link.retiring]
        best = min(open_, key=lambda link: len(link.leases), default=None)
        if best is not None and (not best.leases or len(open_) >= self._limit):
            return best
        assert self._launch is not None
        link = FLEET.take(self._launch.home)
        if link is None:
            try:
                link = Link(self._on_exit, self._buffer)
            except Broken:
                if best is None:
                    raise
                self._limit = len(self._links)  # fewer workers will do
                return best
            self._unborn.append(link)
        else:
            link.reset(self._on_exit, self._buffer)
            if link.child is not None and link.child.exitcode is not None:
                self._ended.append(link)
        self._links.append(link)
        self._send_launch(link)
        return link

    def _not_started(self, link: Link, error: Exception) -> None:
        """Fewer workers than asked for will do; none is the end."""
        with self._lock:
            self._links.remove(link)
            self._limit = max(1, len(self._links))
            alone = not self._links
        leases = list(link.leases)
        link.close()
        if alone:
            broken = error if isinstance(error, DuodaoError) else Broken(f"no worker process can be started: {error}")
            self._fatal = broken
        for lease in leases:
            self._drop(lease, self._fatal)
        if self._fatal is not None:
            self.end(self._fatal)

    def _drop(self, lease: Lease, fatal: BaseException | None) -> None:
        """A lease that no worker has any more: the rest of it is lost, or the run is over."""
        lease.discard()
        if lease.cancelled:
            return
        if fatal is not None:
            lease.deliver(Result(lease.batch, [], fatal=fatal))
        elif lease.done < lease.count:
            verdict.lost(lease)

    def _tend(self) -> None:
        deadlines.enforce(self._links, self._work)
        deadlines.rest(self._links, self._idle)
        self._share()

    def _due(self) -> float | None:
        return deadlines.due(self._links, self._work, self._closing, self._again, self._idle)

    # What Incoming asks for

    def finished(self, link: Link) -> None:
        """The worker has ended its oldest batch."""
        with self._lock:
            link.leases.popleft().discard()
            link.rested = monotonic()

    def _share(self) -> None:
        """Give idle workers what waits behind others' calls. One that is reading is asked again, ever less often."""
        settled = share(self._links)
        self._again = None if settled else monotonic() + self._pause
        self._pause = _SOON if settled else min(self._pause * 2, 1.0)

    def delivered(self) -> None:
        """A worker gave outcomes: those that died before it were no series."""
        self._barren = 0

    def unloaded(self, link: Link, error: BaseException) -> None:
        """A worker can't load the function by its name; by value it may. The worker skips batches until it has one."""
        launch = self._launch
        assert launch is not None
        if link.launched is launch.frame and not launch.by_value(error):
            refused = NotPicklable(f"the function {self._work.name} can't be loaded in a worker: {error}", "function")
            refused.__cause__ = error
            self.end(refused)
            return
        with self._lock:
            self._send_launch(link)
            for lease in link.leases:
                link.write(lease.parts)

    def _send_launch(self, link: Link) -> None:
        assert self._launch is not None
        link.launched = self._launch.frame
        link.write(link.launched)
        link.give_outbox()

    def end(self, error: BaseException) -> None:
        """The run is over with this error."""
        self._fatal = error
        with self._lock:
            leases = [lease for link in self._links for lease in link.leases]
            waiting, self._waiting = self._waiting, deque()
        for batch, deliver, _ in waiting:
            deliver(Result(batch, [], fatal=error))
        for lease in leases:
            if not lease.cancelled:
                lease.cancelled = True
                lease.deliver(Result(lease.batch, [], fatal=error))

    def idle(self, link: Link, clean: bool, modules: list[tuple[str, int]]) -> None:
        """A worker has ended its run."""
        assert self._launch is not None
        if not clean:
            link.kill("unclean")
            return
        with self._lock:
            self._links.remove(link)
        link.end_run()
        FLEET.put(link, self._launch.home, modules)

    def _bury(self, link: Link) -> None:
        with self._lock:
            if link not in self._links:
                return
        while not link.at_end and self._read(link):
            pass
        with self._lock:
            if link not in self._links:
                return
            self._links.remove(link)
            leases = list(link.leases)
            link.leases.clear()
        named = verdict.culprit(link, leases, self._work)
        unnamed = not named and bool(leases) and (not link.ready or leases[0].batch.careful)
        code = link.child.exitcode if link.child is not None else None
        link.close()
        if unnamed and link.killed is None and not link.retiring:
            self._barren += 1
            if self._barren >= BARREN and self._fatal is None:
                self._fatal = verdict.barren(self._work, self._barren, link.ready, code)
        for lease in leases:
            self._drop(lease, self._fatal)
        if self._fatal is not None:
            self.end(self._fatal)

    def _wind_up(self) -> bool:
        """One step of closing; True when nothing is left."""
        assert self._closing is not None
        with self._lock:
            deadlines.wind_up(self._links, self._closing)
            return not self._links and not self._ended

    def at_work(self, batch: Batch | None = None) -> list[int]:
        """The processes that are in calls; with `batch`, the one that is in it, where there is one."""
        with self._lock:
            busy = [link for link in self._links if link.leases and link.child is not None]
            inside = [link for link in busy if batch is not None and link.leases[0].batch is batch]
            return [link.child.pid for link in inside or busy if link.child is not None]

    def _release_common(self) -> None:
        if self._launch is not None:
            self._launch.release()
