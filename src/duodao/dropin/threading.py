"""`threading` on Duodao's locks: `from duodao.dropin import threading`, and the rest of a program stays as it is.

What differs is what would have hung. A circle of locks and joins ends in `duodao.errors.Deadlock` in one of its
threads, with both stacks; the others go on. A lock that was held by a thread that ended is handed on, and the next
holder told. A Lock is released by its holder only. Source: M14, M16, M24.
"""

from __future__ import annotations

import sys
import threading as _threading
import types
from collections import deque
from threading import (
    TIMEOUT_MAX,
    BrokenBarrierError,
    ExceptHookArgs,
    ThreadError,
    active_count,
    current_thread,
    enumerate,
    get_ident,
    get_native_id,
    getprofile,
    gettrace,
    local,
    main_thread,
    setprofile,
    settrace,
    stack_size,
)
from threading import (
    Timer as _Timer,
)
from typing import Any

from duodao.sync import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore, graph, lot

__all__ = [
    "TIMEOUT_MAX", "Barrier", "BoundedSemaphore", "BrokenBarrierError", "Condition", "Event", "ExceptHookArgs", "Lock",
    "RLock", "Semaphore", "Thread", "ThreadError", "Timer", "active_count", "current_thread", "enumerate",
    "excepthook",  # noqa: F822 - of the module's class
    "get_ident", "get_native_id", "getprofile", "gettrace", "local", "main_thread", "setprofile", "settrace",
    "stack_size",
]  # fmt: skip


class _Module(types.ModuleType):
    """Assigning `threading.excepthook` takes effect. Names beyond ours are those of this Python's `threading`."""

    @property
    def excepthook(self) -> Any:
        return _threading.excepthook

    @excepthook.setter
    def excepthook(self, hook: Any) -> None:
        _threading.excepthook = hook

    def __getattr__(self, name: str) -> Any:
        if name in {"__path__", "__wrapped__"}:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_threading, name)


sys.modules[__name__].__class__ = _Module


class Thread(_threading.Thread):
    """`threading.Thread`, whose `join` is seen by the search for deadlocks."""

    def start(self) -> None:
        """Start it. RuntimeError when it was started before."""
        if "_waiters" in self.__dict__:
            raise RuntimeError("threads can only be started once")
        run = self.run
        waiters: lot.Parked = deque()
        self._waiters = waiters
        self._over = False

        def whole() -> None:
            try:
                run()
            finally:
                self.__dict__.pop("run", None)  # else the thread would hold itself
                self._over = True
                graph.gone(_threading.get_ident())
                lot.wake_all(waiters)

        self.run = whole  # type: ignore[method-assign]
        try:
            super().start()
        except RuntimeError:  # no more threads: it may be tried again
            del self.run, self._waiters
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most. Deadlock when it can't end before this thread goes on.

        RuntimeError before it was started, and for the thread itself.
        """
        if "_waiters" in self.__dict__ and timeout is None and self is not current_thread() and self.is_alive():
            lot.wait(self, self._waiters, lambda: self._over or not self.is_alive())
        super().join(timeout)

    def resolvers(self) -> tuple[graph.Unit, ...]:
        """For the search for deadlocks: only the thread itself can end a join."""
        return () if self.ident is None else (self.ident,)

    def describe(self) -> str:
        """As messages name the wait."""
        return f"the end of thread {self.name!r}"


class Timer(Thread):
    """`threading.Timer` on our Thread."""

    def __init__(self, interval: float, function: Any, args: Any = None, kwargs: Any = None) -> None:
        super().__init__()
        self.interval = interval
        self.function = function
        self.args = args if args is not None else []
        self.kwargs = kwargs if kwargs is not None else {}
        self.finished = _threading.Event()  # nobody but the timer waits for it, and it has a time-out

    cancel = _Timer.cancel
    run = _Timer.run
