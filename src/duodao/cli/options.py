"""Every option of a stage, a run and its output, once; `map`, `run` and `measure` take theirs from here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from duodao import Rate, Retry
from duodao.cli import target
from duodao.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Type = click.ParamType[Any]  # generic for type checkers only: older releases of click can't be subscripted
else:
    _Type = click.ParamType

_LONGEST = 10 * 366 * 86400.0
"""Seconds that a time may be: no run is longer, and what the system waits with holds no such numbers."""
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Seconds(_Type):
    """A time: 30, 1.5, 500ms, 2m, 1h. Over 0, or from 0 where `zero`."""

    name = "seconds"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds as float."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(-?[0-9.]+)(ms|s|m|h|)", str(value).strip())
        try:
            seconds = float(found[1]) * _UNITS[found[2]] if found else math.nan
        except ValueError:
            seconds = math.nan
        if seconds > _LONGEST:
            self.fail(f"{value!r} is over ten years", param, ctx)
        if not (seconds > 0 or (self._zero and seconds == 0)):
            self.fail(f"{value!r} is no time {'from' if self._zero else 'over'} 0: 30, 1.5, 500ms, 2m", param, ctx)
        return seconds


class Size(_Type):
    """A number of bytes: 500M, 2G, 65536."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        size = int(float(found[1]) * _SIZES[found[2].upper()]) if found else 0
        if size <= 0:
            self.fail(f"{value!r} is no size over 0: 500M, 2G, or bytes", param, ctx)
        return size


