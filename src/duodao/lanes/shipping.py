"""What sending values to another process and back costs, found by doing it with a few of them."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

from duodao.lanes import payload, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duodao.lanes.base import Work

COPY = 4e9
"""Bytes per second at which a large buffer, which travels beside the pickle, is copied."""
ROUNDS = 32
"""Values that are tried at most."""


def unsendable(work: Work) -> str:
    """Why a function with its setup and common values can't travel to another process, or ""."""
    try:
        wire.dumps((work.function, work.setup))
        payload.pack(list(work.common.values()))  # large buffers in them are looked at, not copied
    except wire.Raised as error:
        return f"{work.name} and what it uses can't travel to a process ({first_line(error)})"
    return ""


def first_line(error: BaseException) -> str:
    """An error's text, short enough to stand in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shipping(items: Sequence[Any], values: Sequence[Any]) -> tuple[float, int]:
    """(seconds, bytes) per item for an input and its result, there and back. NotPicklable if one can't travel."""
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
