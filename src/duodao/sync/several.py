"""Several locks at once, always in one order: what takes all its locks so is in no circle."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any

from duodao.errors import UsageError


def _rank(lock: Any) -> tuple[int, int]:
    """Locks of this process by age, then shared ones by their place in the memory that processes share."""
    number = getattr(lock, "_number", None)
    if isinstance(number, int):
        return 0, number
    offset = getattr(lock, "offset", getattr(lock, "_offset", None))
    if isinstance(offset, int):
        return 1, offset
    raise UsageError(f"locks() takes Lock and RLock of duodao.sync, not {type(lock).__name__}")


class locks:  # noqa: N801  # used as a function: `with locks(a, b):`
    """Take several locks in one global order, and release them in reverse.

    all: Lock and RLock of `duodao.sync`, in any order; one that is named twice is taken once. UsageError for anything
    else. `with` (threads) and `async with` (tasks; no shared ones) give a tuple of what each `acquire` gave, in the
    order of the arguments: True, or OwnerDied where the last holder ended with the lock. One block at a time.
    Source: M16; Linux orders likewise where it takes two of one kind.
    """

    def __init__(self, *all: Any) -> None:
        self._given = all
        self._sorted = [next(same) for _, same in itertools.groupby(sorted(all, key=_rank), key=_rank)]
        self._taken: list[Any] = []

    def __enter__(self) -> tuple[Any, ...]:
        told: dict[int, Any] = {}
        try:
            for lock in self._sorted:
                told[id(lock)] = lock.acquire()
                self._taken.append(lock)
        except BaseException:
            self._release()
            raise
        return tuple(told[id(lock)] for lock in self._given)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    async def __aenter__(self) -> tuple[Any, ...]:
        told: dict[int, Any] = {}
        try:
            for lock in self._sorted:
                told[id(lock)] = await lock.aacquire()
                self._taken.append(lock)
        except BaseException:
            self._release()
            raise
        return tuple(told[id(lock)] for lock in self._given)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        while self._taken:
            self._taken.pop().release()
