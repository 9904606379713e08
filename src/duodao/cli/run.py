"""`duodao run FILE.py:PIPELINE INPUT… -o OUT.jsonl`: a Pipeline over inputs."""

from __future__ import annotations

from typing import Any

import click

from duodao import Pipeline
from duodao.cli import launch, options, target
from duodao.errors import UsageError


@click.command("run", epilog=launch.EPILOG)
@click.argument("pipeline", metavar="FILE.py:PIPELINE")
@options.inputs
@options.output
@options.run
def command(pipeline: str, **given: Any) -> int:
    """Send every item through PIPELINE, a duodao.Pipeline, and write one JSON line per result.

    The stages' own options (lane, workers, retries, …) stand in the Pipeline. INPUT is as in `duodao map`.
    """
    return launch.launch(lambda: (_pipeline(pipeline), {}), given)


def _pipeline(pipeline: str) -> Any:
    loaded = target.load(pipeline).value
    if not isinstance(loaded, Pipeline):
        kind = "a function" if callable(loaded) else f"a value of type {type(loaded).__name__}"
        hint = ": run it with `duodao map`" if callable(loaded) else ""
        raise UsageError(f"{pipeline} is no duodao.Pipeline but {kind}{hint}")
    return loaded
