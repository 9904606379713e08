"""What sending values to another process and back costs, found by doing it with a few of them."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from typing import Any

COPY = 4e9
"""Bytes per second that a buffer is copied at; large ones travel beside the pickle."""
ROUNDS = 32


def shipping(items: Sequence[Any], values: Sequence[Any]) -> tuple[float, int]:
    """(seconds, bytes) per item to pickle and unpickle an input and its result.

    Raises what pickling raises, with a note that says whether it was the input or the result.
    """
    seconds, size = 0.0, 0
    for what, some in (("input", items[:ROUNDS]), ("result", values[:ROUNDS])):
        buffers: list[pickle.PickleBuffer] = []
        began = time.perf_counter()
        try:
            data = dumps(list(some), buffers)
            pickle.loads(data, buffers=buffers)
        except Exception as error:
            error.add_note(what)
            raise
        seconds += (time.perf_counter() - began) / max(1, len(some))
        beside = sum(buffer.raw().nbytes for buffer in buffers)
        seconds += 2 * beside / COPY / max(1, len(some))
        size += (len(data) + beside) // max(1, len(some))
    return seconds, size


def dumps(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    """The pickle of a value, by reference where that works, by value for lambdas and what `__main__` defines."""
    try:
        return pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception:
        import cloudpickle

        buffers.clear()
        data: bytes = cloudpickle.dumps(value, 5, buffer_callback=buffers.append)
        return data
