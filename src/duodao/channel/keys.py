"""How a journal knows an input again: a digest of what the input is, not of where it stands.

Invariant: equal inputs give equal keys in every process, whatever the hash seed and however objects are shared inside.
That is why `pickle.dumps` is not enough: it writes sets in hash order, and writes an object that occurs twice once.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from typing import Any

from duodao.errors import NotPicklable, UsageError

Keying = Callable[[Any], Any] | str | None
"""None: the content. "mtime": the item is a path; path, size and time of change count. Else a function of the item."""

SIZE = 16
"""Bytes of a digest: at a thousand million inputs two of them meet with a probability of 1e-21."""

_SET, _FROZENSET = b"\x8f", b"\x91"


def checked(key: Any) -> Keying:
    """`key` if it is a valid one, else UsageError."""
    if key is None or key == "mtime" or callable(key):
        return key  # type: ignore[no-any-return]
    raise UsageError(f'key={key!r}: give None (content), "mtime" (items are paths) or a function of one item')


def described(key: Keying) -> str:
    """What the journal notes about `key`, to tell a run with another one."""
    return "content" if key is None else key if isinstance(key, str) else "function"


def digester(key: Keying) -> Callable[[Any], bytes]:
    """The function that turns an item into its digest. It raises NotPicklable, or what the user's function raises."""
    if key is None:
        return content
    if key == "mtime":
        return _stamped
    function = key
    assert callable(function)

    def chosen(item: Any) -> bytes:
        value = function(item)
        if isinstance(value, (str, bytes, int, tuple)):
            return content(value)
        raise UsageError(f"key= gave {value!r} for {_short(item)}: a str, bytes, int or tuple is needed")

    return chosen


def content(item: Any) -> bytes:
    """The digest of what an item is."""
    kind = type(item)
    if kind is str:
        data = b"s" + item.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        data = b"b" + item
    elif kind is int:
        data = b"i%d" % item
    else:
        data = _canonical(item)
    return hashlib.blake2b(data, digest_size=SIZE).digest()


def _stamped(item: Any) -> bytes:
    """A file's key. A file that can't be examined has one too: its call then says what is wrong."""
    try:
        path = os.fsencode(item)
    except TypeError as error:
        raise UsageError(f'key="mtime" needs inputs that are paths, not {_short(item)}') from error
    try:
        found = os.stat(path)
        stamp = b"%d\0%d\0" % (found.st_size, found.st_mtime_ns)
    except OSError:
        stamp = b"none\0"
    except ValueError as error:  # an embedded NUL: no path at all
        raise UsageError(f'key="mtime" needs inputs that are paths, not {_short(item)}') from error
    return hashlib.blake2b(b"f" + stamp + path, digest_size=SIZE).digest()


def _canonical(item: Any) -> bytes:
    """Bytes that are the same for equal items. An item with a set in it, or what may be one, takes the slow way."""
    try:
        data = _pickled(item, pickle.Pickler)
        if _SET in data or _FROZENSET in data:
            data = _pickled(item, _SetsInOrder)
    except Exception as error:
        raise NotPicklable(
            f"input {_short(item)} can't be pickled, so the journal can't know it again: "
            f"give it a key with key= ({error})",
            what="input",
        ) from error
    return data


class _SetsInOrder(pickle.Pickler):
    """Writes sets by the sorted bytes of their members. A subclass: 3.13.0 refuses the method on an instance."""

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is set or kind is frozenset:
            return kind.__name__, sorted(map(_canonical, obj))
        return None


def _pickled(item: Any, pickler: type[pickle.Pickler]) -> bytes:
    buffer = io.BytesIO()
    writer = pickler(buffer, 5)
    writer.fast = True  # no memo: what is written doesn't depend on which equal parts are one object
    try:
        writer.dump(item)
    except (ValueError, RecursionError):  # an item that contains itself: only the memo can write it
        buffer = io.BytesIO()
        pickler(buffer, 5).dump(item)
    return buffer.getvalue()


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 80 else f"{text[:77]}..."
