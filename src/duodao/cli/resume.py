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
    argv, folder = noted(path)
    if reads_stdin(argv) and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"the run of {path} read its inputs from stdin: pipe the same ones in again")
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"the run of {path} was started in {folder}, which can't be entered: {error.strerror}"
        ) from None
    # The journal may have been moved since, and --fresh would throw away what is to be gone on with.
    return run_argv(argv, journal=path, fresh=False, **changes)


def noted(path: str) -> tuple[list[str], str]:
    """(the words after `duodao`, the directory) of the command that wrote the journal. Raises UsageError."""
    with Journal.inspect(path) as seen:
        note = seen.command
    if not isinstance(note, dict) or not {"argv", "cwd"} <= note.keys():
        raise UsageError(
            f"the journal {path} was not written by a `duodao` command: run the program that wrote it again"
        )
    return list(note["argv"]), str(note["cwd"])


def reads_stdin(argv: list[str]) -> bool:
    """Whether the command takes items from stdin."""
    return "-" in argv or "-0" in argv or "--null" in argv
