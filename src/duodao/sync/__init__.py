"""Locks that can't deadlock in silence: `threading`'s names, between threads, coroutines and, shared, processes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duodao.sync.lock import Lock, RLock
    from duodao.sync.lot import Statistics
    from duodao.sync.order import LockOrderWarning
    from duodao.sync.several import locks
    from duodao.sync.signal import Barrier, BoundedSemaphore, BrokenBarrierError, Condition, Event, Semaphore

__all__ = [
    "Barrier", "BoundedSemaphore", "BrokenBarrierError", "Condition", "Event", "Lock", "LockOrderWarning", "RLock",
    "Semaphore", "Statistics", "locks",
]  # fmt: skip

_HOMES = {
    "Barrier": "signal",
    "BoundedSemaphore": "signal",
    "BrokenBarrierError": "signal",
    "Condition": "signal",
    "Event": "signal",
    "Lock": "lock",
    "LockOrderWarning": "order",
    "RLock": "lock",
    "Semaphore": "signal",
    "Statistics": "lot",
    "locks": "several",
}


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'duodao.sync' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"duodao.sync.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
