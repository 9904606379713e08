"""`duodao resume JOURNAL`: the command that wrote the journal, again, from where it was."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from duodao import Journal
from duodao.cli.main import run_argv
from duodao.errors import UsageError


@click.command("resume")
@click.argument("journal", metavar="JOURNAL")
@click.option("--accept-code", is_flag=True, help="Go on although the function's code has changed.")
@click.option("--progress/--no-progress", default=None, help="Show progress on stderr.")
def command(journal: str, accept_code: bool, progress: bool | None) -> int:
    """Go on with the run that wrote JOURNAL: its own command, in its own directory."""
    changes: dict[str, Any] = {"accept_code": accept_code}
    if progress is not None:
        changes["progress"] = progress
    return again(journal, **changes)


def again(path: str, **changes: Any) -> int:
    """Run the command noted in a journal, with these options changed. Raises UsageError when there is none."""
    path = os.path.realpath(path)
    note = noted(path)
    if note.get("stdin") and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"the run of {path} read its inputs from stdin: pipe the same ones in again")
    try:
        os.chdir(note["cwd"])
    except OSError as error:
        raise UsageError(f"the run of {path} was started in {note['cwd']}: {error.strerror}") from None
    # The journal may have been moved since, and --fresh would throw away what is to be gone on with.
    return run_argv(list(note["argv"]), journal=path, fresh=False, **changes)


def noted(path: str) -> dict[str, Any]:
    """argv (the words after `duodao`), cwd and stdin (whether it is read) of the command that wrote the journal.

    Raises UsageError when no command did.
    """
    with Journal.inspect(path) as seen:
        note = seen.command
    if not isinstance(note, dict) or not {"argv", "cwd"} <= note.keys():
        raise UsageError(
            f"the journal {path} was not written by a `duodao` command: run the program that wrote it again"
        )
    return note
