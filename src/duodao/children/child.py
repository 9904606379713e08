"""One child process, as its supervisor holds it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Protocol

from duodao.children.lifeline import Lifeline
from duodao.errors import UsageError


class Keeper(Protocol):
    """Whoever reaps the child: the guard, or a thread where there is none."""

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the process group of a child that has not been reaped."""
        ...


class Child:
    """A process that was started with `guard.fork` or `guard.command`; it can't outlive this one.

    pid: its number, and that of its process group. It leads a process group of its own; when it ends, what it leaves in
    the group is killed.
    """

    def __init__(self, keeper: Keeper, line: Lifeline) -> None:
        self.pid = 0
        self._keeper = keeper
        self._line = line
        self._owner = os.getpid()
        self._code: int | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Child], object]] = []

    def __repr__(self) -> str:
        state = "running" if self._code is None else f"ended with {self._code}"
        return f"<Child {self.pid} {state}>"

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative: the number of the signal that ended it."""
        return self._code

    def kill(self) -> None:
        """End it and its process group with SIGKILL, now, whatever it does. It may be called at any time."""
        self._line.drop()

    def terminate(self) -> None:
        """Ask it and its process group to end, with SIGTERM. Nothing happens when it has ended."""
        if self._code is None:
            self._keeper.signal(self.pid, 15)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code when it has ended; None after `timeout` seconds. Not to be called from an `on_exit` callback."""
        if os.getpid() != self._owner:
            raise UsageError(f"process {self.pid} is a child of process {self._owner}, not of this one")
        self._over.wait(timeout)
        return self._code

    def on_exit(self, callback: Callable[[Child], object]) -> None:
        """Call `callback(child)` once it has ended: from the reader thread, or here and now if it has already."""
        with self._lock:
            if self._code is None:
                self._callbacks.append(callback)
                return
        callback(self)

    def ended(self, code: int) -> list[Callable[[Child], object]]:
        """The keeper's: it has ended with `code`. Returns the callbacks, which are due now."""
        self._line.drop()
        with self._lock:
            self._code = code
            due, self._callbacks = self._callbacks, []
        self._over.set()
        return due
