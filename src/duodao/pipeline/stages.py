"""What the user asked for: options, checked before anything starts, and the Pipeline they are given to."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack, overload

from duodao.errors import UsageError
from duodao.lanes.base import LANES, Work
from duodao.lanes.choose import check_width
from duodao.lanes.foreign import add_note
from duodao.lanes.program import Command, as_command
from duodao.pipeline.rate import Rate, as_rates
from duodao.pipeline.retry import NEVER, Retry, as_retry

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

LaneName = Literal["auto", "inline", "thread", "process", "coroutine", "greenlet", "command"]
Errors = Literal["raise", "collect"]


class StageOptions(TypedDict, total=False):
    """How one function runs; options of map, run, Pipeline and then. Declared once, here.

    lane: "auto" measures. workers: calls in flight at most, from 1 (None: the lane's default), or a width per level,
    (processes, threads) on lane="thread" and so on. retries: a number or a Retry. timeout: seconds per attempt. rate:
    calls per second, a Rate, or several. common: keyword arguments of every call. setup: name -> factory of a context
    manager, opened once per worker. star: tuple inputs become arguments. seed: makes random results depend on it and
    the input alone. max_memory: bytes of one worker.
    """

    lane: LaneName
    workers: int | tuple[int, ...] | None
    retries: int | Retry
    timeout: float | None
    rate: float | Rate | Sequence[float | Rate] | None
    common: Mapping[str, Any] | None
    setup: Mapping[str, Callable[[], Any]] | None
    star: bool
    seed: int | None
    max_memory: int | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One function with its options, checked."""

    work: Work
    lane: str = "auto"
    workers: int | tuple[int, ...] | None = None
    retry: Retry = NEVER
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True, slots=True)
class Batched:
    """Values that follow each other become one list: of `size`, or of what came `within` seconds of its first."""

    size: int
    within: float | None = None

    def __post_init__(self) -> None:
        if not _whole(self.size) or self.size < 1:
            raise UsageError(f"batch(size={self.size!r}): a whole number from 1 is needed")
        if self.within is not None and not _positive(self.within):
            raise UsageError(f"batch(within={self.within!r}): seconds over 0, or None, are needed")


STAGE_OPTIONS = tuple(StageOptions.__annotations__)
RUN_OPTIONS = ("ordered", "errors", "max_failures", "window", "key", "journal", "progress")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def unknown_option(name: str, valid: Sequence[str]) -> UsageError:
    """The error for an option that doesn't exist, naming the nearest one and all of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown option {name!r}{hint} (valid: {', '.join(valid)})")


def _name(function: Any) -> str:
    if isinstance(function, Command):
        return function.name
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - the method itself is asked


def _check_signature(function: Any, star: bool, given: Sequence[str]) -> bool:
    """Refuse a function that one input can't call; True when it takes `rng`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # many builtins don't tell
        return False
    kinds = inspect.Parameter
    names = [p.name for p in parameters]
    rng = "rng" in names and "rng" not in given
    loose = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    for name in given:
        if name not in names and not loose:
            raise UsageError(
                f"{_name(function)}({', '.join(names)}) takes no argument {name!r}, which common= or setup= gives"
            )
    supplied = {*given, *(("rng",) if rng else ())}
    needed = [
        p.name
        for p in parameters
        if p.default is kinds.empty
        and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        and p.name not in supplied
    ]
    takes = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    ]
    takes = [p for p in takes if p.name not in supplied]
    if star:
        return rng
    if len(needed) > 1 or not takes:
        count = "no input" if not takes else f"{len(needed)} arguments ({', '.join(needed)})"
        hint = "" if not takes else "; star=True spreads tuple inputs over them, common= gives constants"
        raise UsageError(f"{_name(function)} takes {count}, it is called with one input{hint}")
    return rng


def make_stage(function: Any, options: Mapping[str, Any]) -> Stage:
    """Check a function and its options. Raises UsageError that names what is valid."""
    for name in options:
        if name not in STAGE_OPTIONS:
            raise unknown_option(name, STAGE_OPTIONS)
    lane = options.get("lane", "auto")
    if lane not in LANES:
        raise UsageError(f"lane={lane!r}: there is no such lane (valid: {', '.join(LANES)})")
    if lane == "command":
        function = as_command(function)
    elif isinstance(function, Command):
        raise UsageError(f"a Command runs on lane='command', not {lane!r}")
    elif not callable(function):
        hint = "; a program runs on lane='command'" if isinstance(function, (str, list, tuple)) else ""
        raise UsageError(f"a function is needed, not {function!r}{hint}")
    workers = check_width(lane, options.get("workers"))
    timeout, memory, seed = options.get("timeout"), options.get("max_memory"), options.get("seed")
    if timeout is not None and not _positive(timeout):
        raise UsageError(f"timeout={timeout!r}: seconds over 0, or None, are needed")
    if memory is not None and not (_whole(memory) and memory > 0):
        raise UsageError(f"max_memory={memory!r}: bytes over 0, or None, are needed")
    if seed is not None and not _whole(seed):
        raise UsageError(f"seed={seed!r}: a whole number, or None, is needed")
    common, setup = dict(options.get("common") or {}), dict(options.get("setup") or {})
    for name, factory in setup.items():
        if not callable(factory):
            raise UsageError(f"setup={{{name!r}: {factory!r}}}: a function that makes a context manager is needed")
        if name in common:
            raise UsageError(f"{name!r} is given by both common= and setup=")
    star, is_async = bool(options.get("star", False)), _is_async(function)
    rng = lane != "command" and _check_signature(function, star, [*common, *setup])
    _check_fit(lane, function, is_async=is_async, rng=rng, options=options)
    work = Work(function, _name(function), star, common, setup, seed, timeout, memory, is_async, wants_rng=rng)
    return Stage(work, lane, workers, as_retry(options.get("retries", 0)), as_rates(options.get("rate")))


