"""What `Group.start` is given: what of it is called, on which lane, and how it is named."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol, TypedDict, TypeVar

from duodao.errors import UsageError
from duodao.pipeline.restart import Restart

LANES = ("process", "thread", "coroutine")
R_co = TypeVar("R_co", covariant=True)


class Runs(Protocol[R_co]):
    """An object with a run method."""

    @property
    def run(self) -> Callable[..., R_co]: ...


class StartOptions(TypedDict, total=False):
    """The options of `Group.start`."""

    kwargs: Mapping[str, Any] | None
    lane: Literal["process", "thread", "coroutine"] | None
    name: str | None
    daemon: bool
    restart: Literal["on-failure", "always"] | Restart | None


def function_of(fn: Any) -> Callable[..., Any]:
    """What is called: a function as it is, the `run` of an object that has one."""
    run = getattr(fn, "run", None)
    plain = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, partial, type)
    if callable(run) and not isinstance(fn, plain):
        return run  # type: ignore[no-any-return]  # a method: it travels with its object
    if inspect.iscoroutine(fn):
        fn.close()
        raise UsageError(
            "a coroutine was given: pass the async function and its arguments, start(fn, x), not start(fn(x))"
        )
    if not callable(fn):
        raise UsageError(f"{fn!r} can't be started: a function, or an object with a run() method, is needed")
    return fn  # type: ignore[no-any-return]


def lane_of(lane: str | None, function: Callable[..., Any]) -> str:
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    called = getattr(type(inner), "__call__", None)  # noqa: B004 - not whether it can be called: what is called
    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)
    if lane is None:
        return "coroutine" if is_async else "process"
    if lane not in LANES:
        raise UsageError(f"lane={lane!r}: one of {', '.join(map(repr, LANES))} is needed")
    if is_async and lane != "coroutine":
        raise UsageError(f"{function!r} is async: it runs on lane='coroutine', not on {lane!r}")
    return lane


def name_of(fn: Any) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "lambda" if name == "<lambda>" else str(name)
