"""A thread of its own for the callbacks of a pool: one that blocks must not hold up the results of other calls."""

from __future__ import annotations

import queue
import threading
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from duodao.clock import SYSTEM


class Callbacks:
    """Runs functions one after the other, in a thread that is started when needed and ends when idle.

    idle: seconds. done: called after each. A function must not raise.
    """

    def __init__(self, name: str, idle: float, done: Callable[[], object]) -> None:
        self._name = name
        self._seconds = idle
        self._done = done
        self._lock = threading.RLock()
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._count = 0
        self._thread: threading.Thread | None = None
        self._ident: int | None = None

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` there, soon."""
        with self._lock:
            self._count += 1
            self._todo.put(lambda: function(*args))
            start = self._thread is None
            if start:
                thread = self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        if start:
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends: here, then
                self._main(seconds=0.0)

    def _main(self, seconds: float | None = None) -> None:
        self._ident = get_ident()
        while True:
            function = SYSTEM.get(self._todo, self._seconds if seconds is None else seconds)
            if function is None:
                with self._lock:
                    if not self._todo.empty():
                        continue
                    self._thread = self._ident = None
                    return
            function()
            del function
            with self._lock:
                self._count -= 1
            self._done()

    def over(self) -> bool:
        """Have all been run? From the thread itself: all but the one that asks."""
        return not self._count or self._ident == get_ident()

    def end(self, *, wait: bool) -> None:
        """End the thread when it has run what it was given. wait: return when that has happened."""
        with self._lock:
            thread, self._seconds = self._thread, 0.0
            if thread is not None:
                self.put(int)
        if wait and thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join()