class Limit(_Type):
    """A rate: 10 (a second), 100/60s, 5/m."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rate:
        """A duodao.Rate."""
        if isinstance(value, Rate):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:/(?=.)([0-9]+(?:\.[0-9]+)?)?(ms|s|m|h|))?", str(value).strip())
        calls, per = (float(found[1]), float(found[2] or 1) * _UNITS[found[3] or ""]) if found else (0.0, 0.0)
        if not (calls and per):
            self.fail(f"{value!r} is no rate over 0: 10 (a second), 100/60s, 5/m", param, ctx)
        if per / calls > _LONGEST:
            self.fail(f"{value!r} is less than one call in ten years", param, ctx)
        return Rate(calls, per)


class Width(_Type):
    """A width, 8, or one per level: 2,50."""

    name = "width"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, ...]:
        """An int, or a tuple of them."""
        if isinstance(value, (int, tuple)):
            return value
        if not re.fullmatch(r"0*[1-9][0-9]*(,0*[1-9][0-9]*)*", str(value)):
            self.fail(f"{value!r} is no width from 1 (8), nor one per level (2,50)", param, ctx)
        levels = tuple(map(int, str(value).split(",")))
        return levels if len(levels) > 1 else levels[0]


class Share(_Type):
    """A number of inputs, or a share of them: 10, 5%."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """An int, or a float from 0 to 1."""
        if isinstance(value, (int, float)):
            return value
        found = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?)\s*%", str(value).strip())
        if found and found[1]:
            return int(found[1])
        if found and 0 < float(found[2]) < 100:
            return float(found[2]) / 100
        return self.fail(f"{value!r} is no number of inputs (10) or share of them (5%)", param, ctx)


def _stage_options() -> list[Callable[[Command], Command]]:
    return [
        click.option(
            "--lane",
            default="auto",
            help="Where calls run: auto (measures), inline, thread, process, coroutine, greenlet, command.",
        ),
        click.option("--workers", type=Width(), metavar="N[,N]", help="Calls in flight at most, or a width per level."),
        click.option("--retries", type=click.IntRange(min=0), metavar="N", help="Further attempts after an error."),
        click.option("--retry-first", type=Seconds(zero=True), metavar="TIME", help="Wait before the first retry."),
        click.option("--retry-factor", type=click.FloatRange(min=1), metavar="X", help="Growth of that wait."),
        click.option("--retry-at-most", type=Seconds(zero=True), metavar="TIME", help="Longest wait."),
        click.option("--timeout", type=Seconds(), metavar="TIME", help="Limit of one attempt; the call is stopped."),
        click.option("--rate", type=Limit(), multiple=True, metavar="N[/TIME]", help="Calls per second, or per TIME."),
        click.option("--common", multiple=True, metavar="NAME=JSON", help="A keyword argument of every call."),
        click.option("--setup", multiple=True, metavar="NAME=FILE.py:FACTORY", help="A resource of every worker."),
        click.option("--star", is_flag=True, help="A list as input becomes the arguments."),
        click.option("--seed", type=int, metavar="N", help="Random results depend on N and the input alone."),
        click.option("--max-memory", type=Size(), metavar="SIZE", help="Memory of one worker: 500M, 2G."),
    ]


def _program_options() -> list[Callable[[Command], Command]]:
    return [
        click.option("--command", metavar="LINE", help="A program in place of FUNC; or --command -- WORD..., last."),
        click.option("--protocol", type=click.Choice(["once", "jsonl"]),
                     help="One process per item, or lasting ones that speak JSON lines. [once]"),
        click.option("--shell", is_flag=True, help="LINE is for /bin/sh; an item is one word of it."),
        click.option("--stdin-item", is_flag=True, help="The item is what the program reads, not an argument."),
        click.option("--max-output", type=Size(), metavar="SIZE", help="What it may print for one item. [64M]"),
    ]  # fmt: skip


def _run_options() -> list[Callable[[Command], Command]]:
    return [
        click.option("--unordered", is_flag=True, help="Write results as they come."),
        click.option("--errors", type=click.Choice(["collect", "raise"]), default="collect",
                     help="Record failures and go on, or stop at the first. [collect]"),
        click.option("--max-failures", type=Share(), metavar="N|N%", help="Stop when more inputs than this failed."),
        click.option("--window", type=click.IntRange(min=1), metavar="N", help="Inputs under way at most."),
        click.option("--key", metavar="content|mtime|FILE.py:FUNC", help="What makes two inputs the same. [content]"),
        click.option("--journal", metavar="PATH", help="Make the run durable: the same command goes on where it was."),
        click.option("--fresh/--no-fresh", default=False, help="Forget what the journal holds."),
        click.option("--accept-code/--no-accept-code", default=False, help="Go on although the code has changed."),
        click.option("--progress/--no-progress", default=None, help="Show progress on stderr."),
    ]  # fmt: skip


def _input_options() -> list[Callable[[Command], Command]]:
    return [
        click.argument("inputs", nargs=-1, metavar="INPUT..."),
        click.option("--paths", is_flag=True, help="Every INPUT is itself an item; directories recursively."),
        click.option("--match", metavar="PATTERN", help="With --paths: only names that fit, such as '*.xml'."),
        click.option("-0", "--null", "nul", is_flag=True, help="Items from stdin, separated by NUL bytes."),
    ]


def _output_options() -> list[Callable[[Command], Command]]:
    return [
        click.option("-o", "--output", default="-", metavar="OUT", help="One JSON line per success. [stdout]"),
        click.option("--failed", "failed_path", metavar="PATH", help="Failed inputs. [OUT with .failed.jsonl]"),
        click.option("--records", is_flag=True, help="Lines with index, input, value, attempts, seconds and lane."),
    ]


def _apply(make: Callable[[], list[Callable[[Command], Command]]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(make()):
            command = option(command)
        return command

    return decorate


stage = _apply(_stage_options)
program = _apply(_program_options)
run = _apply(_run_options)
inputs = _apply(_input_options)
output = _apply(_output_options)


def stage_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The stage options of duodao.map that the command line's options mean; only those that were given.

    Raises UsageError for a NAME=… that is wrong.
    """
    out: dict[str, Any] = {"lane": given["lane"]}
    for name in ("workers", "timeout", "seed", "max_memory"):
        if given[name] is not None:
            out[name] = given[name]
    if given["star"]:
        out["star"] = True
    if given["rate"]:
        out["rate"] = list(given["rate"])
    if given["common"]:
        out["common"] = named("--common", given["common"], json_value)
    if given["setup"]:
        out["setup"] = named("--setup", given["setup"], target.load_function)
    retry = _retry(given)
    return out if retry is None else {**out, "retries": retry}


def _retry(given: dict[str, Any]) -> int | Retry | None:
    shape = {n: given[f"retry_{n}"] for n in ("first", "factor", "at_most") if given[f"retry_{n}"] is not None}
    if not shape:
        return given["retries"]  # type: ignore[no-any-return]  # click's own conversion
    if not given["retries"]:
        raise UsageError("--retry-first, --retry-factor and --retry-at-most need --retries N")
    return Retry(given["retries"], **shape)


def named(option: str, pairs: tuple[str, ...], read: Callable[[str], Any]) -> dict[str, Any]:
    """NAME=TEXT, several, as a dict of NAME to what `read` makes of TEXT."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{option} {pair}: NAME=… is needed, where NAME is a parameter of the function")
        if name in out:
            raise UsageError(f"{option} {name} is given twice")
        try:
            out[name] = read(text)
        except UsageError as error:
            raise UsageError(f"{option} {name}: {error}") from None
    return out


def json_value(text: str) -> Any:
    """What JSON text means; a clear refusal for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{text!r} is not JSON (a text needs quotes of its own: '\"{text}\"')") from None


def key(text: str | None) -> Any:
    """What --key means to duodao.map: None, a word, or a function."""
    if text is None or text in ("content", "mtime"):
        return text
    if ":" not in text:
        raise UsageError(f"--key {text}: content, mtime or FILE.py:FUNC is needed")
    return target.load_function(text)
