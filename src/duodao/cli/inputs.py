"""INPUT… on the command line: which items a run gets from files, from stdin, or from the paths themselves."""

from __future__ import annotations

import fnmatch
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from duodao.cli import records
from duodao.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def open_inputs(
    inputs: Sequence[str], *, paths: bool = False, match: str | None = None, nul: bool = False, ours: Sequence[str] = ()
) -> Iterable[Any]:
    """The items that INPUT… mean. Everything that can be wrong is looked at here, before a run starts.

    paths: every INPUT is itself an item, directories recursively, in sorted order. match: with `paths`, a pattern that
    names must fit (the path from the INPUT on, where the pattern has a slash). nul: stdin is separated by NUL bytes.
    ours: the run's own files, which are never inputs of it.
    Raises UsageError for an INPUT that is missing, unreadable, or can't be meant.
    """
    if match is not None and not paths:
        raise UsageError("--match needs --paths: it chooses among paths")
    if paths:
        return _list_paths(inputs, match, ours, nul=nul)
    if nul:
        if [i for i in inputs if i != "-"]:
            raise UsageError("-0 is for stdin: give no other INPUT with it")
        return records.Stdin(b"\0")
    if not inputs:
        raise UsageError("no INPUT: name a .txt, .jsonl or .csv file, - for stdin, or paths with --paths")
    if list(inputs).count("-") > 1:
        raise UsageError("- can be given once: there is one stdin")
    for name in inputs:
        if name != "-":
            _check_readable(name, ours)
    others = [i for i in inputs if i != "-" and records.kind(i) not in records.KINDS and os.path.isfile(i)]
    if len(inputs) > 1 and others:
        raise UsageError(
            f"{others[0]} is no .txt, .jsonl or .csv file, whose lines could be items; "
            "to make every path itself an item add --paths"
        )
    if others:
        print(f"duodao: every line of {others[0]} is an item (--paths would make the path itself one)", file=sys.stderr)
    if list(inputs) == ["-"]:
        return records.Stdin(b"\n")
    return records.files(inputs)


def _check_readable(name: str, ours: Sequence[str]) -> None:
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"can't read it ({error.strerror})"
        raise UsageError(f"{what}: {name}") from None
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name} is a directory: --paths makes every file in it an item")
    if stat.S_ISSOCK(mode):
        raise UsageError(f"can't read {name}: it is a socket")
    if stat.S_ISREG(mode):  # a FIFO is opened when its turn comes: opening it twice would lose its writer
        try:
            with open(name, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"can't read {name}: {error.strerror}") from None
        if any(os.path.exists(own) and os.path.samefile(own, name) for own in ours):
            raise UsageError(f"{name} is an INPUT and an output of this run")
        if records.kind(name) == ".csv":
            records.check_header(name)


# -- paths ------------------------------------------------------------------------------------------------------------


def _list_paths(inputs: Sequence[str], match: str | None, ours: Sequence[str], *, nul: bool) -> list[str]:
    if nul or "-" in inputs:
        raise UsageError("with --paths every INPUT is a path; paths from stdin are read by - or -0 without --paths")
    if not inputs:
        raise UsageError("no INPUT: --paths needs files or directories")
    own = {os.path.realpath(name) for name in ours}
    found: list[str] = []
    for name in inputs:
        if os.path.isdir(name):
            found += [path for path in _walk(name, match) if os.path.realpath(path) not in own]
        elif os.path.lexists(name):
            found += [name] if match is None or _fits(name, os.path.basename(name), match) else []
        else:
            raise UsageError(f"no such file: {name}")
    if not found:
        print(f"duodao: no path matches {match!r}" if match else "duodao: no file found", file=sys.stderr)
    return found


def _fits(path: str, name: str, match: str) -> bool:
    return fnmatch.fnmatchcase(path if "/" in match else name, match)


def _walk(top: str, match: str | None) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UsageError(f"can't read {error.filename}: {error.strerror}") from None

    for folder, folders, names in os.walk(top, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if (match is None or _fits(os.path.relpath(path, top), name, match)) and os.path.isfile(path):
                yield path
