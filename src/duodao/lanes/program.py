"""What the command lane runs: a program with its arguments, what an item becomes in them, and its name in a journal."""

from __future__ import annotations

import json
import numbers
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, get_args

from duodao.errors import CommandFailed, UsageError

Protocol = Literal["once", "jsonl"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
STDIN = ("null", "item")

_PLACE = re.compile(r"\{(?:\.|/|//|/\.)?\}")


@dataclass(frozen=True, slots=True)
class Command:
    """A program as a stage: `duodao.map(Command("resize {} {.}.png"), paths, lane="command")`; a plain string or list
    of words means the same.

    argv: words, or one string that is split as a shell would split it, but never given to one. In each word `{}` is
    the item, `{.}` the item without its extension, `{/}` its last path part, `{//}` its folder, `{/.}` the last part
    without extension, as in GNU parallel; with no placeholder the item is the last word. An item is a str, bytes, a
    path or a number; nothing guards against one that starts with "-", so write "./" or "--" before a placeholder.
    protocol: "once": one process per item, whose stdout is the result; "jsonl": long-lived processes that read
    {"id": 7, "input": ...} lines on stdin and answer each with {"id": 7, "output": ...} or {"id": 7, "error": "..."}.
    shell: argv is a line for /bin/sh; items are no part of it, but values of its variables. text: stdout is a str
    (UTF-8, other bytes as surrogates) without its last line end, not bytes.
    stdin: "null", or "item": the item is what the program reads, and no word unless a placeholder says so. env:
    variables added to the caller's. cwd: the folder it starts in, None for the caller's. max_output: bytes that it may
    print, per item.
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
        for name, given, valid in (("protocol", self.protocol, PROTOCOLS), ("stdin", self.stdin, STDIN)):
            if given not in valid:
                raise UsageError(f"{name}={given!r}: one of {', '.join(map(repr, valid))} is needed")
        if self.shell and not isinstance(self.argv, str):
            raise UsageError("shell=True takes one line for the shell, not a list of words")
        if not self.words or not self.words[0] or not str(self.argv).strip():
            raise UsageError("the command is empty: its first word names the program")
        _check_text("argv", *self.words)
        if not isinstance(self.max_output, int) or self.max_output < 1:
            raise UsageError(f"max_output={self.max_output!r}: bytes from 1 are needed")
        for name, value in (self.env or {}).items():
            if not name or "=" in name:
                raise UsageError(f"env: {name!r} is no name of a variable")
            _check_text(f"env[{name!r}]", name, value)
        if self.protocol == "jsonl":
            if self.stdin == "item" or not self.text:
                raise UsageError("protocol='jsonl' reads and writes JSON: stdin= and text= are for protocol='once'")
            if any(map(_PLACE.search, self.words)):
                raise UsageError("protocol='jsonl' reads items from stdin: no placeholder can stand for one in argv")
        elif self.shell:
            _check_quotes(str(self.argv))

    @property
    def words(self) -> tuple[str, ...]:
        """argv, split. Raises UsageError for a quote without its end."""
        if not isinstance(self.argv, str):
            return tuple(self.argv)
        if self.shell:
            return ("/bin/sh", "-c", self.argv)
        try:
            return tuple(shlex.split(self.argv))
        except ValueError as error:
            raise UsageError(f"the command {self.argv!r} can't be split into words: {str(error).lower()}") from None

    @property
    def name(self) -> str:
        """What reports call the stage."""
        words = str(self.argv).split() if self.shell else self.words  # a comment in a line may have a quote without end
        return os.path.basename(words[0]) or words[0]

    def fingerprint(self) -> tuple[str, str]:
        """For a journal: the name, and a hash of all that changes results; a program named by path counts with it."""
        words = self.words
        parts = [words, self.protocol, self.shell, self.text, self.stdin, sorted((self.env or {}).items())]
        digest = blake2b(
            repr((*parts, self.cwd and os.fspath(self.cwd))).encode("utf-8", "surrogatepass"), digest_size=8
        )
        if "/" in words[0] and not self.shell:
            try:
                with open(os.path.join(self.cwd or "", words[0]), "rb") as file:
                    for block in iter(lambda: file.read(1 << 20), b""):
                        digest.update(block)
            except OSError:  # a placeholder in its name, or it is gone: the first item will tell
                pass
        return self.name, digest.hexdigest()


class Words:
    """What each item makes of a command. varies: the program's own name depends on the item."""

    def __init__(self, command: Command) -> None:
        self._shell = command.shell
        self._words = command.words
        self._placed = any(map(_PLACE.search, self._words))
        self._adds = not self._placed and command.stdin == "null" and command.protocol == "once"
        self.varies = not self._shell and _PLACE.search(self._words[0]) is not None
        if self._shell:
            # The shell sees items as values of variables only: no quoting, however nested, makes it read them as code.
            line = self._words[2] + (" {}" if self._adds else "")
            self._places = list(dict.fromkeys(_PLACE.findall(line)))
            given = "".join(f"_{n}=${n}; " for n in range(1, len(self._places) + 1))
            line = _PLACE.sub(lambda found: f'"$_{self._places.index(found[0]) + 1}"', line)
            self._words = (*self._words[:2], given + line, "sh")

    def fill(self, item: Any) -> list[str]:
        """argv for the item. UsageError for one that can't be a word."""
        if not (self._placed or self._adds):
            return list(self._words)
        text = as_text(item)
        if self._shell:
            return [*self._words, *(_part(place, text) for place in self._places)]
        if self._adds:
            return [*self._words, text]
        return [_PLACE.sub(lambda found: _part(found[0], text), word) for word in self._words]


def as_text(item: Any) -> str:
    """The item as a word. UsageError for what has no one text, and for a NUL, which ends a word."""
    if isinstance(item, (str, bytes, os.PathLike)):
        text = os.fsdecode(item)
    elif isinstance(item, numbers.Number) and not isinstance(item, bool):
        text = str(item)
    else:
        raise UsageError(
            f"a {type(item).__name__} can't be an argument of a program: give a str, bytes, a path or a number, "
            "such as json.dumps(item), or use protocol='jsonl'"
        )
    _check_text("the item", text)
    return text


def as_stdin(item: Any) -> bytes:
    """The item as what a program reads."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    return (item if isinstance(item, str) else as_text(item)).encode("utf-8", "surrogateescape")


def as_result(command: Command, stdout: bytes) -> str | bytes:
    """What a program printed, as the value of its item."""
    if not command.text:
        return stdout
    text = stdout.decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _part(place: str, text: str) -> str:
    """As GNU parallel has them."""
    if place == "{//}":
        bare = text.rstrip("/")
        return os.path.dirname(bare) or ("/" if text.startswith("/") else ".")
    if "/" in place:
        text = text.rpartition("/")[2]
    return re.sub(r"\.[^/.]*\Z", "", text) if "." in place else text


def _check_text(what: str, *texts: Any) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{what}: {text!r} is no str")
        if "\0" in text:
            raise UsageError(f"{what} has a NUL character, which no program can be given: {text[:60]!r}")


def _check_quotes(line: str) -> None:
    """Refuse placeholders inside of quotes, which their own would end."""
    within: list[str] = []  # what ends each quote or parenthesis that is open, the innermost last
    at = 0
    while at < len(line):
        found = _PLACE.match(line, at)
        if found:
            quote = next((end for end in within if end != ")"), "")
            if quote or (at and line[at - 1] == "\\"):
                where = f"inside of {quote}" if quote else "after \\"
                raise UsageError(f"{found[0]} of a shell=True line stands {where}; it is quoted already: leave it bare")
            at = found.end()
            continue
        char, here = line[at], within[-1] if within else ""
        if char == "\\" and here != "'":
            at += 2 if not _PLACE.match(line, at + 1) else 1
            continue
        if char == here:
            within.pop()
        elif here != "'" and (char in '"`' or (char == "'" and here != '"')):
            within.append(char)
        elif here != "'" and char == "(" and (here != '"' or line[at - 1 : at] == "$"):
            within.append(")")
        at += 1
    if "<<" in line and _PLACE.search(line):
        raise UsageError("in a shell=True line << reads text that no quotes protect: use stdin='item' in place of {}")


def as_command(work: Any) -> Command:
    """What `lane="command"` accepts: a Command, a string, a sequence of words. Raises UsageError for anything else."""
    if isinstance(work, Command):
        return work
    if isinstance(work, str) or (isinstance(work, Sequence) and work and all(isinstance(word, str) for word in work)):
        return Command(work if isinstance(work, str) else tuple(work))
    raise UsageError(f"lane='command' runs a program: a string, a list of words or a duodao.Command, not {work!r}")


def missing(command: Command, error: OSError) -> CommandFailed:
    """Why the program can't be started, whatever the item."""
    name = command.words[0]
    code = 127 if isinstance(error, FileNotFoundError) else 126
    if command.cwd is not None and error.filename == os.fspath(command.cwd):
        return CommandFailed(f"{name} can't be started in cwd={error.filename!r}: {error.strerror}", exitcode=code)
    if isinstance(error, FileNotFoundError) and "/" not in name:
        path = {**os.environ, **(command.env or {})}.get("PATH", os.defpath)
        return CommandFailed(f"{name}: no such program in the folders of PATH, {path}", exitcode=code)
    hint = " (or what its first line names is missing)" if code == 127 and os.path.exists(name) else ""
    return CommandFailed(f"{name} can't be started: {error.strerror}{hint}", exitcode=code)


def encoded(item: Any) -> str:
    """The item as JSON. TypeError or ValueError for what JSON can't hold, NaN included."""
    return _ENCODER.encode(item)


def _path(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


_ENCODER = json.JSONEncoder(default=_path, allow_nan=False, separators=(",", ":"))
