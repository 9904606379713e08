"""A run as the caller holds it: `Map`, an iterator of results that starts when it is first asked for one."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from duodao.clock import SYSTEM, Clock
from duodao.errors import UsageError
from duodao.outcome import Report
from duodao.pipeline.engine import Committed, Engine, Fatal
from duodao.pipeline.ledger import Ledger
from duodao.pipeline.observe import Observer, snapshot
from duodao.pipeline.stages import (
    RUN_OPTIONS,
    STAGE_OPTIONS,
    Batched,
    Pipeline,
    Stage,
    fuse,
    make_stage,
    unfused,
    unknown_option,
)
from duodao.telemetry import Snapshot

if TYPE_CHECKING:
    import asyncio

    from duodao.channel.journal import Journal

R = TypeVar("R")

displays: list[Callable[[], Callable[[Snapshot], object]]] = []
"""What `progress=True` shows; layer 5 puts its display here (duodao/__init__.py)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run needs to know, checked; nothing is started by making one."""

    steps: tuple[Stage | Batched, ...]
    inputs: Any
    ordered: bool = True
    errors: str = "raise"
    max_failures: float | None = None
    window: int | None = None
    journal: Journal | None = None
    progress: Callable[[Snapshot], object] | None = None
    whole: bool = False


def plan(work: Any, inputs: Any, options: dict[str, Any], *, whole: bool = False) -> Plan:
    """Check work, inputs and options. Raises UsageError."""
    for name in options:
        if name not in STAGE_OPTIONS and name not in RUN_OPTIONS:
            raise unknown_option(name, (*STAGE_OPTIONS, *RUN_OPTIONS))
    stage = {name: value for name, value in options.items() if name in STAGE_OPTIONS}
    if isinstance(work, Pipeline):
        if stage:
            raise UsageError(
                f"{', '.join(stage)}: options of a stage; with a Pipeline they are given to Pipeline(...) or .then(...)"
            )
        steps = work.steps
    else:
        steps = (make_stage(work, stage),)
    if not (hasattr(inputs, "__iter__") or hasattr(inputs, "__aiter__") or hasattr(inputs, "__getitem__")):
        raise UsageError(f"inputs must be something to iterate over, not {type(inputs).__name__}")
    if getattr(inputs, "ndim", 1) == 0:
        raise UsageError("inputs must be something to iterate over, not an array of no dimensions")
    errors = options.get("errors", "raise")
    if errors not in ("raise", "collect"):
        raise UsageError(f"errors={errors!r}: 'raise' or 'collect' is needed")
    window = options.get("window")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise UsageError(f"window={window!r}: a whole number of inputs from 1, or None, is needed")
    progress = options.get("progress")
    if progress in (None, False):
        progress = None
    elif progress is True:
        progress = displays[0]() if displays else None
    elif not callable(progress):
        raise UsageError(f"progress={progress!r}: True or a function that takes a Snapshot is needed")
    return Plan(
        tuple(fuse(steps)), inputs, bool(options.get("ordered", True)), errors, _failures(options.get("max_failures")),
        window, _journal(options.get("journal"), options.get("key")), progress, whole,
    )  # fmt: skip


def _failures(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        raise UsageError(f"max_failures={value!r}: a number of inputs from 0, or a share under 1, is needed")
    if isinstance(value, float) and value >= 1 and not value.is_integer():
        raise UsageError(f"max_failures={value!r}: a whole number of inputs, or a share under 1, is needed")
    return value


def _journal(value: Any, key: Any) -> Journal | None:
    if value is None:
        if key is not None:
            raise UsageError("key= says how a journal knows an input again: it needs journal=")
        return None
    from duodao.channel.journal import Journal

    if isinstance(value, Journal):
        if key is not None:
            raise UsageError("key= is given to the Journal or to the run, not to both: write Journal(path, key=...)")
        return value
    return Journal(value, key=key)


class Live:
    """The running half of a Map: what its iterators hold. It never refers to the Map, so that dropping the Map and its
    iterator ends the run at once, without waiting for a garbage collection."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self.plan = plan
        self.clock = clock
        self.engine: Engine | None = None
        self.observer: Observer | None = None
        self.report = Report()
        self.draining = False
        self.started = False
        self.ended = False

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> Engine:
        """Open the journal, make lanes and source. Raises what can't be opened; then nothing is left."""
        from duodao.lanes.choose import make

        plan = self.plan
        self.started = True
        if loop is None and not hasattr(plan.inputs, "__iter__") and not hasattr(plan.inputs, "__getitem__"):
            raise UsageError("the inputs are an async iterable: use `async for`, or duodao.arun")
        whole = plan.whole or plan.errors == "collect" or plan.journal is not None
        ledger = Ledger(
            ordered=plan.ordered, whole=whole, raising=plan.errors == "raise",
            outcomes=plan.errors == "collect" or plan.whole, max_failures=plan.max_failures, keeper=plan.journal,
        )  # fmt: skip
        self.observer = Observer(plan.progress) if plan.progress is not None else None
        holder: list[Engine] = []
        if plan.journal is not None:
            self._open_journal(plan.journal, holder)
        try:
            engine = Engine(
                plan.steps, plan.inputs, ledger, make, ordered=plan.ordered, window=plan.window, journal=plan.journal,
                observer=self.observer, clock=self.clock, loop=loop,
            )  # fmt: skip
        except BaseException:
            if plan.journal is not None:
                plan.journal.finish(complete=False)
            raise
        holder.append(engine)
        self.engine = engine
        if self.draining:
            engine.drain()
        return engine

    def _open_journal(self, journal: Journal, holder: list[Engine]) -> None:
        from duodao.channel.journal import fingerprint

        steps = self.plan.steps
        functions = [function for step in steps if isinstance(step, Stage) for function in unfused(step)]
        shape = " -> ".join(f"batch({s.size})" if isinstance(s, Batched) else s.work.name for s in steps)

        def put(entry: Committed | Fatal) -> None:
            if holder:
                holder[0].arrive(entry)

        journal.open(
            dataclasses.replace(fingerprint(functions), shape=shape),
            on_committed=lambda ids: put(Committed(ids)),
            on_error=lambda error: put(Fatal(error)),
        )

    def lists(self) -> Iterator[list[Any]]:
        """Lists of results until the run is over; closing this generator ends the run."""
        if self.ended:
            return
        engine = self.start()
        complete = False
        try:
            while (out := engine.next_list()) is not None:
                yield out
            complete = not engine.ledger.report.stopped
        finally:
            self.end(complete=complete)

    async def each(self) -> AsyncIterator[Any]:
        """The same, one by one, for a running event loop."""
        import asyncio

        if self.ended:
            return
        engine = self.start(asyncio.get_running_loop())
        complete = False
        try:
            while (out := await engine.anext_list()) is not None:
                for value in out:
                    yield value
                await asyncio.sleep(0)  # results that are always ready must not keep the loop from its other tasks
            complete = not engine.ledger.report.stopped
        finally:
            self.end(complete=complete)
            await engine.unwind()

    def tell_lanes(self, what: str) -> None:
        """Call the method of that name of every lane that has one."""
        for node in self.engine.nodes if self.engine is not None else ():
            method = getattr(node.lane, what, None)
            if method is not None:
                method()

    def end(self, *, complete: bool) -> None:
        """Stop lanes and source, bring the report up to date, close the journal. Idempotent."""
        engine, plan = self.engine, self.plan
        if self.ended or engine is None:
            self.ended = True
            return
        self.ended = True
        try:
            engine.close()
            self.report = engine.finish_report()
            if plan.journal is not None:
                counts = plan.journal.finish(complete=complete)
                self.report.dropped, self.report.added = counts.dropped, counts.added
        finally:
            if self.observer is not None:
                self.observer.end(engine)


