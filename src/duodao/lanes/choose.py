"""The one place that maps a name to its lane and default width; and `auto`, which measures before it chooses.

Once `auto` has chosen, nothing of it is left in the way of a batch: `start` is then the chosen lane's own.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
import types
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from duodao.cost import limits
from duodao.errors import Closed, UsageError
from duodao.lanes.base import LANES, Batch, Deliver, Lane, Result, Work

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from duodao.cost.advise import Advice, Profile, Terms
    from duodao.lanes.sampling import Sampling


def nested() -> bool:
    """True inside a worker of ours: its siblings share the CPUs with it. Read from the marker every child carries."""
    owner = os.environ.get("DUODAO_GUARD", "").partition("-")[0]
    return owner.isdigit() and int(owner) != os.getpid()


LEVELS = {
    "thread": "(processes, threads)",
    "coroutine": "(processes, coroutines) or (processes, threads, coroutines)",
    "greenlet": "(processes, greenlets)",
}
"""Lanes that can be nested in processes, and what each number of `workers=(...)` is the width of."""


def check_width(lane: str, workers: object) -> int | tuple[int, ...] | None:
    """What `workers=` means for that lane. Raises UsageError that says what is valid, or what isn't installed."""
    if lane == "greenlet" and not _has_gevent():
        raise UsageError(
            "lane='greenlet' needs gevent, which is not installed: pip install 'duodao[greenlet]'; without it, "
            "lane='thread' runs calls that block, some hundreds at once"
        )
    if workers is None or _width(workers):
        return workers  # type: ignore[return-value]
    if not isinstance(workers, tuple) or not all(map(_width, workers)):
        raise UsageError(f"workers={workers!r}: a whole number from 1, or None for the lane's default, is needed")
    if lane not in LEVELS:
        nested = "; ".join(f"lane={name!r}: {levels}" for name, levels in LEVELS.items())
        raise UsageError(f"workers={workers!r}: lane={lane!r} has one width; a width per level goes with {nested}")
    if not 2 <= len(workers) <= (3 if lane == "coroutine" else 2):
        raise UsageError(f"workers={workers!r}: lane={lane!r} takes {LEVELS[lane]}")
    return workers


def _has_gevent() -> bool:
    import importlib.util

    return importlib.util.find_spec("gevent") is not None  # the caller itself never loads it


