"""What sending values to another process and back costs, found by doing it with a few of them."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

from duodao.lanes import payload, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

COPY = 4e9
"""Bytes per second at which a large buffer, which travels beside the pickle, is copied."""
ROUNDS = 32
"""Values that are tried at most."""


def shipping(items: Sequence[Any], values: Sequence[Any]) -> tuple[float, int]:
    """(seconds, bytes) per item for an input and its result, there and back. Raises NotPicklable when one can't travel."""
    seconds, size = 0.0, 0
    for what, some in (("input", list(items[:ROUNDS])), ("result", list(values[:ROUNDS]))):
        if not some:
            continue
        began = time.perf_counter()
        try:
            body, large = payload.pack(some)
            pickle.loads(body, buffers=[] if large is None else [bytes(view) for view in large.views])
        except wire.Raised as error:
            raise wire.not_picklable(some[0], what, error) from error
        seconds += (time.perf_counter() - began) / len(some)
        beside = 0 if large is None else large.size
        seconds += beside / COPY / len(some)
        size += (len(body) + beside) // len(some)
    return seconds, size
