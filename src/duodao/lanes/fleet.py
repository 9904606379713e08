"""Workers without a run, kept for some seconds: the next run finds them warm, with its modules imported.

One is used again only where a fresh worker would see the same: the same directory, environment, import path and number
of threads per call, and none of its modules' files changed. It ends itself when it stays idle; this side then hears of
its death and closes its pipes, so no thread waits here. What is left ends with the program.
"""

from __future__ import annotations

import atexit
import functools
import os
import site
import sys
import sysconfig
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duodao.lanes.link import Link

FRESH = 9.0
"""Seconds. Less than the time after which an idle worker ends itself, so that none ends as it gets work."""
AT_MOST = 64


@dataclass(frozen=True)
class Home:
    """What a worker must have in common with a run."""

    cwd: str
    path: list[str]
    environ: dict[str, str]


@dataclass
class _Idle:
    link: Link
    home: Home
    modules: list[tuple[str, int]]
    since: float = field(default_factory=monotonic)


class Fleet:
    """The idle workers of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Idle] = []

    def take(self, home: Home) -> Link | None:
        """A worker that fits, now the caller's; None when there is none."""
        now = monotonic()
        with self._lock:
            for idle in reversed(self._idle):
                if now - idle.since < FRESH and idle.home == home and _unchanged(idle.modules):
                    self._idle.remove(idle)
                    return idle.link
        return None

    def put(self, link: Link, home: Home, modules: list[tuple[str, int]]) -> None:
        """Keep a worker that has no run; the oldest goes when there are too many."""
        link.notify = self._ended
        with self._lock:
            self._idle.append(_Idle(link, home, modules))
            surplus = self._idle.pop(0) if len(self._idle) > AT_MOST else None
        if surplus is not None:
            surplus.link.close()
        if link.child is None or link.child.exitcode is not None:
            self._ended(link)

    def pids(self) -> set[int]:
        """The processes that are idle."""
        with self._lock:
            return {idle.link.child.pid for idle in self._idle if idle.link.child is not None}

    def clear(self) -> None:
        """End all of them and wait until they are gone."""
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.link.close()
        for each in idle:
            if each.link.child is not None:
                each.link.child.kill()
                each.link.child.wait(5.0)

    def _ended(self, link: Link) -> None:
        with self._lock:
            found = [idle for idle in self._idle if idle.link is link]
            self._idle = [idle for idle in self._idle if idle.link is not link]
        if found:
            link.close()

    def forget(self) -> None:
        """In a forked copy: the workers are the original's."""
        self._lock = threading.Lock()
        for idle in self._idle:
            idle.link.close_fds()
        self._idle = []


FLEET = Fleet()
atexit.register(FLEET.clear)
os.register_at_fork(after_in_child=FLEET.forget)


def _unchanged(modules: list[tuple[str, int]]) -> bool:
    return all(changed(file) == when for file, when in modules)


def changed(file: str) -> int:
    """When a file was changed, in nanoseconds since the epoch; -1 when it is gone."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return -1


@functools.cache
def is_own(file: str) -> bool:
    """Is it a module that a user edits: not of the standard library, not installed, not ours?"""
    return not file.startswith(_not_own())


@functools.cache
def _not_own() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots.update((os.path.dirname(os.path.dirname(os.path.abspath(__file__))), site.getusersitepackages()))
    return (*(os.path.join(root, "") for root in roots if root), "<")


def home(environ: dict[str, str]) -> Home:
    """What the caller's process is now, with `environ` for its workers."""
    return Home(os.getcwd(), [str(entry) for entry in sys.path], environ)
