"""Entries for workers of the tests: what a child does travels as source, so that each test shows it."""

from __future__ import annotations


def run(arg, fds):
    """Run the source in `arg`, which knows `fds` and may set `code`, the exit code."""
    names = {"fds": fds, "arg": arg}
    exec(arg, names)
    return names.get("code")


def echo(arg, fds):
    """Write `arg` to the first descriptor."""
    import os

    view = memoryview(arg)
    while view:
        view = view[os.write(fds[0], view) :]


def fail(arg, fds):
    """Raise what a broken entry raises."""
    raise ValueError(arg.decode())


def leave(arg, fds):
    """Leave as a script does."""
    import sys

    sys.exit(int(arg) if arg else "a text for stderr")
