"""Values that can't be changed in place: what Shared gives out.

A change in place would be made to this process's copy and be lost in silence; here it raises TypeError and says what to
do. Containers and arrays become subclasses of their own types, objects get a subclass of their own class whose
attributes can't be set: isinstance holds, `==` and json see no difference. `.thaw()`, copy.copy and copy.deepcopy give
an ordinary copy; pickled, it arrives as an ordinary one.

C code that writes into a list past its methods (`list.append(value, x)`, `heapq.heappush(value, x)`, the state of a
random.Random) is not stopped.
"""

from __future__ import annotations

import copyreg
import datetime as dt
import decimal
import enum
import fractions
import functools
import pathlib
import re
import sys
import types
import uuid
from typing import Any, NoReturn

ATOMS: frozenset[type] = frozenset((
    int, float, complex, bool, str, bytes, type(None), range, slice, type(...), type(NotImplemented),
    dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone, decimal.Decimal,
    fractions.Fraction, uuid.UUID, re.Pattern, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.WindowsPath,
))  # fmt: skip
"""Types whose values nobody can change."""

HANDLE = "_duodao_handle"
"""Marks classes whose objects stand for something shared (a lock, a queue, a Shared): they stay as they are."""

HOW = "take a copy with .thaw(), change that, and assign it; or use state.update_key(key, function) for one atomic step"


class Unfreezable(TypeError):
    """A value that can't be made read-only, and why."""


def _refuse(self: object, *_args: object, **_options: object) -> NoReturn:
    kind = type(self)
    name = getattr(kind, "_frozen", kind.__name__)
    raise TypeError(f"this {name} was read from a Shared and is read-only, since a change would be lost: {HOW}")


class FrozenDict(dict[Any, Any]):
    """A dict to read."""

    _frozen = "dict"
    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def thaw(self) -> dict[Any, Any]:
        """An ordinary copy, all that is in it too."""
        return {key: thaw(value) for key, value in self.items()}

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, _memo: object) -> dict[Any, Any]:
        return self.thaw()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return dict, (dict(self),)


class FrozenList(list[Any]):
    """A list to read."""

    _frozen = "list"
    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = insert = pop = remove = reverse = (
        sort
    ) = _refuse

    def thaw(self) -> list[Any]:
        """An ordinary copy, all that is in it too."""
        return [thaw(value) for value in self]

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, _memo: object) -> list[Any]:
        return self.thaw()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return list, (list(self),)


class FrozenSet(set[Any]):
    """A set to read. Unlike a frozenset it is a set, and has no hash."""

    _frozen = "set"
    __slots__ = ()
    __iand__ = __ior__ = __isub__ = __ixor__ = add = clear = difference_update = discard = intersection_update = _refuse
    pop = remove = symmetric_difference_update = update = _refuse

    def thaw(self) -> set[Any]:
        """An ordinary copy."""
        return set(map(thaw, self))

    def __copy__(self) -> set[Any]:
        return set(self)

    def __deepcopy__(self, _memo: object) -> set[Any]:
        return self.thaw()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return set, (set(self),)


class FrozenBytearray(bytearray):
    """A bytearray to read."""

    _frozen = "bytearray"
    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = insert = pop = remove = reverse = (
        _refuse
    )

    def thaw(self) -> bytearray:
        """An ordinary copy."""
        return bytearray(self)

    def __copy__(self) -> bytearray:
        return bytearray(self)

    def __deepcopy__(self, _memo: object) -> bytearray:
        return bytearray(self)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return bytearray, (bytes(self),)


def freeze(value: Any) -> Any:
    """`value`, which nobody else has, made read-only with all that is in it; its objects are changed in place.

    Unfreezable: something in it can't be.
    """
    return _Freezing().freeze(value)


