"""An item as bytes and back, in two forms, and several of them as the body of one frame.

PICKLED is for tasks of our own program: what pickle and cloudpickle can do. PLAIN is all that a stranger may say or
hear: None, bool, int, float, str, bytes, list, tuple and dict, as JSON, in which any language can speak:

    null true 17 1.5 "text" [...]      as they are
    {"b": "aGk="}                      bytes, in base64
    {"t": [...]}                       a tuple
    {"d": [[key, value], ...]}         a dict
    {"i": "-ff"}                       an int beyond 64 bits, in hexadecimal
    {"f": "nan"}                       a float that JSON doesn't have: nan, inf, -inf

Invariant: reading a plain item makes values of these types only and calls nothing of the user's.
"""

from __future__ import annotations

import base64
import json
import math
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from duodao import pickling
from duodao.errors import NotPicklable, PeerLost

PLAIN, PICKLED = 0, 1
Parcel: TypeAlias = "tuple[int, bytes]"
"""An item as it lies in a queue: its form, and its bytes."""

DEEPEST = 100
"""Levels of lists, tuples and dicts inside each other that a plain item may have."""
_SMALL = 1 << 63
_SIZE = struct.Struct("<IB")
_TYPES = "None, bool, int, float, str, bytes, list, tuple and dict"


def pack(item: Any) -> Parcel:
    """An item for a task of our own program. NotPicklable: it can't travel."""
    try:
        return PICKLED, pickling.dumps(item)
    except pickling.Raised as error:
        raise pickling.not_picklable(item, "item", error) from error


def pack_plain(item: Any) -> Parcel:
    """An item for another program. NotPicklable: it holds more than plain values."""
    try:
        return PLAIN, json.dumps(_tagged(item, 0), allow_nan=False, separators=(",", ":")).encode()
    except (_NotPlainError, RecursionError) as error:
        raise NotPicklable(
            f"the item {pickling.shown(item)} can't go to or come from another program: {error}. What passes between "
            f"programs is {_TYPES}; more than that passes between tasks that got this queue from its maker", "item"
        ) from error  # fmt: skip


def unpack(parcel: Parcel) -> Any:
    """The item. For what our own program has written: raises what unpickling it raises."""
    form, blob = parcel
    return pickle.loads(blob) if form == PICKLED else unpack_plain(blob)


def unpack_plain(blob: bytes | memoryview) -> Any:
    """The item. PeerLost: it isn't one in the plain form."""
    try:
        return _untagged(json.loads(bytes(blob).decode()), 0)
    except (ValueError, TypeError, KeyError, RecursionError, _NotPlainError) as error:
        raise PeerLost(f"the other side sent an item that is not one of plain values: {pickling.said(error)}") from None


class _NotPlainError(Exception):
    """Why a value isn't plain."""


def _tagged(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SMALL <= value < _SMALL else {"i": f"{value:x}"}
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind is bytes:
        return {"b": base64.b64encode(value).decode("ascii")}
    if depth >= DEEPEST:
        raise _NotPlainError(f"it has more than {DEEPEST} levels")
    if kind is list:
        return [_tagged(each, depth + 1) for each in value]
    if kind is tuple:
        return {"t": [_tagged(each, depth + 1) for each in value]}
    if kind is dict:
        return {"d": [[_tagged(key, depth + 1), _tagged(each, depth + 1)] for key, each in value.items()]}
    raise _NotPlainError(f"a {kind.__qualname__} is not a plain value")


def _untagged(value: Any, depth: int) -> Any:
    if not isinstance(value, list | dict):
        return value
    if depth > DEEPEST:
        raise _NotPlainError(f"it has more than {DEEPEST} levels")
    if isinstance(value, list):
        return [_untagged(each, depth + 1) for each in value]
    if len(value) != 1:
        raise _NotPlainError("it has an object without its one tag")
    ((tag, what),) = value.items()
    return _READ[tag](what, depth)


def _pairs(what: Any, depth: int) -> dict[Any, Any]:
    return {_untagged(key, depth + 1): _untagged(each, depth + 1) for key, each in what}


def _items(what: Any, depth: int) -> tuple[Any, ...]:
    return tuple([_untagged(each, depth + 1) for each in what])


_READ: dict[str, Callable[[Any, int], Any]] = {
    "b": lambda what, _: base64.b64decode(what, validate=True),
    "t": _items,
    "d": _pairs,
    "i": lambda what, _: int(what, 16),
    "f": lambda what, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[what],
}


def join(parcels: Sequence[Parcel]) -> list[bytes]:
    """Parcels as the pieces of a frame's body: their sizes, their forms, their bytes; long ones are not copied."""
    if len(parcels) == 1:
        form, blob = parcels[0]
        head = _SIZE.pack(len(blob), form)
        return [head + blob] if len(blob) < 65536 else [head, blob]
    blobs = [blob for _, blob in parcels]
    head = struct.pack(f"<{len(blobs)}I", *map(len, blobs)) + bytes([form for form, _ in parcels])
    return [head, *blobs] if max(map(len, blobs), default=0) >= 65536 else [head + b"".join(blobs)]


def split(body: memoryview, count: int) -> list[Parcel]:
    """The parcels of a frame's body. PeerLost: it isn't one of `count` parcels."""
    try:
        sizes = struct.unpack_from(f"<{count}I", body)
        forms = body[4 * count : 5 * count]
        at = 5 * count
    except (struct.error, OverflowError):
        sizes, forms, at = (), body[:0], -1
    if not sizes or at + sum(sizes) != len(body) or max(forms) > PICKLED:
        raise PeerLost(f"the other side sent a frame that doesn't hold the {count} items it should")
    found = []
    for size, form in zip(sizes, forms, strict=True):
        found.append((form, bytes(body[at : at + size])))
        at += size
    return found