def _width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def default_workers(lane: str, inside: bool | None = None) -> int:
    """How many calls a lane has in flight when `workers=` doesn't say. inside: a worker of ours; None asks `nested()`.

    | lane      | at the top          | inside              | because                                            |
    |-----------|---------------------|---------------------|----------------------------------------------------|
    | inline    | 1                   | 1                   | it runs in the caller's thread                     |
    | process   | cpus()              | 1                   | a core runs one call; siblings use the other cores |
    | thread    | min(64, 8 x cpus()) | 8                   | for calls that wait: 8 fill a core at 12 % CPU     |
    | coroutine | 1000                | 1000/cpus(), min 10 | under the usual limit of 1024 descriptors          |
    | greenlet  | 1000, in 1 process  | as coroutine        | as coroutine                                       |
    | command   | cpus()              | 1                   | a program computes until it is known better        |

    `auto` takes the width of the lane it chooses, up to 64 threads where calls wait most of their time; threads in
    several processes where calls compute under the GIL and wait in between. Source: M30, M36.
    """
    cpus = limits.cpus()
    top, within = {
        "inline": (1, 1),
        "process": (cpus, 1),
        "thread": (min(64, 8 * cpus), 8),
        "coroutine": (1000, max(10, 1000 // cpus)),
        "greenlet": (1000, max(10, 1000 // cpus)),
        "command": (cpus, 1),
    }[lane]
    return within if (nested() if inside is None else inside) else top


def make(
    name: str,
    work: Work,
    workers: int | tuple[int, ...] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    idle: float | None = None,
) -> Lane:
    """The lane of that name for that work.

    workers: None for the lane's default; several: a width per level. idle: seconds until a thread or process without
    work is let go, None for as long as the lane is open.

    Raises UsageError for a name that doesn't exist, and for a lane that can't run such a function; it says which can.
    """
    if name not in LANES:
        raise UsageError(f"lane={name!r}: there is no such lane (valid: {', '.join(LANES)})")
    if work.is_async and name not in ("auto", "coroutine"):
        raise UsageError(f"{work.name} is an async function: it runs on lane='coroutine', not {name!r}")
    if work.is_async and work.max_memory is not None and not isinstance(workers, tuple):
        raise UsageError(f"max_memory= needs workers that can be ended alone, and {work.name} is an async function")
    if name == "coroutine" and not work.is_async:
        raise UsageError(
            f"{work.name} is a plain function and would block the loop: use lane='thread', or make it async"
        )
    workers = check_width(name, workers)
    if name == "auto":
        assert not isinstance(workers, tuple)
        return Auto(work, workers, loop)
    return _fixed(name, work, workers or default_workers(name), loop, idle)


def _fixed(
    name: str,
    work: Work,
    workers: int | tuple[int, ...],
    loop: asyncio.AbstractEventLoop | None = None,
    idle: float | None = None,
) -> Lane:
    if isinstance(workers, tuple) or name == "greenlet":
        from duodao.children import guard

        guard.ensure()
        from duodao.lanes.nested import Nested

        return Nested(name, work, workers if isinstance(workers, tuple) else (1, workers))
    if name == "command":
        from duodao.lanes.command import Commands

        return Commands(work, workers)
    if name == "inline":
        from duodao.lanes.inline import Inline

        return Inline(work)
    if name == "thread":
        from duodao.lanes.thread import Threads

        return Threads(work, workers, idle=idle)
    if name == "process":
        from duodao.children import guard

        guard.ensure()  # it starts while this process imports the lane
        from duodao.lanes.process import Processes

        return Processes(work, workers, idle=idle)
    from duodao.lanes.coroutine import Coroutines

    return Coroutines(work, workers, loop=loop)


def terms(work: Work, workers: int | None = None, remaining: int | None = None) -> Terms:
    """What there is to choose from for this work."""
    from duodao.cost.advise import Terms

    lanes = {"inline", "thread", "process"}
    if work.timeout is not None:
        lanes.discard("inline")
    if work.seed is not None and not work.wants_rng:
        lanes.discard("thread")  # threads share one random state
    return Terms(
        cpus=default_workers("process"),
        gil=bool(getattr(sys, "_is_gil_enabled", lambda: True)()),
        threads=default_workers("thread"),
        workers=workers,
        remaining=remaining,
        lanes=frozenset(lanes),
    )


def measure(
    function: Callable[..., Any],
    sample: Iterable[Any],
    *,
    star: bool = False,
    common: Mapping[str, Any] | None = None,
    setup: Mapping[str, Callable[[], Any]] | None = None,
    seconds: float = 2.0,
) -> Profile:
    """What a call of `function` costs, what two threads and two processes gain, and which lane that advises.

    sample: inputs, the first 100 are used, over and over. star, common, setup: as for `map`. seconds: to spend, over 0;
    a single call may take longer. The function is called many times, in threads of this process and, where it can
    travel, in others. Returns a Profile; `print` it. Raises UsageError for an empty sample or no function, and what a
    call raises. Source: M2, M3, M19.
    """
    from duodao.lanes.trial import trial

    if not callable(function):
        raise UsageError(f"a function is needed, not {function!r}")
    if not seconds > 0:
        raise UsageError(f"seconds={seconds!r}: a number over 0 is needed")
    items = list(itertools.islice(sample, 100))
    if not items:
        raise UsageError("the sample is empty: measuring needs at least one input")
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    is_async = any(map(inspect.iscoroutinefunction, (inner, getattr(inner, "__call__", None))))  # noqa: B004
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    work = Work(function, name, star, dict(common or {}), dict(setup or {}), is_async=is_async)
    return trial(work, items, _fixed, terms(work), seconds)


_SCALARS = frozenset((int, float, bool, str, bytes, type(None)))
_TASTED = 32
"""Calls after which arithmetic that was run at once is judged."""


def _is_arithmetic(work: Work) -> bool:
    """The function names nothing, loops never and is given nothing but its input: on scalars it can't crash or hang."""
    code = getattr(work.function, "__code__", None)
    if code is None or work != Work(work.function, work.name) or type(work.function) is not types.FunctionType:
        return False
    if code.co_names or code.co_freevars or work.function.__defaults__ or work.function.__kwdefaults__:
        return False
    import dis

    return not any(step.opcode in dis.hasjrel + dis.hasjabs and "BACKWARD" in step.opname
                   for step in dis.get_instructions(code))  # fmt: skip


class Auto:
    """Measures the first calls, then hands everything to the lane that suits them.

    expected: the number of inputs, set by who knows it. why: the reason for the choice in one sentence. name, workers,
    target, depth and singly become those of the chosen lane. Source: M3, M20.
    """

    def __init__(self, work: Work, workers: int | None = None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.name, self.workers, self.target, self.depth, self.singly = "auto", 1, 0.005, 1, False
        self.why = "measuring the first calls"
        self.ran = "auto"  # the lane that calls have run on, the samples' at first
        self.expected: int | None = None
        self._work = work
        self._asked = workers
        self._loop = loop
        self._context = copy_context()  # lanes give it to their calls, and are made on the judge's thread
        self._inner: Lane | None = None
        self._sampling: Sampling | None = None
        self._closed = False
        self._tasting: tuple[Lane, list[float]] | None = None
        if work.is_async:
            self._become("coroutine", workers, "it is an async function")
        elif work.max_memory is not None:
            self._become("process", workers, "max_memory= needs workers that can be ended alone")
        elif _is_arithmetic(work):
            self._tasting = _fixed("inline", work, 1), []

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Run the batch: as a sample, until there are enough of them."""
        if self._closed:
            raise Closed(f"the lane of {self._work.name} is closed")
        if self._tasting is not None and self._taste(*self._tasting, batch, deliver):
            return
        if self._sampling is None and self._inner is None:
            self._sampling = self._sample(batch)
        if self._sampling is not None and self._sampling.take(batch, deliver):
            return
        assert self._inner is not None  # `take` refuses only after the choice
        self._inner.start(batch, deliver)

    def _taste(self, lane: Lane, spent: list[float], batch: Batch, deliver: Deliver) -> bool:
        """Run the first calls of plain arithmetic here, without samplers: a million of them take less than those."""
        if not all(type(item) in _SCALARS for item in batch.items) or len(spent) >= _TASTED:
            self._tasting = None
            return False

        def note(result: Result) -> None:
            spent.extend([result.seconds / max(1, len(result.values))] * len(result.values))
            deliver(result)

        self.ran = "inline"
        lane.start(batch, note)
        if len(spent) >= _TASTED:
            from duodao.cost.advise import TINY, duration

            per = sorted(spent)[len(spent) // 2]
            if per < TINY:
                self._tasting = None
                self._become("inline", 1, f"{duration(per)} per call is less than handing it over would cost")
        return True

    def cancel(self, batch: Batch) -> None:
        """Stop the batch as far as its lane can."""
        if self._sampling is not None and self._sampling.cancel(batch):
            return
        if self._inner is not None:
            self._inner.cancel(batch)

    def close(self, grace: float) -> None:
        """End the samplers and the chosen lane. Idempotent."""
        self._closed = True
        if self._sampling is not None:
            self._sampling.close(grace)
        if self._inner is not None:
            self._inner.close(grace)

    async def aclose(self, grace: float) -> None:
        """As `close`, on the loop the lane was given, and waits until calls there have ended."""
        self.close(grace)
        aclose = getattr(self._inner, "aclose", None)
        if aclose is not None:
            await aclose(grace)

    def _sample(self, first: Batch) -> Sampling:
        from duodao.lanes.sampling import Sampling

        def sampler(name: str, work: Work, workers: int | None) -> Lane:
            self.ran = name
            return self._context.copy().run(_fixed, name, work, workers or 1)

        def adopt(advice: Advice) -> None:
            self._become(advice.lane, advice.workers, advice.why)

        return Sampling(self._work, first, sampler, lambda: terms(self._work, self._asked, self.expected), adopt)

    def _become(self, lane: str, workers: int | tuple[int, ...] | None, why: str) -> None:
        inner = self._context.copy().run(_fixed, lane, self._work, workers or default_workers(lane), self._loop)
        self._inner = inner
        self.why = why
        self.target, self.depth, self.singly = inner.target, inner.depth, inner.singly
        self.workers, self.name = inner.workers, inner.name
        self.ran = inner.name
        self.start = inner.start  # type: ignore[method-assign]