class _Freezing:
    """One value being frozen. done: by id, what was made of what, for values that are in there more than once."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, Any]] = {}

    def freeze(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        known = self.done.get(id(value))
        if known is not None:
            return known[1]
        made = _CONTAINERS.get(kind)
        if made is not None:
            return made(self, value)
        if kind is tuple or kind is frozenset:
            return self._keep(value, kind(map(self.freeze, value)))
        if isinstance(value, enum.Enum | type) or kind.__module__ == "zoneinfo" or hasattr(kind, HANDLE):
            return value
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic | numpy.dtype):
            return value
        if numpy is not None and kind is numpy.ndarray:
            return self._keep(value, _array(numpy, value))
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._keep(value, tuple.__new__(kind, map(self.freeze, value)))
        return self._object(value)

    def _keep(self, value: Any, made: Any) -> Any:
        self.done[id(value)] = value, made
        return made

    def _dict(self, value: dict[Any, Any]) -> FrozenDict:
        made = self._keep(value, FrozenDict())
        dict.update(made, {self.freeze(key): self.freeze(each) for key, each in value.items()})
        return made  # type: ignore[no-any-return]

    def _list(self, value: list[Any]) -> FrozenList:
        made = self._keep(value, FrozenList())
        list.extend(made, map(self.freeze, value))
        return made  # type: ignore[no-any-return]

    def _set(self, value: set[Any]) -> FrozenSet:
        return self._keep(value, FrozenSet(map(self.freeze, value)))  # type: ignore[no-any-return]

    def _bytes(self, value: bytearray) -> FrozenBytearray:
        return self._keep(value, FrozenBytearray(value))  # type: ignore[no-any-return]

    def _object(self, value: Any) -> Any:
        kind: type = type(value)
        cls: Any = kind
        if isinstance(value, dict | list | set | bytearray):
            raise Unfreezable(f"a {kind.__qualname__} can't be made read-only; store {_base(kind)}(value)")
        if not hasattr(value, "__dict__") and not _slots(kind):
            raise Unfreezable(f"a {kind.__module__}.{kind.__qualname__} can't be made read-only; store what is in it")
        try:
            frozen = _frozen_class(cls)
            self.done[id(value)] = value, value
            for name, each in attributes(value).items():
                _set(value, name, self.freeze(each))
            object.__setattr__(value, "__class__", frozen)
        except Unfreezable:
            raise
        except (TypeError, AttributeError) as error:
            raise Unfreezable(f"a {kind.__module__}.{kind.__qualname__} can't be made read-only ({error})") from None
        return value


_CONTAINERS: dict[type, Any] = {
    dict: _Freezing._dict, list: _Freezing._list, set: _Freezing._set, bytearray: _Freezing._bytes,
}  # fmt: skip


def _base(kind: type) -> str:
    return next(base.__name__ for base in kind.__mro__ if base in (dict, list, set, bytearray))


def _slots(kind: type) -> list[str]:
    """The attributes that its classes keep outside of a __dict__."""
    return [
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType) and base.__module__ != "builtins"
    ]


def attributes(value: Any) -> dict[str, Any]:
    """All attributes of an object itself, wherever they are kept."""
    found = {}
    for name in _slots(type(value)):
        try:
            found[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    return {**found, **_dict_of(value)}


def _dict_of(value: Any) -> dict[str, Any]:
    for base in type(value).__mro__:
        getter = vars(base).get("__dict__")
        if isinstance(getter, types.GetSetDescriptorType):
            return getter.__get__(value)  # type: ignore[no-any-return]
    return {}


def _set(value: Any, name: str, new: Any) -> None:
    if name in (inside := _dict_of(value)):
        inside[name] = new
    else:
        object.__setattr__(value, name, new)


@functools.lru_cache(maxsize=1024)
def _frozen_class(kind: Any) -> type:
    def original(_self: object) -> Any:
        return kind

    def thawed(self: Any) -> Any:
        return thaw(self)

    def shallow(self: Any) -> Any:
        made = copyreg.__newobj__(kind)  # type: ignore[attr-defined]
        for name, each in attributes(self).items():
            object.__setattr__(made, name, each)
        return made

    body: dict[str, Any] = {
        "__slots__": (), "_frozen": kind.__qualname__, "__module__": kind.__module__, "__qualname__": kind.__qualname__,
        "__setattr__": _refuse, "__delattr__": _refuse, "__class__": property(original),
        "__deepcopy__": lambda self, _memo: thaw(self), "__copy__": shallow,
        "__reduce_ex__": lambda self, protocol: shallow(self).__reduce_ex__(protocol),
    }  # fmt: skip
    for name in ("__setitem__", "__delitem__", "__iadd__", "__isub__", "__imul__", "__ior__", "__iand__"):
        if hasattr(kind, name):
            body[name] = _refuse
    if not hasattr(kind, "thaw"):
        body["thaw"] = thawed
    if kind.__hash__ is not None and "__eq__" in vars(kind):
        body["__hash__"] = kind.__hash__
    if any("__dict__" in vars(base) for base in kind.__mro__):
        body["__dict__"] = property(lambda self: types.MappingProxyType(_dict_of(self)))
    try:
        found: type = type(kind)(kind.__name__, (kind,), body)
    except TypeError as error:
        raise Unfreezable(f"a {kind.__module__}.{kind.__qualname__} can't be made read-only ({error})") from None
    return found


def _array(numpy: Any, value: Any) -> Any:
    if value.dtype.hasobject:
        raise Unfreezable("a numpy array of objects can't be made read-only; store a list")
    made = value.view(_array_class(numpy))
    made.setflags(write=False)
    return made


@functools.lru_cache(maxsize=1)
def _array_class(numpy: Any) -> Any:
    def guarded(name: str) -> Any:
        plain = getattr(numpy.ndarray, name)

        @functools.wraps(plain)
        def method(self: Any, *args: Any, **options: Any) -> Any:
            if not self.flags.writeable:
                _refuse(self)
            return plain(self, *args, **options)

        return method

    def setflags(self: Any, write: Any = None, align: Any = None, uic: Any = None) -> None:
        if write and not self.flags.writeable:
            _refuse(self)
        numpy.ndarray.setflags(self, write, align, uic)

    def plain(self: Any) -> Any:
        return numpy.array(self)

    def wrap(_self: Any, array: Any, _context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else numpy.asarray(array)

    names = [
        name
        for name in (
            "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__",
            "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__imatmul__", "fill", "sort", "put",
            "partition", "resize", "setfield", "itemset", "byteswap",
        )
        if hasattr(numpy.ndarray, name) and name != "byteswap"
    ]  # fmt: skip
    body = {
        **{name: guarded(name) for name in names}, "_frozen": "array", "setflags": setflags, "__array_wrap__": wrap,
        "thaw": plain, "copy": lambda self, order="C": numpy.array(self, order=order),
        "__copy__": plain, "__deepcopy__": lambda self, _memo: plain(self),
        "__reduce_ex__": lambda self, protocol: numpy.asarray(self).__reduce_ex__(protocol),
    }  # fmt: skip
    return type("ndarray", (numpy.ndarray,), body)


def thaw(value: Any) -> Any:
    """An ordinary copy of a frozen value, and of all that is in it; anything else as it is."""
    kind = type(value)
    if kind in _THAWED or (hasattr(kind, "_frozen") and kind.__name__ == "ndarray"):
        return value.thaw()
    if kind is tuple or kind is frozenset:
        return kind(map(thaw, value))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return tuple.__new__(kind, map(thaw, value))
    if "_frozen" not in vars(kind):
        return value
    original = kind.__mro__[1]
    made = copyreg.__newobj__(original)  # type: ignore[attr-defined]
    for name, each in attributes(value).items():
        object.__setattr__(made, name, thaw(each))
    return made


_THAWED = frozenset((FrozenDict, FrozenList, FrozenSet, FrozenBytearray))