def _check_fit(lane: str, function: Any, *, is_async: bool, rng: bool, options: Mapping[str, Any]) -> None:
    name = _name(function)
    if lane == "command":
        for option in ("common", "setup", "seed", "max_memory", "star"):
            if options.get(option):
                raise UsageError(f"{option}= is for functions, and lane='command' runs a program")
        return
    if is_async and lane not in ("auto", "coroutine"):
        raise UsageError(f"{name} is an async function: it runs on lane='coroutine', not {lane!r}")
    if not is_async and lane == "coroutine":
        raise UsageError(f"{name} is a plain function: it would block the loop; use lane='thread' or make it async")
    if lane == "inline" and options.get("timeout") is not None:
        raise UsageError("lane='inline' can't stop a call: timeout= needs lane='process', 'thread' or 'coroutine'")
    apart = lane in ("auto", "process", "greenlet") or isinstance(options.get("workers"), tuple)
    if options.get("max_memory") is not None and not apart:
        raise UsageError(
            f"max_memory= needs workers that can be ended alone: lane='process' or a width per level, not {lane!r}"
        )
    if options.get("seed") is not None and not rng and (lane in ("thread", "coroutine", "greenlet") or is_async):
        raise UsageError(
            f"seed= on lane={lane!r}: calls of one process share one random state; give {name} a parameter rng "
            "(it gets a random.Random of its own) or use lane='process'"
        )


class Pipeline(Generic[A, B]):
    """Functions that follow each other, each with its own lane and width. Immutable: every method returns a new one.

    Pipeline(fetch, lane="thread").then(parse, lane="process").batch(100, within=1.0).then(store)
    Options are those of one stage (StageOptions). Neighbours on the same lane with the same width run as one call.
    Raises UsageError for a wrong option. Source: M23.
    """

    __slots__ = ("steps",)
    steps: tuple[Stage | Batched, ...]

    @overload
    def __init__(
        self: Pipeline[A, C], function: Callable[[A], Awaitable[C]], **options: Unpack[StageOptions]
    ) -> None: ...
    @overload
    def __init__(self, function: Callable[[A], B], **options: Unpack[StageOptions]) -> None: ...
    @overload
    def __init__(self: Pipeline[Any, Any], function: Callable[..., Any], **options: Unpack[StageOptions]) -> None: ...
    def __init__(self, function: Any, **options: Any) -> None:
        self.steps = (make_stage(function, options),)

    @overload
    def then(self, function: Callable[[B], Awaitable[C]], **options: Unpack[StageOptions]) -> Pipeline[A, C]: ...
    @overload
    def then(self, function: Callable[[B], C], **options: Unpack[StageOptions]) -> Pipeline[A, C]: ...
    @overload
    def then(self, function: Callable[..., Any], **options: Unpack[StageOptions]) -> Pipeline[A, Any]: ...
    def then(self, function: Any, **options: Unpack[StageOptions]) -> Pipeline[A, Any]:
        """A further function, called with each value of the one before."""
        return self._with(make_stage(function, options))

    def batch(self, size: int, within: float | None = None) -> Pipeline[A, list[B]]:
        """Lists of `size` values; a list is closed earlier when `within` seconds have passed since its first value."""
        return self._with(Batched(size, within))

    def _with(self, step: Stage | Batched) -> Pipeline[A, Any]:
        new: Pipeline[A, Any] = object.__new__(Pipeline)
        new.steps = (*self.steps, step)
        return new

    def __repr__(self) -> str:
        texts = [f"batch({s.size})" if isinstance(s, Batched) else f"{s.work.name}[{s.lane}]" for s in self.steps]
        return f"Pipeline({' -> '.join(texts)})"


@dataclass(frozen=True, slots=True)
class Chain:
    """Functions of neighbours that agree, as one call. The note on an exception names the one that raised."""

    functions: tuple[Callable[[Any], Any], ...]
    names: tuple[str, ...]

    def __call__(self, value: Any) -> Any:
        at = 0
        try:
            for at, function in enumerate(self.functions):  # noqa: B007 - read in the except
                value = function(value)
        except Exception as error:
            add_note(error, f"duodao: raised by {self.names[at]}")
            raise
        return value


def _plain(stage: Stage) -> bool:
    """No option but lane and workers is set."""
    return stage == Stage(Work(stage.work.function, stage.work.name), stage.lane, stage.workers)


def fuse(steps: Sequence[Stage | Batched]) -> list[Stage | Batched]:
    """Join neighbours that name the same lane and width and have no options of their own: a boundary costs."""
    out: list[Stage | Batched] = []
    for step in steps:
        last = out[-1] if out else None
        if (
            isinstance(step, Stage) and isinstance(last, Stage) and step.lane == last.lane not in ("auto", "command")
            and step.workers == last.workers and _plain(step) and _plain(last)
        ):  # fmt: skip
            before = last.work.function if isinstance(last.work.function, Chain) else None
            functions = before.functions if before else (last.work.function,)
            names = before.names if before else (last.work.name,)
            chain = Chain((*functions, step.work.function), (*names, step.work.name))
            work = dataclasses.replace(last.work, function=chain, name="+".join(chain.names))
            out[-1] = dataclasses.replace(last, work=work)
        else:
            out.append(step)
    return out


def unfused(stage: Stage) -> tuple[Callable[..., Any], ...]:
    """The user's own functions of a stage."""
    function = stage.work.function
    return function.functions if isinstance(function, Chain) else (function,)