class Map(Generic[R]):
    """The results of a run: an iterator (`for`, `next`), an async iterator, and a context manager that ends the run.

    Nothing runs before the first result is asked for. Leaving the loop drops what is in flight and ends every worker;
    `with` does so at a certain point. `report` says what was done so far; `snapshot()` what goes on now.
    """

    def __init__(self, plan: Plan, clock: Clock = SYSTEM) -> None:
        self._live = Live(plan, clock)
        self._results: Iterator[R] | None = None
        self._aresults: AsyncIterator[R] | None = None

    # -- the iterator -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[R]:
        if self._results is None:
            self._check_unused()
            self._results = itertools.chain.from_iterable(self._live.lists())
        return self._results

    def __next__(self) -> R:
        return next(iter(self))

    def __aiter__(self) -> AsyncIterator[R]:
        if self._aresults is None:
            self._check_unused()
            self._aresults = self._live.each()
        return self._aresults

    async def __anext__(self) -> R:
        return await self.__aiter__().__anext__()

    def _check_unused(self) -> None:
        if self._results is not None or self._aresults is not None:
            raise UsageError("this map is iterated already: either with `for` or with `async for`, not with both")

    def __enter__(self) -> Map[R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Map[R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- control ------------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What was done so far; complete once the iteration is over."""
        live = self._live
        return live.report if live.engine is None or live.ended else live.engine.finish_report()

    @property
    def journal(self) -> Journal | None:
        """The journal of this run, if it has one."""
        return self._live.plan.journal

    def snapshot(self) -> Snapshot | None:
        """What goes on now; None before the first result was asked for."""
        return None if self._live.engine is None else snapshot(self._live.engine)

    def drain(self) -> None:
        """Take no more inputs and finish what is in flight: the iteration ends by itself. From any thread or signal."""
        self._live.draining = True
        if self._live.engine is not None:
            self._live.engine.drain()

    def suspend(self) -> None:
        """Stop the programs of lane="command" and their time-outs until `resume`: for a Ctrl-Z, from its handler.

        They are in groups of their own, so the terminal doesn't stop them. Functions are left alone.
        """
        self._live.tell_lanes("suspend")

    def resume(self) -> None:
        """Let them go on."""
        self._live.tell_lanes("resume")

    def lists(self) -> Iterator[list[R]]:
        """Results in the lists they come in, for whoever passes them on at once; used in place of `for`."""
        self._check_unused()
        self._results = iter(())
        return self._live.lists()

    def close(self) -> None:
        """End the run now: what is in flight is dropped, every worker ends. Idempotent."""
        self._live.end(complete=False)
        self._results = iter(())

    async def aclose(self) -> None:
        """`close` for `async for`."""
        if self._aresults is not None:
            await self._aresults.aclose()  # type: ignore[attr-defined]  # it is an async generator
        self.close()

    def __del__(self) -> None:
        live = getattr(self, "_live", None)
        if live is not None and not (live.started or live.ended or self._results or self._aresults):
            warnings.warn(
                "a duodao.map was dropped without being iterated: nothing has run (use duodao.run to run for effect)",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip
