"""One child process, as its supervisor holds it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from duodao.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duodao.children.lifeline import Lifeline


class Lost(Exception):
    """The guard is dead, and the request never reached it."""


class Unanswered(Lost):
    """The guard died with the request: the child may have lived for a moment, and was ended."""


Started = Callable[["Child", Exception | None], object]


class Keeper(Protocol):
    """Whoever starts and reaps children: a guard process, or, where there can be none, threads of ours."""

    broken: str  # why it could not start, or ""

    def start(self, kind: str, fields: tuple[Any, ...], fds: Sequence[int], then: Started | None = None) -> Child:
        """Start a child of kind "fork" or "exec". Lost: the keeper died. OSError: no process could be made.

        then: don't wait; it is called with the child and what went wrong, None when it runs, from any thread.
        """
        ...

    def preload(self, name: str) -> None:
        """Have children start with this module imported, where they are forked."""
        ...

    def signal(self, pid: int, number: int) -> None:
        """Send signal `number` to the process group of a child that has not been reaped."""
        ...

    def stop(self) -> None:
        """End all children, and wait until they are gone."""
        ...

    def forget(self) -> None:
        """In a forked copy: let go of what is the original's, without touching it."""
        ...


class Child:
    """A process started by `guard.fork` or `guard.command`. It can't outlive this one.

    pid: its number and that of its process group, which it leads; what it leaves in the group when it ends is killed.
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
        self.stop_signal = 0  # the last that stopped it, for `on_stop`
        self.stop_callbacks: list[Callable[[Child], object]] = []

    def __repr__(self) -> str:
        state = "running" if self._code is None else f"ended with {self._code}"
        return f"<Child {self.pid} {state}>"

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative: the number of the signal that ended it."""
        return self._code

    def kill(self) -> None:
        """End it and its process group with SIGKILL, now, whatever it does. Allowed at any time, from any thread."""
        self._line.drop()

    def terminate(self) -> None:
        """Ask it and its process group to end, with SIGTERM. Nothing happens when it has ended."""
        if self._code is None:
            self._keeper.signal(self.pid, int(signal.SIGTERM))

    def interrupt(self) -> None:
        """Send it and its process group SIGINT, which they ignore unless they say otherwise."""
        if self._code is None:
            self._keeper.signal(self.pid, int(signal.SIGINT))

    def suspend(self) -> None:
        """Stop it and its process group until `resume`; `on_stop` doesn't tell of that."""
        if self._code is None:
            self._keeper.signal(self.pid, int(signal.SIGSTOP))

    def resume(self) -> None:
        """Let it and its process group go on."""
        if self._code is None:
            self._keeper.signal(self.pid, int(signal.SIGCONT))

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code once it has ended; None after `timeout` seconds. Never from an `on_exit` callback: it tells.

        UsageError in a forked copy of the process that started it.
        """
        if os.getpid() != self._owner:
            raise UsageError(f"process {self.pid} is a child of process {self._owner}; only that one can wait for it")
        self._over.wait(timeout)
        return self._code

    def on_exit(self, callback: Callable[[Child], object]) -> None:
        """Call `callback(child)` when it has ended: from the guard's reader thread, or here if it has ended before."""
        with self._lock:
            if self._code is None:
                self._callbacks.append(callback)
                return
        callback(self)

    def on_stop(self, callback: Callable[[Child], object]) -> None:
        """Call `callback(child)` whenever a signal, `child.stop_signal`, stops it that `suspend` didn't send.

        From the guard's reader thread. It stays stopped until it is sent SIGCONT; a program that reads the terminal
        from the background does so for ever. Not where children are kept without a guard process (macOS).
        """
        self.stop_callbacks.append(callback)
        if self.stop_signal:  # before this call; twice, if in this very moment
            callback(self)

    def ended(self, code: int) -> list[Callable[[Child], object]]:
        """For the keeper: it has ended with `code`. Returns the callbacks that are now due."""
        self._line.drop()
        with self._lock:
            self._code = code
            due, self._callbacks = self._callbacks, []
        self._over.set()
        return due
