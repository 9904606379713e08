"""When a task that ended runs again: after a while that grows, and not too often."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from duodao.clock import Clock
from duodao.errors import UsageError

KINDS = ("on-failure", "always")


@dataclass(frozen=True, slots=True)
class Restart:
    """How a task is restarted.

    when: "on-failure", or "always": also after it returned. limit: restarts within `period` seconds; one more end in
    that time is the task's failure. delay: seconds before the first of them; each further one within the period waits
    `factor` times as long, at_most seconds at the longest. jitter: a random share of the delay that is added, from 0
    to 1, so that many tasks don't come back in one instant.
    Source: M4; the restart intensity of OTP supervisors, https://www.erlang.org/doc/system/sup_princ.html
    """

    when: str = "on-failure"
    limit: int = 5
    period: float = 30.0
    delay: float = 0.1
    factor: float = 2.0
    at_most: float = 10.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if self.when not in KINDS:
            raise UsageError(f"Restart(when={self.when!r}): one of {', '.join(map(repr, KINDS))} is needed")
        if not isinstance(self.limit, int) or isinstance(self.limit, bool) or self.limit < 1:
            raise UsageError(f"Restart(limit={self.limit!r}): a whole number from 1 is needed")
        for name, least in (("period", 0), ("delay", 0), ("factor", 1), ("at_most", 0), ("jitter", 0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= least:
                raise UsageError(f"Restart({name}={value!r}): a number from {least} is needed")
        if self.jitter > 1:
            raise UsageError(f"Restart(jitter={self.jitter!r}): a number from 0 to 1 is needed")


def as_restart(value: object) -> Restart | None:
    """What `restart=` accepts: None, "on-failure", "always", or a Restart."""
    if value is None or isinstance(value, Restart):
        return value
    if isinstance(value, str) and value in KINDS:
        return Restart(value)
    raise UsageError(f"restart={value!r}: None, {', '.join(map(repr, KINDS))} or a duodao.Restart is needed")


class Intensity:
    """The restarts of one task, counted. spent: the limit has been reached."""

    def __init__(self, plan: Restart, clock: Clock) -> None:
        self.plan = plan
        self.spent = False
        self._clock = clock
        self._recent: deque[float] = deque()

    def after(self, *, failed: bool) -> float | None:
        """Seconds until the task that has just ended runs again; None when it doesn't."""
        plan = self.plan
        if not failed and plan.when != "always":
            return None
        now = self._clock.now()
        while self._recent and now - self._recent[0] > plan.period:
            self._recent.popleft()
        if len(self._recent) >= plan.limit:
            self.spent = True
            return None
        try:
            seconds = min(plan.at_most, plan.delay * plan.factor ** len(self._recent))
        except OverflowError:  # after a thousand restarts or so
            seconds = plan.at_most if plan.delay else 0.0
        self._recent.append(now)
        return seconds * (1 + random.uniform(0, plan.jitter))  # noqa: S311 - spreads load, guards nothing
