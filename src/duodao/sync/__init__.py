"""Locks that can't deadlock in silence: `threading`'s names, between threads, coroutines and, shared, processes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duodao.sync.lock import Lock, RLock
    from duodao.sync.lot import Statistics

__all__ = ["Lock", "RLock", "Statistics"]

_HOMES = {
    "Lock": "lock",
    "RLock": "lock",
    "Statistics": "lot",
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
