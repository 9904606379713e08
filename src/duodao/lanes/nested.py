"""A lane inside of worker processes: processes x threads, processes x coroutines, processes x greenlets.

    start() --> waiting --> a host with room --> [pipe] --> host.py: the inner lane --> [pipe] --> deliver()
                suspects -> the ward: a host that runs nothing else

One thread (`Dispatcher`) does all of it: `start` and `cancel` only leave a note and ring. A host is given no more items
than run there together: what waits, waits here, for whoever is free first.

With many calls in flight a death can't be blamed on one. What a dead host had comes back as lost, and the engine runs
it again carefully: in the ward, at first together. Where the ward dies, too, each half of what was left goes alone,
until one item is alone with its death. So one that kills costs the logarithm of its mates' number, not their number.

Races closed:
  - A batch is cancelled as its last outcome is under way: the host answers only for a batch it still has, and an
    answer for one that is over here is ignored.
  - A batch is started as the run ends with an error: it is refused with that error by whoever looks next.
  - A death while `setup=` opens: it is no item's. The host says READY when a call begins; before that three deaths in
    a row end the run.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Sequence
from time import monotonic

from duodao import arena
from duodao.errors import Broken, Closed, DuodaoError, NotPicklable
from duodao.lanes import deadlines, payload, verdict, wire
from duodao.lanes.base import Batch, Deliver, Result, Work
from duodao.lanes.dispatcher import Dispatcher
from duodao.lanes.hosting import Host, blame, lost, outcomes
from duodao.lanes.incoming import not_set_up, said_aside
from duodao.lanes.launch import Launch
from duodao.lanes.link import Lease, Link
from duodao.lanes.process import BARREN

_FAREWELL = 1.0
"""Seconds that a host has to end after its inner lane had its grace; with `setup=`, deadlines.HANDSHAKE."""
_LOOK = 0.05
"""Seconds between looks at the memory of hosts, where max_memory is set."""

Entry = tuple[Batch, Deliver, Sequence[int]]
"""Positions of a batch that no host has."""


class Nested(Dispatcher):
    """Calls run on the lane `name` in each of widths[0] processes, with widths[1:] as its widths."""

    target = 0.010
    singly = True

    def __init__(self, name: str, work: Work, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.depth = 2 if name == "thread" else 4
        self.workers = math.prod(widths)
        self._work = work
        self._processes = self._limit = widths[0]
        self._width = math.prod(widths[1:])
        self._entry = "duodao.lanes.hub:main" if name == "greenlet" else "duodao.lanes.host:main"
        self._more = f"{name} {' '.join(map(str, widths[1:]))}"
        self._hosts: list[Host] = self._links  # type: ignore[assignment]  # the same list
        self._launch: Launch | None = None
        self._waiting: deque[Entry] = deque()
        self._suspects: deque[Entry] = deque()
        self._unwanted: deque[Batch] = deque()
        self._ward: Host | None = None
        self._handshake = deadlines.HANDSHAKE if work.setup else _FAREWELL
        self._seq = itertools.count(1)
        self._barren = 0
        self._fatal: BaseException | None = None
        self._trouble: list[str] = []

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Leave the batch for the next host with room. Never blocks."""
        if self._closing is not None:
            raise Closed(f"the nested lane of {self._work.name} is closed; it starts nothing more")
        if self._fatal is None and self._launch is None:
            try:
                self._launch = Launch(self._work, self._processes)
            except (DuodaoError, MemoryError) as error:
                self._fatal = error
        if self._fatal is not None:
            deliver(Result(batch, [], fatal=self._fatal))
            return
        if not batch.items:
            deliver(Result(batch, []))
            return
        with self._lock:
            queue = self._suspects if batch.careful else self._waiting
            queue.append((batch, deliver, range(len(batch.items))))
        self._ensure_thread()
        self._wake()

    def cancel(self, batch: Batch) -> None:
        """Drop what no host has, and have the hosts cancel the rest."""
        with self._lock:
            self._unwanted.append(batch)
        self._wake()

    def close(self, grace: float) -> None:
        """End every host: the inner lanes' idle workers at once, busy ones after `grace`. Idempotent; waits for it."""
        with self._lock:
            self._waiting.clear()
            self._suspects.clear()
            self._close_at(grace)
        self._await_end()
        trouble, self._trouble = self._trouble, []
        for text in trouble:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    # Who gets what; all from here on is the dispatcher's thread

    def _feed(self) -> None:
        self._drop_unwanted()
        if self._fatal is not None:
            self._refuse(self._fatal)
        while self._closing is None and self._fatal is None:
            with self._lock:
                found = self._next_suspects() or self._next_waiting()
            if found is None:
                return
            host, queue, (batch, deliver, places) = found
            lease = verdict.pack(batch, deliver, next(self._seq), self._work, places, splits=True)
            with self._lock:
                if isinstance(lease, Lease):
                    host.lease(lease)
                elif lease is not None:
                    queue.extendleft((batch, deliver, span) for span in reversed(lease))

    def _next_suspects(self) -> tuple[Host, deque[Entry], Entry] | None:
        """As many as run together, for a ward without others."""
        if not self._suspects:
            if self._ward is not None and not self._ward.open:
                self._ward = None
            return None
        able = self._able()
        if self._ward is None or (self._ward not in able and not self._ward.open):
            self._ward = min(able, key=lambda host: host.load, default=None)
            if self._ward is None or self._ward.load:
                self._ward = self._new() or self._ward
        if self._ward is None or self._ward.open:
            return None
        return self._ward, self._suspects, self._cut(self._suspects, self._width)

    def _next_waiting(self) -> tuple[Host, deque[Entry], Entry] | None:
        """An even share, for the host with the fewest, and never more than run there together: what waits in a host
        would wait for its calls, while another is free."""
        if not self._waiting:
            return None
        able = [host for host in self._able() if host is not self._ward]
        host = min(able, key=lambda host: host.load, default=None)
        if host is None or host.load:
            host = self._new() or host
        if host is None or host.load >= self._width:
            return None
        waiting = sum(len(places) for _, _, places in self._waiting)
        share = max(1, -(-waiting // self._limit))
        return host, self._waiting, self._cut(self._waiting, min(share, self._width - host.load))

    def _able(self) -> list[Host]:
        return [host for host in self._hosts if host.ending is None and not host.retiring and host.killed is None]

    def _cut(self, queue: deque[Entry], count: int) -> Entry:
        batch, deliver, places = queue.popleft()
        if len(places) > count:
            queue.appendleft((batch, deliver, places[count:]))
        return batch, deliver, places[:count]

    def _new(self) -> Host | None:
        """One more host; None where there are as many as may be."""
        if len(self._hosts) >= self._limit:
            return None
        assert self._launch is not None
        try:
            host = Host(self._on_exit, self._buffer, self._entry, self._more)
        except Broken:
            if not self._hosts:
                raise
            self._limit = len(self._hosts)  # fewer will do
            return None
        self._unborn.append(host)
        self._hosts.append(host)
        self._send_launch(host)
        return host

    def _send_launch(self, host: Host) -> None:
        assert self._launch is not None
        host.launched = self._launch.frame
        host.write(host.launched)
        host.give_outbox()

    def _drop_unwanted(self) -> None:
        with self._lock:
            unwanted, self._unwanted = self._unwanted, deque()
            if not unwanted:
                return
            for queue in (self._waiting, self._suspects):
                kept = [entry for entry in queue if entry[0] not in unwanted]
                queue.clear()
                queue.extend(kept)
            for host in self._hosts:
                for lease in host.leased():
                    if lease.batch in unwanted and not lease.cancelled:
                        lease.cancelled = True
                        host.write(wire.parts(wire.CANCEL, lease.seq))

    # What hosts send

    def _take(self, link: Link, frame: wire.Frame) -> None:
        assert isinstance(link, Host)
        if frame.kind == wire.PART:
            self._outcomes(link, frame)
        elif frame.kind in (wire.OUTPUT, wire.LOG):
            said_aside(frame)
        elif frame.kind == wire.READY:
            link.ready = True
        elif frame.kind == wire.UNREAD:
            task = link.open[frame.seq]
            link.over(frame.seq)
            if not task.lease.cancelled:
                lost(task.lease, sorted(task.left))
        elif frame.kind == wire.UNLOADED:
            self._unloaded(link, wire.load_error(bytes(frame.body)))
        elif frame.kind == wire.NOTICE:
            self._trouble.append(frame.meta)
        else:
            link.retiring = True
            self.end(not_set_up(frame))

    def _outcomes(self, host: Host, frame: wire.Frame) -> None:
        task = host.open[frame.seq]
        lease = task.lease
        places, _, _, where, kept, freed, _ = frame.meta
        places = range(frame.number) if places is None else places
        result = None if lease.cancelled or not places else outcomes(lease, frame)
        task.left.difference_update(places)
        host.load -= len(places)
        if result is not None and result.errors and self.name == "thread":
            host.stuck += sum(failure.kind == "timeout" for failure in result.errors.values())
            host.retiring = host.retiring or host.stuck >= self._width
        if where is not None:
            payload.clear(where[0])
        if places:
            self._barren = 0
        for piece in freed:
            host.kept.discard(piece)
            arena.get().free(piece)
        if kept and lease.piece is not None:
            host.kept.add(lease.piece)
            lease.piece = None
        if frame.flags & wire.LAST:
            host.over(frame.seq)
        if result is not None:  # last: who starts more because of it finds the host with room
            lease.deliver(result)

    def _unloaded(self, host: Host, error: BaseException) -> None:
        """A host can't load the function by its name; by value it may. It skips batches until it has one."""
        launch = self._launch
        assert launch is not None
        if host.launched is launch.frame and not launch.by_value(error):
            refused = NotPicklable(f"the function {self._work.name} can't be loaded in a worker: {error}", "function")
            refused.__cause__ = error
            self.end(refused)
            return
        with self._lock:
            self._send_launch(host)
            for lease in host.leased():
                host.write(lease.parts)

    def end(self, error: BaseException) -> None:
        """The run is over with this error."""
        self._fatal = error
        self._refuse(error)
        with self._lock:
            leases = [lease for host in self._hosts for lease in host.leased() if not lease.cancelled]
        for lease in leases:
            lease.cancelled = True
            lease.deliver(Result(lease.batch, [], fatal=error))

    def _refuse(self, error: BaseException) -> None:
        with self._lock:
            waiting = [*self._waiting, *self._suspects]
            self._waiting.clear()
            self._suspects.clear()
        for batch, deliver, _ in waiting:
            deliver(Result(batch, [], fatal=error))

    # Deaths and ends

    def _bury(self, link: Link) -> None:
        host = link
        assert isinstance(host, Host)
        if host not in self._hosts:
            return
        while not host.at_end and self._read(host):
            pass
        with self._lock:
            self._hosts.remove(host)
            if self._ward is host:
                self._ward = None
        inside = host.slot.read()[0]
        code = host.child.exitcode if host.child is not None else None
        tasks = list(host.open.values())
        host.close()
        for task in tasks:
            lease, places = task.lease, sorted(task.left)
            lease.discard()
            if lease.cancelled or self._closing is not None or not places:
                continue
            if not lease.batch.careful:
                lost(lease, places)
            elif len(places) > 1:
                self._halve(lease, places)
            elif host.ready or inside == lease.seq or host.killed is not None:
                blame(host, task, code, self._work)
            else:
                lost(lease, places)
        if tasks and not host.ready and host.killed is None:
            self._barren += 1
            if self._barren >= BARREN and self._fatal is None:
                self.end(verdict.barren(self._work, self._barren, host.ready, code))

    def _halve(self, lease: Lease, places: list[int]) -> None:
        where = [lease.places(at, 1)[0] for at in places]
        half = len(where) // 2
        with self._lock:
            self._suspects.extendleft((lease.batch, lease.deliver, part) for part in (where[half:], where[:half]))

    def _not_started(self, link: Link, error: Exception) -> None:
        """Fewer hosts than asked for will do; none is the end."""
        assert isinstance(link, Host)
        with self._lock:
            self._hosts.remove(link)
            self._limit = max(1, len(self._hosts))
            if self._ward is link:
                self._ward = None
        link.close()
        broken = error if isinstance(error, DuodaoError) else Broken(f"no worker process can be started: {error}")
        for task in link.open.values():
            task.lease.discard()
            if self._hosts:
                lost(task.lease, sorted(task.left))
            else:
                task.lease.deliver(Result(task.lease.batch, [], fatal=broken))
        if not self._hosts:
            self.end(broken)

    def _tend(self) -> None:
        """End, under the lock, who has to: in the end all, before it those that ask for too much."""
        now, limit = monotonic(), self._work.max_memory
        for host in self._hosts:
            if host.ending is not None:
                if now >= host.ending:
                    host.kill("close")
            elif self._closing is not None:
                host.bid_farewell(max(0.0, self._closing - now), self._handshake)
            elif host.stuck and not host.open:
                host.bid_farewell(0.0, self._handshake)  # so that what was given up does end
            elif limit is not None and host.open and deadlines.resident(host) > limit:
                host.kill("memory")
            elif now >= host.overdue(self._work):
                host.kill("timeout")

    def _due(self) -> float | None:
        """Under the lock."""
        now = monotonic()
        when = [host.ending if host.ending is not None else host.overdue(self._work)
                for host in self._hosts if host.killed is None]  # fmt: skip
        if self._work.max_memory is not None and any(host.open for host in self._hosts):
            when.append(now + _LOOK)
        due = min(when, default=math.inf)
        return None if due == math.inf else due

    def _wind_up(self) -> bool:
        with self._lock:
            return not self._hosts and not self._ended

    def at_work(self, batch: Batch | None = None) -> list[int]:
        """The processes that are in calls; with `batch`, those that are in it."""
        with self._lock:
            return [
                host.child.pid
                for host in self._hosts
                if host.child is not None and any(batch is None or lease.batch is batch for lease in host.leased())
            ]

    def _release_common(self) -> None:
        if self._launch is not None:
            self._launch.release()
