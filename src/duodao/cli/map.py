"""`duodao map FILE.py:FUNC INPUT… -o OUT.jsonl`: one function over inputs."""

from __future__ import annotations

from typing import Any

import click

from duodao import Pipeline
from duodao.cli import launch, options, target
from duodao.errors import UsageError


@click.command("map", epilog=launch.EPILOG)
@click.argument("function", metavar="FILE.py:FUNC")
@options.inputs
@options.output
@options.stage
@options.run
def command(function: str, **given: Any) -> int:
    """Call FUNC with every item and write one JSON line per result, in the order of the inputs.

    A plain INPUT is a file whose lines (.txt), JSON values (.jsonl) or records (.csv) are the items; - is stdin. With
    --paths every INPUT is itself an item.
    """
    return launch.launch(lambda: (_function(function), options.stage_arguments(given)), given)


def _function(function: str) -> Any:
    loaded = target.load(function).value
    if isinstance(loaded, Pipeline):
        raise UsageError(f"{function} is a Pipeline: run it with `duodao run`")
    if not callable(loaded):
        raise UsageError(f"{function} is no function but a value of type {type(loaded).__name__}")
    return loaded
