"""`multiprocessing.dummy`: the names of `multiprocessing` on threads."""

from __future__ import annotations

from typing import Any

from duodao.dropin.multiprocessing.pool import ThreadPool
from duodao.dropin.queue import Queue
from duodao.dropin.threading import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    RLock,
    Semaphore,
    Thread,
    current_thread,
)

__all__ = [
    "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock", "Pool", "Process", "Queue", "RLock",
    "Semaphore", "current_process", "freeze_support",
]  # fmt: skip

JoinableQueue = Queue
current_process = current_thread


class Process(Thread):
    """A thread with the exit code of a process."""

    @property
    def exitcode(self) -> int | None:
        """0 once it has ended."""
        return 0 if self.ident is not None and not self.is_alive() else None


def Pool(processes: int | None = None, initializer: Any = None, initargs: Any = ()) -> ThreadPool:  # noqa: N802
    """A pool of threads."""
    return ThreadPool(processes, initializer, initargs)


def freeze_support() -> None:
    """Nothing to do."""
