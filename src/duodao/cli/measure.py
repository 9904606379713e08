"""`duodao measure FILE.py:FUNC SAMPLE…`: what a call costs, and where it should run."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import click

import duodao
from duodao.cli import inputs as reading
from duodao.cli import options, target
from duodao.errors import UsageError
from duodao.watch import wording

MOST = 100
"""Items that are looked at: a measurement ends far earlier, and a long SAMPLE must not be read to its end."""


@click.command("measure")
@click.argument("function", metavar="FILE.py:FUNC")
@options.inputs
@click.option("--common", multiple=True, metavar="NAME=JSON", help="A keyword argument of every call.")
@click.option("--setup", multiple=True, metavar="NAME=FILE.py:FACTORY", help="A resource of every worker.")
@click.option("--star", is_flag=True, help="A list as input becomes the arguments.")
def command(function: str, **given: Any) -> int:
    """Call FUNC with some items of SAMPLE and tell what a call costs and which lane suits it.

    SAMPLE is written as the INPUT of `duodao map`: a .txt, .jsonl or .csv file, - for stdin, or paths with --paths.
    """
    loaded = target.load_function(function)
    items = reading.open_inputs(given["inputs"], paths=given["paths"], match=given["match"], nul=given["nul"])
    sample = [item for item in itertools.islice(items, MOST) if not isinstance(item, duodao.Rejected)]
    if not sample:
        raise UsageError("the sample holds no item to call the function with")
    arguments: dict[str, Any] = {"star": True} if given["star"] else {}
    if given["common"]:
        arguments["common"] = options.named("--common", given["common"], options.json_value)
    if given["setup"]:
        arguments["setup"] = options.named("--setup", given["setup"], target.load_function)
    duodao.Pipeline(loaded, **arguments)  # refuses, as `map` does, a function that one item can't call
    try:
        profile = duodao.measure(loaded, sample, **arguments)
    except duodao.errors.DuodaoError:
        raise
    except Exception as error:  # the function's own: there is nothing to measure
        text = wording.clean(f"{type(error).__name__}: {error}")
        print(f"duodao: {function} failed with an item of the sample: {text}", file=sys.stderr)
        return 1
    print(profile)
    return 0
