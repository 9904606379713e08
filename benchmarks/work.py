"""The functions that the scenarios run. In a module of their own so that every pool can import them in its workers."""

from __future__ import annotations

import sys
import time
from typing import Any


def square(x: int) -> int:
    return x * x


def noop(x: Any) -> Any:
    return x


def burn(seconds: float) -> float:
    """Use `seconds` of CPU time; returns what was really used."""
    clock = time.thread_time
    began = clock()
    end = began + seconds
    while clock() < end:
        pass
    return clock() - began


def burn_and_pause(seconds: tuple[float, float]) -> float:
    """Compute under the GIL for the first of them, then wait for the second."""
    used = burn(seconds[0])
    time.sleep(seconds[1])
    return used


def pause_1ms(x: int) -> int:
    time.sleep(0.001)
    return x


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def length(data: bytes) -> int:
    return len(data)


def first_value(array: Any) -> float:
    return float(array[0] + array[-1])


def megabyte(x: int) -> bytes:
    return bytes(1_000_000)


def fetch(x: int) -> dict[str, int]:
    return {"id": x, "size": x % 97}


def parse(row: dict[str, int]) -> dict[str, int]:
    row["score"] = row["id"] * 3 + row["size"]
    return row


def store(row: dict[str, int]) -> int:
    return row["score"]


def score(x: int) -> int:
    """What the three above make of x."""
    return x * 3 + x % 97


def digest(size: int) -> str:
    """CPU work that releases the GIL."""
    import hashlib

    return hashlib.sha256(bytes(size)).hexdigest()


def frames(_: Any) -> list[tuple[str, str]]:
    """(file, function) of every frame above, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return found
