"""`multiprocessing.Value` and `Array`: C values in memory that all our processes map, each with its lock."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.sharedctypes import typecode_to_type
from types import TracebackType
from typing import Any

from duodao import arena
from duodao.sync import RLock


class _Shared:
    """A C object in the arena. Its memory is freed with its maker's handle, unless that was given to another task."""

    def __init__(self, kind: Any, count: int | None, lock: Any) -> None:
        self._kind = kind
        self._count = count
        self._lock = lock
        self._size = max(ctypes.sizeof(self._type()), 1)
        self._offset = arena.get().allocate(self._size)
        self._freed = weakref.finalize(self, arena.get().free, self._offset)
        self._freed.atexit = False
        self._place()

    def _type(self) -> Any:
        return self._kind if self._count is None else self._kind * self._count

    def _place(self) -> None:
        self._object = self._type().from_buffer(arena.get().view(self._offset, self._size))

    def __getstate__(self) -> dict[str, Any]:
        self._freed.detach()  # whoever gets it may use it longer than this handle lives
        return {name: value for name, value in self.__dict__.items() if name not in {"_object", "_freed"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        arena.get().pin(self._offset)
        self._place()

    def get_obj(self) -> Any:
        """The ctypes object itself, without the lock."""
        return self._object

    def get_lock(self) -> Any:
        """The lock that goes with it. AttributeError when it was made with lock=False."""
        if self._lock is None:
            raise AttributeError("this value was made with lock=False: it has no lock")
        return self._lock

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        """Of its lock."""
        return bool(self.get_lock().acquire(*args, **kwargs))

    def release(self) -> None:
        """Of its lock."""
        self.get_lock().release()

    def __enter__(self) -> bool:
        return bool(self.get_lock().__enter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.get_lock().__exit__(kind, error, trace)


class _Number(_Shared):
    @property
    def value(self) -> Any:
        """What it holds. `v.value += 1` is a read and a write: under `with v.get_lock():`."""
        return self._object.value

    @value.setter
    def value(self, value: Any) -> None:
        self._object.value = value

    def __repr__(self) -> str:
        return f"<Value {self._kind.__name__} {self.value!r}>"


class _Row(_Shared):
    def __len__(self) -> int:
        return len(self._object)

    def __getitem__(self, where: Any) -> Any:
        return self._object[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        self._object[where] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._object)

    def __getslice__(self, start: int, stop: int) -> Any:
        return self._object[start:stop]

    @property
    def value(self) -> Any:
        """Of an array of c_char: its text up to the first NUL."""
        return self._object.value

    @value.setter
    def value(self, value: Any) -> None:
        self._object.value = value

    @property
    def raw(self) -> Any:
        """Of an array of c_char: all its bytes."""
        return self._object.raw

    @raw.setter
    def raw(self, value: Any) -> None:
        self._object.raw = value

    def __repr__(self) -> str:
        return f"<Array {self._kind.__name__} {list(self._object)!r}>"


def Value(typecode_or_type: Any, *args: Any, lock: Any = True) -> _Number:  # noqa: N802  # the standard library's name
    """A C value that processes share. lock: True, False, or the lock to use."""
    made = _Number(typecode_to_type.get(typecode_or_type, typecode_or_type), None, _lock(lock))
    made.get_obj().__init__(*args)
    return made


def Array(typecode_or_type: Any, size_or_initializer: int | Sequence[Any], *, lock: Any = True) -> _Row:  # noqa: N802
    """A C array that processes share: of a size, zeroed, or with the values of a sequence."""
    kind = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        if size_or_initializer < 0:
            raise ValueError("Array length must be non-negative")
        made = _Row(kind, size_or_initializer, _lock(lock))
        ctypes.memset(ctypes.addressof(made.get_obj()), 0, ctypes.sizeof(made.get_obj()))
        return made
    made = _Row(kind, len(size_or_initializer), _lock(lock))
    made.get_obj().__init__(*size_or_initializer)
    return made


def RawValue(typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802
    """A value without a lock."""
    return Value(typecode_or_type, *args, lock=False)


def RawArray(typecode_or_type: Any, size_or_initializer: int | Sequence[Any]) -> Any:  # noqa: N802
    """An array without a lock."""
    return Array(typecode_or_type, size_or_initializer, lock=False)


def _lock(lock: Any) -> Any:
    if lock is True or lock is None:
        return RLock(shared=True)
    if lock is False:
        return None
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return lock
