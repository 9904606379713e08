"""How many calls may start per second: one token per attempt, several limits together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from duodao.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `n` tokens per `per` seconds. cost: tokens of one input (default: 1 each). Source: M45."""

    n: float
    per: float = 1.0
    cost: Callable[[Any], float] | None = None

    def __post_init__(self) -> None:
        for name in ("n", "per"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise UsageError(f"Rate({name}={value!r}): a number over 0 is needed")


def as_rates(value: object) -> tuple[Rate, ...]:
    """What `rate=` accepts: None, calls per second, a Rate, or a sequence of these."""
    if value is None:
        return ()
    if isinstance(value, Rate):
        return (value,)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (Rate(value),)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(rate for part in value for rate in as_rates(part))
    raise UsageError(f"rate={value!r}: calls per second, a duodao.Rate or several of them are needed")


class Bucket:
    """A token bucket that holds so little that no second sees more than rate + 5 % + 1 calls.

    Its size is 3 % of a second's tokens (and one call): the rest is left for calls that start a little after their
    token was taken. A single call that costs more than the bucket holds goes when it is full, and leaves a debt.
    """

    __slots__ = ("cost", "filled", "size", "speed", "tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self.speed = rate.n / rate.per
        self.size = max(1.0, 0.5 + 0.03 * self.speed)
        self.tokens = 1.0
        self.filled = now
        self.cost = rate.cost

    def refill(self, now: float) -> None:
        """Bring the tokens up to `now`."""
        self.tokens = min(self.size, self.tokens + (now - self.filled) * self.speed)
        self.filled = now

    def price(self, item: Any) -> float:
        """Tokens of one attempt with this item."""
        if self.cost is None:
            return 1.0
        price = float(self.cost(item))
        if not price >= 0:
            raise UsageError(f"Rate(cost=): {price!r} for {item!r}; a number from 0 is needed")
        return price

    def wait(self, price: float) -> float:
        """Seconds until a call of this price may start; 0 when it may now."""
        return max(0.0, (min(price, self.size) - self.tokens) / self.speed)


class Meter:
    """All limits of one stage together."""

    __slots__ = ("buckets",)

    def __init__(self, rates: Sequence[Rate], now: float) -> None:
        self.buckets = [Bucket(rate, now) for rate in rates]

    def start(self, now: float) -> None:
        """Begin to count: what came together before doesn't make a burst."""
        for bucket in self.buckets:
            bucket.refill(now)
            bucket.tokens = min(bucket.tokens, 1.0)

    def due(self, now: float) -> tuple[int, float]:
        """(calls of price 1 that may start now, seconds until the next one may when there are none)."""
        for bucket in self.buckets:
            bucket.refill(now)
        count = min(int(bucket.tokens + 1e-9) for bucket in self.buckets)
        return (count, 0.0) if count > 0 else (0, max(bucket.wait(1.0) for bucket in self.buckets))

    def admit(self, items: Sequence[Any], now: float) -> tuple[int, float]:
        """Take the tokens of the `items`, from the first, that may start now; (how many, seconds until the next)."""
        for bucket in self.buckets:
            bucket.refill(now)
        for count, item in enumerate(items):
            prices = [bucket.price(item) for bucket in self.buckets]
            wait = max(bucket.wait(price) for bucket, price in zip(self.buckets, prices, strict=True))
            if wait > 1e-9:
                return count, wait
            for bucket, price in zip(self.buckets, prices, strict=True):
                bucket.tokens -= price
        return len(items), 0.0
