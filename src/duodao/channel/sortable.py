"""A priority as bytes that sort as the priorities do: for what keeps items where Python can't compare them."""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

_ORDER = struct.Struct(">Q")
_LARGEST = int(sys.float_info.max)
_TOP = (1 << 64) - 1


def sort_key(item: Any) -> bytes:
    """The bytes by which an item of a priority queue is sorted: of a pair its first half, else the item itself.

    Numbers come before texts, these before bytes, these before tuples and lists, which are compared item by item; where
    one of these is of another type, arrival decides. TypeError: the priority itself is of another type.
    """
    priority = item[0] if isinstance(item, tuple) and len(item) == 2 else item
    key = _key(priority)
    if key is None:
        raise TypeError(
            f"a {type(priority).__name__} can't be a priority in a file: use a number, text, bytes or a tuple of these"
        )
    return key


def _key(value: Any) -> bytes | None:
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return b"\x20" + _ended(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return b"\x30" + _ended(value)
    if isinstance(value, tuple | list):
        parts = [_key(each) for each in value]
        if None in parts:
            parts = [*parts[: parts.index(None)], b"\xff"]
        return b"\x40" + b"".join(part or b"" for part in parts) + b"\x00"
    return None


def _ended(data: bytes) -> bytes:
    return data.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def _number(value: float) -> bytes:
    """The largest float that isn't above it, then what is missing: an int may lie between two floats."""
    if value == -math.inf and isinstance(value, float):
        return b"\x0f"  # no beginning of another number: inside a tuple more bytes follow
    if isinstance(value, float):
        return b"\x11" + _float(value) + _int(0)
    if value < -_LARGEST:
        return b"\x10\x01" + _int(value + _LARGEST)
    below = float(min(value, _LARGEST))
    if int(below) > value:
        below = math.nextafter(below, -math.inf)
    return b"\x11" + _float(below) + _int(value - int(below))


def _float(value: float) -> bytes:
    (bits,) = _ORDER.unpack(struct.pack(">d", value + 0.0))  # -0.0 is 0.0
    return _ORDER.pack(bits ^ _TOP if bits >> 63 else bits | 1 << 63)


def _int(value: int) -> bytes:
    size = (abs(value).bit_length() + 7) // 8
    data = abs(value).to_bytes(size, "big")
    if value >= 0:
        return b"\x01" + struct.pack(">I", size) + data
    return b"\x00" + struct.pack(">I", 0xFFFFFFFF - size) + bytes(255 - byte for byte in data)
