"""The input of the run: hands out the URL that may be fetched next, and is fed with what the pages link to.

    add ──► seen? ──► backlog of its host ──► due? slot free? allowed? ──► next() ──► run ──► done ──► add …

The iterator ends when nothing waits and nothing is out: only a page that is out could bring new URLs. `next()` is
called by the run's source thread, `started` and `landed` by the fetching loop, all else by whoever takes the pages: one
condition.

Invariants: a canonical URL is queued at most once. A host has at most `per_host` requests in the air (out, and not
landed); all hosts have `concurrency` together, so that what is handed out starts at once. The next one of a host that
is paced is timed from when the last one did start: until then none is handed out. Requests that the journal holds are
not paced: they don't reach the wire.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from duodao_crawl.backlog import Backlog, Line
from duodao_crawl.canonical import origin
from duodao_crawl.page import Request
from duodao_crawl.robots import ALL, Desk, Rules
from duodao_crawl.settings import Settings

AT_ONCE = -1.0
"""When a request is due that the journal holds: before all others, and without a slot."""


@dataclass(slots=True)
class Out:
    """A request that was handed out and has not come back. in_air: it holds a slot of its host."""

    host: Host
    in_air: bool


@dataclass(slots=True)
class Pace:
    """What one server is asked for: http and https of a name together.

    starting: one was handed out and the next is timed from its start. last: when one started. closed_until: the
    server's own word.
    """

    hosts: list[Host] = field(default_factory=list)
    in_air: int = 0
    starting: bool = False
    last: float = -math.inf
    closed_until: float = 0.0


@dataclass(slots=True)
class Host:
    """One scheme, name and port. rules: None until its robots.txt is known."""

    name: str
    line: Line
    pace: Pace
    rules: Rules | None
    urgent: list[tuple[float, int, Request]] = field(default_factory=list)  # (not before, tie, request)
    asked: bool = False
    due: float | None = None  # its entry in the heap that counts; others are left over


class Frontier(Iterator[Request]):
    """known: whether the journal holds a request's result. refused: is told of URLs that the rules forbid."""

    def __init__(
        self, settings: Settings, *, known: Callable[[Request], bool] = lambda _: False,
        refused: Callable[[str, str], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic,
        backlog: Backlog | None = None,
    ) -> None:  # fmt: skip
        self.fetched = 0
        self._settings = settings
        self._known = known
        self._refused = refused
        self._clock = clock
        self._backlog = backlog or Backlog()
        self._desk = Desk()
        self._depths: dict[int, int] = {}  # by hash: 64 bits, keyed anew in each process; 100 bytes in place of a URL
        self._hosts: dict[str, Host] = {}
        self._paces: dict[str, Pace] = {}
        self._heap: list[tuple[float, int, Host]] = []
        self._tie = 0
        self._out: dict[Request, Out] = {}
        self._in_air = 0
        self._closed = False
        self._changed = threading.Condition()

    # -- who takes the pages -------------------------------------------------------------------------------------------

    def add(self, urls: Iterable[str], depth: int) -> None:
        """Queue those canonical URLs that were never queued."""
        depths = self._depths
        with self._changed:
            for url in urls:
                mark = hash(url)
                before = depths.get(mark)
                if before is None or depth < before:
                    depths[mark] = depth
                if before is not None:
                    continue
                host = self._host(origin(url))
                host.line.put(url)
                if host.rules is None and not host.asked and self._room():
                    host.asked = True
                    own = f"{host.name}/robots.txt"
                    self._inquire(own, self._desk.ask(own, [host.name]))
                self._schedule(host)
            self._changed.notify_all()

    def again(self, request: Request, wait: float, *, everyone: bool = False) -> None:
        """Queue a request that comes after another one, not before `wait` seconds; `everyone`: its host waits, too."""
        with self._changed:
            host = self._host(origin(request.url))
            self._urge(host, request, 0.0 if self._known(request) else wait)
            if everyone:
                host.pace.closed_until = max(host.pace.closed_until, self._clock() + wait)
            self._reschedule(host.pace)
            self._changed.notify_all()

    def rule(self, request: Request, rules: Rules) -> None:
        """A robots.txt has come: the URLs of the hosts that wait for it may go out."""
        with self._changed:
            self._settle(self._desk.answer(request.url, rules))

    def moved(self, request: Request, target: str) -> None:
        """A robots.txt is elsewhere."""
        with self._changed:
            self._inquire(target, self._desk.moved(request.url, target))

    def started(self, request: Request) -> None:
        """It goes out now: its host's next one is timed from here."""
        with self._changed:
            pace = self._out[request].host.pace
            pace.last = self._clock()
            if pace.starting:
                pace.starting = False
                self._reschedule(pace)
                self._changed.notify_all()

    def landed(self, request: Request) -> None:
        """Its fetch is over: the slot of its host is free, though its page may still be in work."""
        with self._changed:
            out = self._out.get(request)
            if out is not None and out.in_air:
                self._land(out)
                self._changed.notify_all()

    def done(self, request: Request) -> None:
        """Its page has come, and all it led to was added: the iterator ends when this was the last."""
        with self._changed:
            out = self._out.pop(request)
            if out.in_air:
                self._land(out)
            self._changed.notify_all()

    def depth(self, url: str) -> int:
        """The fewest links, of those found so far, that lead from a seed to a URL that was queued."""
        return self._depths[hash(url)]

    def left(self) -> int:
        """URLs that wait for their turn, or for another attempt."""
        with self._changed:
            hosts = self._hosts.values()
            return sum(len(host.line) + sum(not entry[2].robots for entry in host.urgent) for host in hosts)

    def close(self) -> None:
        """Hand out nothing more: whoever waits in `next()` gets the end. Idempotent."""
        with self._changed:
            self._closed = True
            self._backlog.close()
            self._changed.notify_all()

    # -- the run's source thread ---------------------------------------------------------------------------------------

    def __next__(self) -> Request:
        with self._changed:
            while not self._closed:
                request, wait = self.take(self._clock())
                if request is not None:
                    return request
                if wait is None and not self._out:
                    break
                self._changed.wait(wait)
        raise StopIteration

    def take(self, now: float) -> tuple[Request | None, float | None]:
        """(a request that may go out now, seconds until there may be one); (None, None): nothing is known to come."""
        while self._heap:
            due, _, host = self._heap[0]
            if host.due != due:  # it was scheduled anew since
                heapq.heappop(self._heap)
                continue
            if due > now:
                return None, due - now
            if due != AT_ONCE and self._in_air >= self._settings.concurrency:
                return None, None  # what lands wakes us
            heapq.heappop(self._heap)
            host.due = None
            request = self._pick(host, now)
            self._schedule(host)
            if request is not None:
                return request, None
        return None, None

    def _pick(self, host: Host, now: float) -> Request | None:
        """Take the request of `host` that is due; None when the rules forbid it, or max_pages was reached meanwhile."""
        urgent, ordinary = self._dues(host)
        if urgent is not None and urgent <= now and (ordinary is None or urgent <= ordinary):
            _, _, request = heapq.heappop(host.urgent)
        elif ordinary is not None and ordinary <= now and host.rules is not None:
            url = host.line.pop()
            request = Request(url)
            if not host.rules.allows(url):
                self._refused(url, host.rules.why)
                return None
            self.fetched += 1
        else:
            return None
        wire = not self._known(request)
        self._out[request] = Out(host, wire)
        if wire:
            self._in_air += 1
            host.pace.in_air += 1
            host.pace.starting = self._gap(host) > 0
            self._reschedule(host.pace)
        return request

    def _room(self) -> bool:
        most = self._settings.max_pages
        return most is None or self.fetched < most

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            pace = self._paces.setdefault(name.partition("://")[2], Pace())
            host = Host(name, self._backlog.line(), pace, None if self._settings.robots else ALL)
            self._hosts[name] = host
            pace.hosts.append(host)
        return host

    def _inquire(self, url: str, asked: tuple[bool, list[tuple[str, Rules]]]) -> None:
        needed, settled = asked
        self._settle(settled)
        if needed:
            host = self._host(origin(url))
            self._urge(host, Request(url, robots=True), 0.0)
            self._schedule(host)
        self._changed.notify_all()

    def _settle(self, settled: list[tuple[str, Rules]]) -> None:
        for name, rules in settled:
            host = self._host(name)
            host.rules = rules
            self._schedule(host)
        self._changed.notify_all()

    def _urge(self, host: Host, request: Request, wait: float) -> None:
        self._tie += 1
        heapq.heappush(host.urgent, (self._clock() + wait, self._tie, request))

    def _schedule(self, host: Host) -> None:
        due = min((due for due in self._dues(host) if due is not None), default=None)
        if due is not None and due != host.due:
            self._tie += 1
            heapq.heappush(self._heap, (due, self._tie, host))
        host.due = due

    def _reschedule(self, pace: Pace) -> None:
        for host in pace.hosts:
            self._schedule(host)

    def _dues(self, host: Host) -> tuple[float | None, float | None]:
        """When its next urgent and its next ordinary request may go out; None: not before something changes."""
        urgent = ordinary = None
        pace = host.pace
        slot = pace.in_air < self._settings.per_host and not pace.starting
        free_at = max(pace.last + self._gap(host), pace.closed_until)
        if host.urgent:
            at, _, request = host.urgent[0]
            urgent = AT_ONCE if self._known(request) else max(at, free_at) if slot else None
        if host.rules is not None and self._room():
            url = host.line.peek()
            if url is not None:
                ordinary = AT_ONCE if self._known(Request(url)) else free_at if slot else None
        return urgent, ordinary

    def _gap(self, host: Host) -> float:
        """Seconds from the start of a request to the next one's."""
        return max(self._settings.interval, host.rules.delay if host.rules is not None else 0.0)

    def _land(self, out: Out) -> None:
        out.in_air = False
        self._in_air -= 1
        out.host.pace.in_air -= 1
        out.host.pace.starting = False  # where it came to an end before it started
        self._reschedule(out.host.pace)
