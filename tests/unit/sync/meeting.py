"""For the tests of waits: who is parked can be waited for, and threads give back what they returned or raised."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

PATIENCE = 10.0
"""Seconds until a test that hangs says so."""


class Noticing(deque):
    """A lot in which a test can wait for the n-th to park."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def append(self, ticket: Any) -> None:
        super().append(ticket)
        with self.changed:
            self.changed.notify_all()

    def appendleft(self, ticket: Any) -> None:
        super().appendleft(ticket)
        with self.changed:
            self.changed.notify_all()

    def reach(self, count: int) -> None:
        """Wait until `count` are parked."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, PATIENCE), f"{len(self)} of {count} have parked"


def noticing(primitive: Any) -> Noticing:
    """The primitive's lot, made noticing, while it is empty."""
    assert not primitive._parked
    lot = primitive._parked = Noticing()
    return lot


class Runner(threading.Thread):
    """A thread that keeps what its function returned or raised."""

    def __init__(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._function, self._args = function, args
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._function(*self._args)
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """What it returned, or raise what it raised."""
        self.done()
        if self.error is not None:
            raise self.error
        return self.value

    def done(self) -> Runner:
        self.join(PATIENCE)
        assert not self.is_alive(), f"{self.name} hangs"
        return self


def all_of(*runners: Runner) -> list[Any]:
    """What they returned; hangs are failures."""
    return [runner.result() for runner in runners]
