"""`multiprocessing`'s locks: those of `duodao.sync`, between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duodao import sync

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]


def Lock() -> Any:  # noqa: N802  # here and below: the standard library's names
    """A mutex between processes. It is released by its holder only."""
    return sync.Lock(shared=True)


def RLock() -> Any:  # noqa: N802
    """A mutex between processes that its holder may take again."""
    return sync.RLock(shared=True)


def Semaphore(value: int = 1) -> Any:  # noqa: N802
    """A number of permits between processes."""
    return sync.Semaphore(value, shared=True)


def BoundedSemaphore(value: int = 1) -> Any:  # noqa: N802
    """A number of permits between processes, of which no more can be given back than were taken."""
    return sync.BoundedSemaphore(value, shared=True)


def Event() -> Any:  # noqa: N802
    """A flag between processes."""
    return sync.Event(shared=True)


def Condition(lock: Any = None) -> Any:  # noqa: N802
    """A condition between processes, with a shared RLock of its own or the given lock."""
    return sync.Condition(lock, shared=True)


def Barrier(parties: int, action: Callable[[], Any] | None = None, timeout: float | None = None) -> Any:  # noqa: N802
    """A barrier between processes."""
    return sync.Barrier(parties, action, timeout, shared=True)
