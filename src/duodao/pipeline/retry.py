"""When a failed call runs again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from duodao.errors import UsageError, WorkerDied


class Pause(float):
    """Seconds for which the whole stage starts nothing; what `delay=` returns to honour a Retry-After for everyone."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed call runs again.

    times: further attempts, from 1. on: exception types that are worth another attempt. first: seconds before the
    second attempt. factor: each wait is this many times the one before. at_most: longest wait, in seconds. delay: a
    function (error, attempt) -> seconds in place of first and factor; Retry.pause(seconds) holds the stage back.
    A wait is shortened by up to a half at random, so that many failed calls don't come back in one instant.
    An input that ended two workers is not run again. Source: M45.
    """

    times: int
    on: tuple[type[BaseException], ...] = (Exception,)
    first: float = 0.1
    factor: float = 2.0
    at_most: float = 60.0
    delay: Callable[[BaseException, int], float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.times, int) or isinstance(self.times, bool) or self.times < 0:
            raise UsageError(f"Retry(times={self.times!r}): a whole number from 0 is needed")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise UsageError(f"Retry(on={self.on!r}): exception types are needed")
        object.__setattr__(self, "on", kinds)
        for name, least in (("first", 0), ("factor", 1), ("at_most", 0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= least:
                raise UsageError(f"Retry({name}={value!r}): a number from {least} is needed")

    @staticmethod
    def pause(seconds: float) -> Pause:
        """For `delay=`: this call waits, and no other call of the stage starts for as long."""
        return Pause(seconds)

    def wait(self, error: BaseException, attempt: int) -> float | None:
        """Seconds before attempt + 1, or None when there is none. attempt: the one that failed, from 1."""
        if attempt > self.times or not isinstance(error, self.on) or isinstance(error, WorkerDied):
            return None
        if self.delay is not None:
            return self.delay(error, attempt)
        seconds = min(self.at_most, self.first * self.factor ** (attempt - 1))
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


NEVER = Retry(0)


def as_retry(value: object) -> Retry:
    """What `retries=` accepts: a Retry, or a number of further attempts after any Exception."""
    if isinstance(value, Retry):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Retry(value) if value else NEVER
    raise UsageError(f"retries={value!r}: a whole number from 0 or a duodao.Retry is needed")
