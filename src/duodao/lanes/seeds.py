"""Random state that depends on the run's seed and the input alone: the same on every lane, in any order and retry.

Rejected: one generator per worker, or SeedSequence.spawn per batch: results would then depend on which worker or batch
got the input.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from duodao.lanes.base import Work, bind


def derive(seed: int, index: int) -> int:
    """64 bits for call `index` of a run with `seed`."""
    return int.from_bytes(blake2b(f"{seed}:{index}".encode(), digest_size=8).digest(), "big")


def generator(seed: int, index: int) -> random.Random:
    """What a call gets as its keyword `rng`."""
    return random.Random(derive(seed, index))  # noqa: S311 - reproducible on purpose, never for secrets


def reseed(seed: int, index: int) -> None:
    """Set the global state of `random`, and of numpy where something has imported it, for call `index`."""
    state = derive(seed, index)
    random.seed(state)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(state & 0xFFFFFFFF)


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the global random state as it was: calls in the caller's own thread must not reset the caller's dice."""
    numpy = sys.modules.get("numpy")
    state, numpy_state = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def bind_pairs(work: Work, resources: Mapping[str, Any] | None = None, *, reseeds: bool) -> Callable[[Any], Any]:
    """Like base.bind, for seeded work: the callable takes a pair (item, id), so the lanes' loops need no second form.

    A function that names `rng` gets it. reseeds: set the global state too, right only where calls don't overlap.
    """
    seed = work.seed
    if seed is None:
        raise ValueError("bind_pairs is for work with a seed")
    if not work.wants_rng:
        plain = bind(work, resources)
        if not reseeds:
            return lambda pair: plain(pair[0])

        def reseeded(pair: tuple[Any, int]) -> Any:
            reseed(seed, pair[1])
            return plain(pair[0])

        return reseeded
    function, star = work.function, work.star
    extra = {**work.common, **(resources or {})}

    def with_rng(pair: tuple[Any, int]) -> Any:
        item, index = pair
        if reseeds:
            reseed(seed, index)
        rng = generator(seed, index)
        return function(*item, rng=rng, **extra) if star else function(item, rng=rng, **extra)

    return with_rng
