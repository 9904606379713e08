"""`multiprocessing.Value`, `Array`, RawValue and RawArray: C values in memory that all processes of a program map.

Raw ones are objects of ctypes, as in the standard library, of a subclass that travels as a place in the arena. Value
and Array put a lock around each access.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any

from duodao import arena
from duodao.dropin.multiprocessing.synchronize import RLock

__all__ = ["Array", "RawArray", "RawValue", "Synchronized", "Value", "copy", "synchronized"]

_CODES: dict[Any, Any] = {
    "c": ctypes.c_char, "u": ctypes.c_wchar, "b": ctypes.c_byte, "B": ctypes.c_ubyte, "h": ctypes.c_short,
    "H": ctypes.c_ushort, "i": ctypes.c_int, "I": ctypes.c_uint, "l": ctypes.c_long, "L": ctypes.c_ulong,
    "q": ctypes.c_longlong, "Q": ctypes.c_ulonglong, "f": ctypes.c_float, "d": ctypes.c_double,
}  # fmt: skip
"""Source: https://docs.python.org/3/library/array.html, and c for a byte."""

# What raw objects share


@lru_cache(maxsize=1000)
def _placed(kind: Any) -> Any:
    """The subclass of a ctypes class whose objects lie in the arena."""
    return type(kind.__name__, (kind,), {"__reduce_ex__": _reduce, "__module__": __name__})


def _reduce(raw: Any, protocol: int) -> tuple[Any, ...]:
    del protocol
    raw._freed.detach()  # whoever gets it may use it longer than this one lives
    return _arrive, (_described(type(raw).__mro__[1]), raw._offset)


def _described(kind: Any) -> Any:
    """A class as it can be pickled: array classes have no name of their own."""
    return (_described(kind._type_), kind._length_) if issubclass(kind, ctypes.Array) else kind


def _meant(described: Any) -> Any:
    return _meant(described[0]) * described[1] if isinstance(described, tuple) else described


def _arrive(described: Any, offset: int) -> Any:
    arena.get().pin(offset)
    return _at(_meant(described), offset, owned=False)


def _at(kind: Any, offset: int, *, owned: bool) -> Any:
    raw = _placed(kind).from_buffer(arena.get().view(offset, max(ctypes.sizeof(kind), 1)))
    raw._offset = offset
    raw._freed = weakref.finalize(raw, arena.get().free, offset) if owned else weakref.finalize(raw, int)
    raw._freed.atexit = False
    return raw


def _new(kind: Any) -> Any:
    size = max(ctypes.sizeof(kind), 1)
    raw = _at(kind, arena.get().allocate(size), owned=True)
    ctypes.memset(ctypes.addressof(raw), 0, size)
    return raw


def RawValue(typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802  # here and below: the standard library's names
    """A ctypes object in shared memory, zeroed or made of `args`. It has no lock."""
    raw = _new(_CODES.get(typecode_or_type, typecode_or_type))
    raw.__init__(*args)
    return raw


def RawArray(typecode_or_type: Any, size_or_initializer: int | Sequence[Any]) -> Any:  # noqa: N802
    """A ctypes array in shared memory: of a size, zeroed, or with the values of a sequence. It has no lock."""
    kind = _CODES.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        if size_or_initializer < 0:
            raise ValueError("Array length must be non-negative")
        return _new(kind * size_or_initializer)
    raw = _new(kind * len(size_or_initializer))
    raw.__init__(*size_or_initializer)
    return raw


def copy(obj: Any) -> Any:
    """Another one with the same content."""
    kind = type(obj)
    raw = _new(kind.__mro__[1] if kind.__module__ == __name__ else kind)
    ctypes.memmove(ctypes.addressof(raw), ctypes.addressof(obj), ctypes.sizeof(kind))
    return raw


# With a lock


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:  # noqa: N802
    """A C value that processes share. lock: True, False for a RawValue, or the lock to use."""
    del ctx
    return _locked(RawValue(typecode_or_type, *args), lock)


def Array(  # noqa: N802
    typecode_or_type: Any, size_or_initializer: int | Sequence[Any], *, lock: Any = True, ctx: Any = None
) -> Any:
    """A C array that processes share. lock: True, False for a RawArray, or the lock to use."""
    del ctx
    return _locked(RawArray(typecode_or_type, size_or_initializer), lock)


def _locked(raw: Any, lock: Any) -> Any:
    if lock is False:
        return raw
    if lock in {True, None}:
        return synchronized(raw)
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(raw, lock)


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """A wrapper that takes `lock`, by default a new RLock, for each access."""
    del ctx
    lock = lock or RLock()
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock)
    kind: Any = type(obj)
    return _with_fields(kind)(obj, lock)


class SynchronizedBase:
    """A C object and its lock. `with value:` holds the lock for several accesses."""

    def __init__(self, obj: Any, lock: Any) -> None:
        self._obj = obj
        self._lock = lock

    def __reduce__(self) -> tuple[Any, ...]:
        return synchronized, (self._obj, self._lock)

    def get_obj(self) -> Any:
        """The ctypes object itself, without the lock."""
        return self._obj

    def get_lock(self) -> Any:
        """The lock that goes with it."""
        return self._lock

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Of its lock."""
        return self._lock.acquire(*args, **kwargs)

    def release(self) -> None:
        """Of its lock."""
        self._lock.release()

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


def _field(name: str) -> Any:
    def read(self: Any) -> Any:
        with self._lock:
            return getattr(self._obj, name)

    def write(self: Any, value: Any) -> None:
        with self._lock:
            setattr(self._obj, name, value)

    return property(read, write, doc=f"`{name}` of the C object, under the lock. `+=` is a read and a write.")


class Synchronized(SynchronizedBase):
    """A number. `v.value += 1` is a read and a write: under `with v.get_lock():`."""

    value = _field("value")


class SynchronizedArray(SynchronizedBase):
    """An array."""

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, where: Any) -> Any:
        with self._lock:
            return self._obj[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        with self._lock:
            self._obj[where] = value

    def __getslice__(self, start: int, stop: int) -> Any:
        return self[start:stop]

    def __setslice__(self, start: int, stop: int, values: Any) -> None:
        self[start:stop] = values

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


class SynchronizedString(SynchronizedArray):
    """An array of c_char."""

    value = _field("value")
    raw = _field("raw")


@lru_cache(maxsize=1000)
def _with_fields(kind: Any) -> Any:
    names = [entry[0] for each in kind.__mro__ for entry in each.__dict__.get("_fields_", ())]
    return type(f"Synchronized{kind.__name__}", (SynchronizedBase,), {name: _field(name) for name in names})
