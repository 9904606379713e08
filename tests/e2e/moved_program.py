"""Programs for the standard library, run as they are and with their import lines changed, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

_NEW = {
    "multiprocessing": "duodao.dropin.multiprocessing",
    "threading": "duodao.dropin.threading",
    "queue": "duodao.dropin.queue",
    "concurrent.futures": "duodao.dropin.futures",
}
_LINE = re.compile(r"^( *)(from|import) (multiprocessing|threading|queue|concurrent\.futures)\b(.*)$", re.MULTILINE)


def moved(source: str) -> str:
    """The same program with other import lines."""
    return _LINE.sub(_line, source)


def _line(found: re.Match[str]) -> str:
    indent, word, module, rest = found.groups()
    new = _NEW[module]
    if word == "from":
        return f"{indent}from {new}{rest}"
    package, _, name = new.rpartition(".")
    return f"{indent}from {package} import {name}{rest}"


@dataclass
class Run:
    """How a program ended."""

    code: int
    out: list[str]
    err: str


def run(folder: Path, source: str, *, timeout: float = 60, move: bool = True, env: dict[str, str] | None = None) -> Run:
    """Run a program in a file of its own. timeout: a hang guard."""
    text = textwrap.dedent(source)
    file = folder / ("moved.py" if move else "standard.py")
    file.write_text(moved(text) if move else text)
    environ = {**os.environ, "DUODAO_LOCKDEP": "0", **(env or {})}
    environ.pop("PYTHONUNBUFFERED", None)  # lines of the standard library's processes would mix
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=timeout, cwd=folder, env=environ
    )
    return Run(done.returncode, done.stdout.splitlines(), done.stderr)


def same_in_both(folder: Path, source: str) -> list[str]:
    """Run it with both; the lines that it printed, sorted, which are the same, as its end is."""
    before, after = folder / "before", folder / "after"
    for each in (before, after):
        each.mkdir()
    standard, ours = run(before, source, move=False), run(after, source)
    assert standard.code == 0, standard.err
    assert not ours.code, ours.err
    assert sorted(ours.out) == sorted(standard.out), f"{ours.out} {standard.out} {ours.err}"
    assert ours.err == standard.err, f"{ours.err} {standard.err}"
    return sorted(ours.out)
