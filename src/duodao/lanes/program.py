"""What the command lane runs: a program with its arguments, and the two ways of speaking to it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from duodao.errors import UsageError

Protocol = Literal["once", "jsonl"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


@dataclass(frozen=True, slots=True)
class Command:
    """A program as a stage: `duodao.map(Command("resize {} {.}.png"), paths, lane="command")`; a plain string or list
    of words means the same.

    argv: words, or one string that is split as a shell would split it, but never given to one. In each word `{}` is
    the item, `{.}` the item without its extension, `{/}` its last path part, `{//}` its folder, `{/.}` the last part
    without extension, as in GNU parallel; with no placeholder the item is the last word.
    protocol: "once": one process per item, whose stdout is the result; "jsonl": long-lived processes that read
    {"id": 7, "input": ...} lines on stdin and answer each with {"id": 7, "output": ...} or {"id": 7, "error": "..."}.
    shell: argv is a line for /bin/sh, and items are quoted into it. text: stdout is a str without its last line end,
    not bytes.
    stdin: "null", or "item": the item, str or bytes, is what the program reads. env: variables added to the caller's.
    cwd: the folder it starts in, None for the caller's. max_output: bytes that it may print, per item.
    Raises UsageError for what can't be meant. Source: M43.
    """

    argv: str | Sequence[str]
    protocol: Protocol = "once"
    shell: bool = False
    text: bool = True
    stdin: Literal["null", "item"] = "null"
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    max_output: int = 64 << 20

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(f"protocol={self.protocol!r}: one of {', '.join(map(repr, PROTOCOLS))} is needed")
        if not self.words:
            raise UsageError("the command is empty: its first word names the program")

    @property
    def words(self) -> tuple[str, ...]:
        """argv, split."""
        if isinstance(self.argv, str):
            return ("/bin/sh", "-c", self.argv) if self.shell else tuple(shlex.split(self.argv))
        return tuple(self.argv)

    @property
    def name(self) -> str:
        """What reports call the stage."""
        return os.path.basename(self.words[0])


def as_command(work: Any) -> Command:
    """What `lane="command"` accepts: a Command, a string, a sequence of words. Raises UsageError for anything else."""
    if isinstance(work, Command):
        return work
    if isinstance(work, str) or (isinstance(work, Sequence) and work and all(isinstance(word, str) for word in work)):
        return Command(work if isinstance(work, str) else tuple(work))
    raise UsageError(f"lane='command' runs a program: a string, a list of words or a duodao.Command, not {work!r}")
