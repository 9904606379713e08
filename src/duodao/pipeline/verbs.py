"""The public verbs: map, run, arun. Options and what they mean stand in stages.py; this file gives them types."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from duodao.errors import UsageError
from duodao.lanes.program import Command
from duodao.outcome import Outcome, Report
from duodao.pipeline.runs import Map, displays, plan
from duodao.pipeline.stages import Errors, Pipeline, StageOptions
from duodao.telemetry import Snapshot

if TYPE_CHECKING:
    from duodao.channel.journal import Journal

__all__ = ["Map", "arun", "displays", "map", "run"]

A = TypeVar("A")
R = TypeVar("R")
Inputs = Iterable[A] | AsyncIterable[A]


class RunOptions(StageOptions, total=False):
    """Options of map and run: those of one stage (StageOptions), and those of the whole run.

    ordered: results come in the order of their inputs. max_failures: the run ends when more inputs (a whole number), or
    a greater share of them (a number under 1), have failed. window: inputs that may be read and not handed on, from 1.
    key, journal: see Journal. progress: True, or a function that takes a Snapshot.
    """

    ordered: bool
    max_failures: float | None
    window: int | None
    key: Any
    journal: str | os.PathLike[str] | Journal | None
    progress: bool | Callable[[Snapshot], object] | None


@overload
def map(
    work: Pipeline[A, R], inputs: Inputs[A], *, errors: Literal["collect"], **options: Unpack[RunOptions]
) -> Map[Outcome[R]]: ...
@overload
def map(
    work: Pipeline[A, R], inputs: Inputs[A], *, errors: Literal["raise"] = ..., **options: Unpack[RunOptions]
) -> Map[R]: ...
@overload
def map(
    work: str | Sequence[str] | Command,
    inputs: Inputs[Any],
    *,
    errors: Literal["collect"],
    **options: Unpack[RunOptions],
) -> Map[Outcome[Any]]: ...
@overload
def map(
    work: str | Sequence[str] | Command,
    inputs: Inputs[Any],
    *,
    errors: Literal["raise"] = ...,
    **options: Unpack[RunOptions],
) -> Map[Any]: ...
@overload
def map(
    work: Callable[[A], Awaitable[R]], inputs: Inputs[A], *, errors: Literal["collect"], **options: Unpack[RunOptions]
) -> Map[Outcome[R]]: ...
@overload
def map(
    work: Callable[[A], Awaitable[R]],
    inputs: Inputs[A],
    *,
    errors: Literal["raise"] = ...,
    **options: Unpack[RunOptions],
) -> Map[R]: ...
@overload
def map(
    work: Callable[[A], R], inputs: Inputs[A], *, errors: Literal["collect"], **options: Unpack[RunOptions]
) -> Map[Outcome[R]]: ...
@overload
def map(
    work: Callable[[A], R], inputs: Inputs[A], *, errors: Literal["raise"] = ..., **options: Unpack[RunOptions]
) -> Map[R]: ...
@overload
def map(
    work: Callable[..., Awaitable[R]], inputs: Inputs[Any], *, errors: Literal["collect"], **options: Unpack[RunOptions]
) -> Map[Outcome[R]]: ...
@overload
def map(
    work: Callable[..., Awaitable[R]],
    inputs: Inputs[Any],
    *,
    errors: Literal["raise"] = ...,
    **options: Unpack[RunOptions],
) -> Map[R]: ...
@overload
def map(
    work: Callable[..., R], inputs: Inputs[Any], *, errors: Literal["collect"], **options: Unpack[RunOptions]
) -> Map[Outcome[R]]: ...
@overload
def map(
    work: Callable[..., R], inputs: Inputs[Any], *, errors: Literal["raise"] = ..., **options: Unpack[RunOptions]
) -> Map[R]: ...
def map(work: Any, inputs: Any, **options: Any) -> Map[Any]:
    """Call `work` with every input; iterate over the results, in order, as they are ready.

    work: a plain or async function of one argument, a Pipeline, or with lane="command" a program. inputs: any iterable,
    endless ones included; async ones with `async for`. Options: RunOptions. errors="raise" raises the first failure at
    its place, the user's own exception with a note that says which input; errors="collect" yields an Outcome per input
    in place of values.
    Returns a Map, which starts when its first result is asked for.
    Raises UsageError for a wrong option, before anything starts; TooManyFailures; SetupFailed; JournalError.
    Source: M3, M5, M22, M44, M45.
    """
    return Map(plan(work, inputs, options))


def run(work: Any, inputs: Any, *, into: Any = None, errors: Errors = "raise", **options: Unpack[RunOptions]) -> Report:
    """Call `work` with every input and return a Report when all is done.

    into: where results go: a list, a function of one result, a Queue (its `put`), a path "out.jsonl" (one JSON line per
    success, failures to "out.failed.jsonl"), an object with open, write and close; or None. The rest is as in `map`.
    Raises the first failure with errors="raise"; UsageError; TooManyFailures. Source: M23, M44.
    """
    made = _Run(work, inputs, into, {"errors": errors, **options})
    try:
        for results in made.map.lists():
            made.write(results)
        made.complete = not made.map.report.stopped
    finally:
        made.map.close()
        made.close()
    return made.report()


async def arun(
    work: Any, inputs: Any, *, into: Any = None, errors: Errors = "raise", **options: Unpack[RunOptions]
) -> Report:
    """`run` for a running event loop, which it never blocks: async functions run on that loop. Source: M23, M34."""
    made = _Run(work, inputs, into, {"errors": errors, **options})
    try:
        async for result in made.map:
            made.write([result])
        made.complete = not made.map.report.stopped
    finally:
        await made.map.aclose()
        made.close()
    return made.report()


class _Run:
    """A map and the place its results go to."""

    def __init__(self, work: Any, inputs: Any, into: Any, options: dict[str, Any]) -> None:
        self.complete = False
        self._into = into
        path = isinstance(into, (str, os.PathLike))
        sink = path or (hasattr(into, "write") and hasattr(into, "close") and hasattr(into, "open"))
        checked = plan(work, inputs, options, whole=sink)
        if sink:
            from duodao.pipeline.sink import JsonLines

            self._sink: Any = JsonLines(into, journal=checked.journal) if path else into
            self._sink.open()
            self.write: Callable[[list[Any]], object] = self._sink.write
        else:
            self._sink = None
            self.write = _taker(into)
        self.map: Map[Any] = Map(checked)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close(self.complete)

    def report(self) -> Report:
        report = self.map.report
        if isinstance(self._into, list):
            report.results = self._into
        return report


def _taker(into: Any) -> Callable[[list[Any]], object]:
    if into is None:
        return len
    if isinstance(into, list):
        return into.extend
    one = getattr(into, "put", None) or into
    if not callable(one):
        raise UsageError(
            f"into={into!r}: a list, a function, a Queue, a path or an object with open, write and close is needed"
        )

    def each(results: list[Any]) -> None:
        for result in results:
            one(result)

    return each
