"""From what calls cost to where they should run. Nothing here measures or waits: figures in, Advice out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from duodao.cost.sample import Cost

WAITS = 0.25
"""Share of CPU in a call's time under which it counts as waiting: what people call I/O lies clear of it."""
HOLDS = 0.35
"""Share of its CPU time under the GIL from which threads can't gain: at 0.35 eight threads gain less than three."""
MIXED = 0.80
"""Share of CPU up to which a call under the GIL runs on threads in several processes: it leaves its core to others."""
THREADS = 8
"""In each of several processes: at a quarter of CPU twice as many as fill the core, since calls don't take turns."""
TINY = 2e-6
"""Seconds of CPU. No hand-over to any lane is cheaper than such a call itself."""
HANDED = 50e-6
"""Seconds of CPU from which giving up and taking back the GIL costs less than a second thread gains."""
RESPONSIVE = 0.020
"""Seconds. A longer call runs on a thread of its own even if no lane can speed it up, so that the caller isn't held."""
PER_ITEM = 0.5e-6
"""Seconds of both sides' loops that an item costs on the process lane, beside pickling."""
GAIN, CLEAR_GAIN = 0.9, 0.6
"""Processes must take less than this part of the time, or the simpler lane is taken; the second for calls under HANDED,
which are measured cold, and cost less once they run in a row."""
COLD, WARM = 0.15, 0.01
"""Seconds until the first process worker answers: with the guard to start, and without."""
ENOUGH, LIMIT, MOST = 5, 0.050, 1000
SETTLED = 0.002
"""Seconds of calls that the GIL probe needs to see more than its own noise."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a call costs, as means per call. Seconds and switches; share: CPU / (wall - waited); hold: held / CPU.

    unfinished: the last call still ran when it was looked at: it takes longer than these figures say.
    """

    calls: int
    wall: float
    cpu: float
    held: float
    waited: float = 0.0
    voluntary: float = 0.0
    involuntary: float = 0.0
    unfinished: bool = False

    @property
    def share(self) -> float:
        """The part of its own time a call computes, from 0 to 1. Waiting for a core is not the call's doing."""
        own = max(self.wall - self.waited, self.cpu)
        return self.cpu / own if own > 0 else 1.0

    @property
    def hold(self) -> float:
        """The part of its CPU time a call holds the GIL, from 0 to 1."""
        return min(1.0, max(0.0, self.held / self.cpu)) if self.cpu > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What there is to choose from. cpus: to use; gil: there is one; threads: the thread lane's default width;
    workers: the user's width; remaining: items left, None: unknown; ship: seconds of pickling per item, there and back,
    None: unknown; warm: process workers can start at once; stays: why the work can't go to another process, else "";
    lanes: those that can keep the other promises asked for (time-out, memory, seed)."""

    cpus: int
    gil: bool = True
    threads: int = 16
    workers: int | None = None
    remaining: int | None = None
    ship: float | None = None
    warm: bool = False
    stays: str = ""
    lanes: frozenset[str] = field(default=frozenset({"inline", "thread", "process"}))


@dataclass(frozen=True, slots=True)
class Advice:
    """Where calls should run, how many at once (a pair: processes, and threads in each), and why in one sentence.
    Source: M3, M36."""

    lane: str
    workers: int | tuple[int, int]
    why: str

    def __str__(self) -> str:
        return f"{self.lane} x {self.workers}: {self.why}"


def figures(costs: Sequence[Cost], *, unfinished: bool = False) -> Figures:
    """Means over the calls. A first call three times as long as the others usually is (imports, connections, caches)
    is left out, so that it doesn't speak for all."""
    if len(costs) > 2 and costs[0].wall > 3 * sorted(cost.wall for cost in costs[1:])[len(costs) // 2 - 1]:
        costs = costs[1:]
    wall, cpu, held, waited, voluntary, involuntary = (sum(column) / len(costs) for column in zip(*costs, strict=True))
    return Figures(len(costs), wall, cpu, held, waited, voluntary, involuntary, unfinished)


def enough(costs: Sequence[Cost], elapsed: float) -> bool:
    """True when the calls so far decide: five of them or 50 ms; more when they are too short for the probe, fewer when
    two already agree that calls wait, or compute, for long."""
    if not costs:
        return False
    if elapsed >= LIMIT or len(costs) >= MOST:
        return True
    seen = figures(costs)
    total = seen.calls * seen.wall
    if len(costs) < ENOUGH:
        clear = seen.share < WAITS / 2 if total >= SETTLED else False
        return len(costs) >= 2 and (clear or (total >= LIMIT / 2 and seen.share > 0.9))
    return total >= SETTLED or seen.cpu < TINY


def advise(seen: Figures, terms: Terms) -> Advice:
    """The lane for calls that cost this, and why. Pure: tests hold it with figures."""
    if seen.share < WAITS:
        return _waiting(seen, terms)
    cpu = duration(seen.cpu)
    if seen.cpu < TINY and "inline" in terms.lanes:
        return Advice("inline", 1, f"{cpu} per call is less than handing it over would cost")
    held = f"{'over ' if seen.unfinished else ''}{cpu} of CPU per call, the GIL is held {seen.hold:.0%} of it"
    cores = min(terms.cpus, terms.remaining or terms.cpus)
    if cores > 1 and seen.cpu >= HANDED and "thread" in terms.lanes:
        if not terms.gil:
            return Advice("thread", terms.workers or terms.cpus, f"{cpu} of CPU per call, and this Python has no GIL")
        if seen.hold < HOLDS:
            return Advice("thread", terms.workers or terms.cpus, held)
    no = _no_processes(seen, terms)
    if not no:
        widths = _levels(seen, terms)
        if widths is not None:
            return Advice("thread", widths, f"{held}, and it waits {1 - seen.share:.0%} of its {duration(seen.wall)}")
        return Advice("process", terms.workers or _spread(seen, terms), held)
    return _alone(seen, terms, f"{held}; {no}")


def _waiting(seen: Figures, terms: Terms) -> Advice:
    why = f"it waits {1 - seen.share:.0%} of its {duration(seen.wall)}"
    if "thread" not in terms.lanes:
        return Advice("process", terms.workers or 2 * terms.cpus, f"{why}; {_asked(terms)}")
    # As many as keep the cores busy; at least the default, and never a crowd that a server would refuse.
    fitting = math.ceil(terms.cpus / max(seen.share, 0.01))
    width = max(terms.threads, min(64, fitting)) if terms.threads > 8 else terms.threads
    return Advice("thread", terms.workers or width, why)


def _levels(seen: Figures, terms: Terms) -> tuple[int, int] | None:
    """(processes, threads in each) for calls that hold the GIL and wait in between. None where processes of one call
    each do as well, or were asked for."""
    if not WAITS <= seen.share <= MIXED or seen.cpu < HANDED or not {"thread", "process"} <= terms.lanes:
        return None
    if terms.workers is None:
        return terms.cpus, THREADS
    processes = min(terms.cpus, terms.workers)
    return (processes, terms.workers // processes) if terms.workers >= 2 * processes else None


def _spread(seen: Figures, terms: Terms) -> int:
    """A process per core, and some more for calls that also wait."""
    if seen.share > 0.75:
        return terms.cpus
    return min(4 * terms.cpus, math.ceil(terms.cpus / seen.share))


def _no_processes(seen: Figures, terms: Terms) -> str:
    """Why processes would not help; "" when they do."""
    if terms.lanes == {"process"}:
        return ""
    if "process" not in terms.lanes:
        return "processes are ruled out"
    if terms.stays:
        return terms.stays
    cores = min(terms.cpus, terms.remaining or terms.cpus, terms.workers or terms.cpus)
    if cores < 2:
        return "one call at a time is left to run" if terms.remaining == 1 else "there is one core to use"
    ship = PER_ITEM if terms.ship is None else PER_ITEM + terms.ship
    # Half of the shipping is done by the caller's process, which has to do it for all workers.
    apart = max((seen.wall + ship) / cores, ship / 2)
    if apart > (GAIN if seen.wall >= HANDED else CLEAR_GAIN) * seen.wall:
        return f"sending it to a process and back takes {duration(ship)}"
    if (
        terms.remaining is not None
        and not seen.unfinished
        and terms.remaining * (seen.wall - apart) < (WARM if terms.warm else COLD)
    ):
        return f"{terms.remaining} calls are over before processes have started"
    return ""


def _alone(seen: Figures, terms: Terms, why: str) -> Advice:
    """No lane makes it faster: the caller's own thread, or threads where calls are long or wait in between."""
    together = max(1, min(terms.threads, int(seen.wall / seen.held))) if seen.held > 0 else 1
    if "inline" in terms.lanes and seen.wall <= RESPONSIVE and together == 1:
        return Advice("inline", 1, why)
    if "thread" in terms.lanes:
        return Advice("thread", terms.workers or together, why)
    return Advice("inline" if "inline" in terms.lanes else "process", 1, why)


def _asked(terms: Terms) -> str:
    return "only processes keep what was asked for" if terms.lanes == {"process"} else "threads are ruled out"


def duration(seconds: float) -> str:
    """Seconds for a reader: three digits at most and the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


@dataclass(frozen=True, slots=True)
class Profile:
    """What `duodao.measure` found out.

    figures: means per call. two_threads, two_processes: how much faster two are than one (None: not tried, `notes`
    says why). sent: bytes of an input and its result, pickled. Source: M2, M3, M19."""

    name: str
    figures: Figures
    advice: Advice
    two_threads: float | None = None
    two_processes: float | None = None
    sent: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def wall(self) -> float:
        """Seconds per call."""
        return self.figures.wall

    @property
    def cpu(self) -> float:
        """CPU seconds per call."""
        return self.figures.cpu

    @property
    def gil(self) -> float:
        """The part of the call's CPU time for which it held the GIL, 0 to 1."""
        return self.figures.hold

    def __str__(self) -> str:
        seen = self.figures
        rows = [
            ("wall", duration(seen.wall), f"mean of {seen.calls} call{'s' if seen.calls > 1 else ''}"),
            ("CPU", duration(seen.cpu), f"{seen.share:.0%} of its own time"),
            ("GIL held", duration(max(0.0, min(seen.held, seen.cpu))), f"{seen.hold:.0%} of the CPU time"),
            ("switches", f"{seen.voluntary:.1f}", f"it waited; {seen.involuntary:.1f} its slice was used up"),
            ("for a core", duration(seen.waited), "waited in the run queue"),
            ("2 threads", _times(self.two_threads), "against one"),
            ("2 processes", _times(self.two_processes), "against one"),
        ]
        if self.sent is not None:
            rows.append(("sent", f"{self.sent} B", "input and result, to a process and back"))
        table = [f"  {name:<12}{value:>9}  {note}" for name, value, note in rows]
        return "\n".join([self.name, *table, *(f"  {note}" for note in self.notes), f"  advice: {self.advice}"])


def _times(gain: float | None) -> str:
    return "-" if gain is None else f"{gain:.2f} x"
