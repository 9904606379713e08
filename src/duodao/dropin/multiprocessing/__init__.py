"""`multiprocessing` on Duodao: `from duodao.dropin import multiprocessing`, and the rest of a program stays as it is.

What differs is what would have hung or lost something: a killed worker costs its own call; a killed reader or writer
doesn't block a queue, nor a process that ends with a full one; a lock whose holder was killed is handed on, with a
warning; `d["x"] += 1` of two processes raises LostUpdate where one would be lost; no process outlives the program. A
Lock is released by its holder only. Processes are forked from a clean server: what was changed in global variables of
modules is not there (as with spawn and forkserver); functions and classes of `__main__` travel with what they use.
Source: M4, M9-M17, M29.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing import (
        AuthenticationError,
        BufferTooShort,
        ProcessError,
        TimeoutError,
        get_logger,
        log_to_stderr,
    )
    from typing import Any

    from duodao.dropin.multiprocessing.connection import Pipe
    from duodao.dropin.multiprocessing.managers import Manager
    from duodao.dropin.multiprocessing.pool import Pool
    from duodao.dropin.multiprocessing.process import (
        Process,
        active_children,
        current_process,
        get_start_method,
        parent_process,
        set_start_method,
    )
    from duodao.dropin.multiprocessing.queues import Empty, Full, JoinableQueue, Queue, SimpleQueue
    from duodao.dropin.multiprocessing.sharedctypes import Array, RawArray, RawValue, Value
    from duodao.dropin.multiprocessing.synchronize import (
        Barrier,
        BoundedSemaphore,
        Condition,
        Event,
        Lock,
        RLock,
        Semaphore,
    )

__all__ = [
    "Array", "AuthenticationError", "Barrier", "BoundedSemaphore", "BufferTooShort", "Condition", "Empty", "Event",
    "Full", "JoinableQueue", "Lock", "Manager", "Pipe", "Pool", "Process", "ProcessError", "Queue", "RLock", "RawArray",
    "RawValue", "Semaphore", "SimpleQueue", "TimeoutError", "Value", "active_children", "cpu_count", "current_process",
    "freeze_support", "get_all_start_methods", "get_context", "get_logger", "get_start_method", "log_to_stderr",
    "parent_process", "set_start_method",
]  # fmt: skip

_HOMES = {
    "connection": ("Pipe",),
    "pool": ("Pool",),
    "process": (
        "Process",
        "active_children",
        "current_process",
        "get_start_method",
        "parent_process",
        "set_start_method",
    ),
    "managers": ("Manager",),
    "queues": ("Empty", "Full", "JoinableQueue", "Queue", "SimpleQueue"),
    "sharedctypes": ("Array", "RawArray", "RawValue", "Value"),
    "synchronize": ("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"),
}
_STANDARD = (
    "AuthenticationError",
    "BufferTooShort",
    "ProcessError",
    "TimeoutError",
    "get_logger",
    "log_to_stderr",
)


def __getattr__(name: str) -> Any:
    """Each name is loaded when it is first used: every process that starts imports this package."""
    import importlib

    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is not None:
        module = importlib.import_module(f"{__name__}.{home}")
    elif name in _STANDARD:
        module = importlib.import_module("multiprocessing")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def cpu_count() -> int:
    """The cores that this program may use: affinity and cgroup limits count."""
    from duodao.cost.limits import cpus

    return cpus()


def freeze_support() -> None:
    """Nothing to do."""


def get_all_start_methods() -> list[str]:
    """The names that `set_start_method` accepts."""
    return ["forkserver", "fork", "spawn"]


def get_context(method: str | None = None) -> Any:
    """This module, whatever the method: see `set_start_method`."""
    from duodao.dropin.multiprocessing.process import set_start_method as check

    check(method)
    return sys.modules[__name__]


def set_executable(executable: str) -> None:
    """UsageError: processes are forked from this program's own interpreter."""
    from duodao.errors import UsageError

    raise UsageError(f"can't use {executable!r}: processes are forked from a server of this program's interpreter")
