"""`multiprocessing`'s locks: those of `duodao.sync` between processes, with the arguments that they have there."""

from __future__ import annotations

from typing import Any

from duodao.errors import OwnerDied
from duodao.sync import shared, shared_signal

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]


class Lock(shared.Lock):
    """A mutex between processes. It is released by its holder only."""

    __slots__ = ()

    def __init__(self, *, ctx: Any = None) -> None:
        del ctx
        super().__init__()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool | OwnerDied:
        """Take it; False when it could not be had at once (block=False) or within `timeout` seconds."""
        return super().acquire(*_as_threading(block, timeout))


class RLock(shared.RLock):
    """A mutex between processes that its holder may take again."""

    __slots__ = ()

    def __init__(self, *, ctx: Any = None) -> None:
        del ctx
        super().__init__()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool | OwnerDied:
        """Take it; False when it could not be had at once (block=False) or within `timeout` seconds."""
        return super().acquire(*_as_threading(block, timeout))


class Semaphore(shared_signal.Semaphore):
    """A number of permits between processes."""

    __slots__ = ()

    def __init__(self, value: int = 1, *, ctx: Any = None) -> None:
        del ctx
        super().__init__(value)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False when there was none at once (block=False) or within `timeout` seconds."""
        return super().acquire(bool(block), timeout if block else None)

    def get_value(self) -> int:
        """The permits that are left."""
        return self._show()


class BoundedSemaphore(shared_signal.BoundedSemaphore):
    """A number of permits between processes, of which no more can be given back than were taken."""

    __slots__ = ()

    def __init__(self, value: int = 1, *, ctx: Any = None) -> None:
        del ctx
        super().__init__(value)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False when there was none at once (block=False) or within `timeout` seconds."""
        return super().acquire(bool(block), timeout if block else None)

    def get_value(self) -> int:
        """The permits that are left."""
        return self._show()


class Event(shared_signal.Event):
    """A flag between processes."""

    __slots__ = ()

    def __init__(self, *, ctx: Any = None) -> None:
        del ctx
        super().__init__()

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {hex(id(self))} {'set' if self.is_set() else 'unset'}>"


class Condition(shared_signal.Condition):
    """A condition between processes, with an RLock of its own or the given lock."""

    __slots__ = ()

    def __init__(self, lock: Any = None, *, ctx: Any = None) -> None:
        del ctx
        super().__init__(lock if lock is not None else RLock())


class Barrier(shared_signal.Barrier):
    """A barrier between processes."""

    __slots__ = ()

    def __init__(self, parties: int, action: Any = None, timeout: float | None = None, *, ctx: Any = None) -> None:
        del ctx
        super().__init__(parties, action, timeout)


def _as_threading(block: bool, timeout: float | None) -> tuple[bool, float]:
    """A time-out as `threading` wants it: -1 for none; below 0 is 0 here, and without blocking it doesn't count."""
    if not block:
        return False, -1
    return True, -1 if timeout is None else max(timeout, 0.0)
