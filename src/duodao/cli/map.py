"""`duodao map FILE.py:FUNC INPUT… -o OUT.jsonl`: one function, or with --command one program, over inputs."""

from __future__ import annotations

import itertools
from typing import Any

import click

from duodao import Command, Pipeline
from duodao.cli import launch, options, target
from duodao.errors import UsageError


class Map(click.Command):
    """`--command -- WORD…` ends the line: the words are the program, whatever they look like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words away before click sees them."""
        words = None
        for at, pair in enumerate(itertools.pairwise(args)):
            if pair == ("--command", "--"):
                args, words = args[:at], args[at + 2 :]
                break
        rest = super().parse_args(ctx, args)
        ctx.params["words"] = words
        return rest


@click.command("map", cls=Map, epilog=launch.EPILOG)
@click.argument("function", metavar="FILE.py:FUNC", required=False)
@options.inputs
@options.output
@options.program
@options.stage
@options.run
def command(function: str | None, **given: Any) -> int:
    """Call FUNC with every item and write one JSON line per result, in the order of the inputs.

    A plain INPUT is a file whose lines (.txt), JSON values (.jsonl) or records (.csv) are the items; - is stdin. With
    --paths every INPUT is itself an item.

    With --command there is no FUNC: a program runs for every item, and what it prints is the result. In it {} is the
    item, {.} the item without extension, {/} its last path part, {//} its folder, {/.} the last part without extension.
    --command LINE splits LINE into words; --command -- WORD... ends the command line.
    """
    if given["command"] is None and given["words"] is None:
        for name in ("protocol", "shell", "stdin_item", "max_output"):
            if given[name]:
                raise UsageError(f"--{name.replace('_', '-')} is for programs: it needs --command")
        if function is None:
            raise UsageError("missing argument 'FILE.py:FUNC', or --command with a program (see duodao map --help)")
        return launch.launch(lambda: _loaded(function, given), given)
    given["inputs"] = (() if function is None else (function,)) + given["inputs"]
    return launch.launch(lambda: (_program(given), _on_command(given)), given)


def _loaded(function: str, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    loaded = target.load(function).value
    if isinstance(loaded, Command):
        return loaded, _on_command(given)
    if isinstance(loaded, Pipeline):
        raise UsageError(f"{function} is a Pipeline: run it with `duodao run`")
    if not callable(loaded):
        raise UsageError(f"{function} is no function but a value of type {type(loaded).__name__}")
    return loaded, options.stage_arguments(given)


def _program(given: dict[str, Any]) -> Command:
    if given["command"] is not None and given["words"] is not None:
        raise UsageError("--command is given twice")
    more: dict[str, Any] = {"max_output": given["max_output"]} if given["max_output"] else {}
    return Command(
        given["words"] if given["command"] is None else given["command"],
        protocol=given["protocol"] or "once",
        shell=given["shell"],
        stdin="item" if given["stdin_item"] else "null",
        **more,
    )


def _on_command(given: dict[str, Any]) -> dict[str, Any]:
    if given["lane"] not in ("auto", "command"):
        raise UsageError(f"a program runs on --lane command, not {given['lane']!r}")
    return {**options.stage_arguments(given), "lane": "command"}
