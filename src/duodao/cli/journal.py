"""`duodao journal JOURNAL`: what a journal holds; its failed inputs, and another try for them."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from duodao import Journal
from duodao.cli.resume import again
from duodao.errors import UsageError
from duodao.watch import wording

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command("journal")
@click.argument("journal", metavar="JOURNAL")
@click.option("--failed", is_flag=True, help="List the failed inputs: input, error, traceback, attempts.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON lines.")
@click.option("--retry-failed", is_flag=True, help="Run the failed inputs again and write OUT anew, in input order.")
@click.option("--progress/--no-progress", default=None, help="Show progress on stderr.")
def command(journal: str, failed: bool, as_json: bool, retry_failed: bool, progress: bool | None) -> int:
    """Tell what JOURNAL holds. It may be in use by a running command.

    --retry-failed runs the noted command again, with the failed inputs as new ones. Changed code is no obstacle then:
    mending it is what a retry is for.
    """
    if retry_failed:
        if failed or as_json:
            raise UsageError("--retry-failed runs, --failed lists: give one of them")
        changes: dict[str, Any] = {} if progress is None else {"progress": progress}
        return again(journal, retry_failed=True, **changes)
    with Journal.inspect(journal) as seen:
        if failed:
            _list(seen.failures(), as_json=as_json)
        else:
            _summary(seen, as_json=as_json)
    return 0


def _summary(seen: Any, *, as_json: bool) -> None:
    total, succeeded, failed, joined = seen.counts()
    note = seen.command if isinstance(seen.command, dict) else {}
    if as_json:
        facts = {
            "path": seen.path, "functions": seen.identity.names, "command": note.get("argv"), "cwd": note.get("cwd"),
            "finished": total, "succeeded": succeeded, "failed": failed, "joined": joined,
        }  # fmt: skip
        print(json.dumps(facts))
        return
    print(_shown(f"journal    {seen.path}"))
    print(_shown(f"work       {seen.identity.shape}"))
    if note:
        print(_shown(f"command    duodao {shlex.join(note['argv'])}"))
        print(_shown(f"in         {note['cwd']}"))
    print(f"finished   {wording.count(total)}")
    print(f"succeeded  {wording.count(succeeded)}")
    if joined:
        print(f"in groups  {wording.count(joined)}")
    print(f"failed     {wording.count(failed)}")


def _list(letters: Iterable[Any], *, as_json: bool) -> None:
    for letter in letters:
        if as_json:
            print(json.dumps(_record(letter)))
            continue
        print(_shown(f"input {letter.index}: {letter.input}"))
        tries = "1 attempt" if letter.attempts == 1 else f"{letter.attempts} attempts"
        print(_shown(f"  {letter.error} (after {tries})"))
        for line in letter.traceback.splitlines():
            print("   ", _shown(line))
        print()


def _record(letter: Any) -> dict[str, Any]:
    tries = [{"number": t.number, "stage": t.stage, "lane": t.lane, "seconds": t.seconds, "error": t.error}
             for t in letter.tries]  # fmt: skip
    return {
        "index": letter.index, "input": _plain(letter.input), "error": letter.error, "traceback": letter.traceback,
        "attempts": letter.attempts, "tries": tries,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """The value if JSON holds it, else its repr."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


def _shown(text: str) -> str:
    """One line that this stdout can encode and a terminal survives."""
    encoding = sys.stdout.encoding or "utf-8"
    return wording.clean(text).encode(encoding, "backslashreplace").decode(encoding)
