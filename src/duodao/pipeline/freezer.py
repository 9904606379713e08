"""Functions that travel by value are pickled once, while nothing that they refer to changes."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from duodao.pipeline.apply import Frozen

_STEADY = (int, float, complex, str, bytes, type(None), type, ModuleType, BuiltinFunctionType)
"""What can't change, or is taken not to: of these the name's own binding is looked at, and that is all."""

Place = tuple[Any, str | None, Any]
"""Where a function looks: (globals, name, value found) or (cell, None, value found)."""

_MISSING = object()
_numbers = itertools.count()


class Freezer:
    """Makes functions ready for the way; those that workers can import are left as they are.

    A function that refers to what may change unseen (a list, an object) is pickled anew with each call, by the lane.
    """

    def __init__(self, dumps: Callable[[Any], bytes]) -> None:
        self._dumps = dumps
        self._known: weakref.WeakKeyDictionary[FunctionType, tuple[Frozen, list[Place]] | None]
        self._known = weakref.WeakKeyDictionary()

    def __call__(self, function: Any) -> Any:
        """`function`, or what unpickles to it. Raises what pickling it raises."""
        if type(function) is not FunctionType or not _goes_by_value(function):
            return function
        known = self._known.get(function)
        if known is None:
            if function in self._known:
                return function
            places = _steady(function)
            if places is None:
                self._known[function] = None
                return function
        elif all(_found(*place[:2]) is place[2] for place in known[1]):
            return known[0]
        else:
            places = _steady(function)
            if places is None:
                self._known[function] = None
                return function
        frozen = Frozen(f"{os.getpid()}-{next(_numbers)}", self._dumps(function))
        self._known[function] = frozen, places
        return frozen


def _goes_by_value(function: FunctionType) -> bool:
    return function.__module__ == "__main__" or "<" in function.__qualname__


def _steady(function: FunctionType) -> list[Place] | None:
    """All that the function, and those it refers to by value, look up; None when some of it may change unseen."""
    places: list[Place] = []
    seen = {function}
    todo = [function]
    while todo:
        one = todo.pop()
        if one.__dict__ or one.__kwdefaults__ or not all(_is_steady(value) for value in one.__defaults__ or ()):
            return None
        for place in _places(one):
            value = place[2]
            if type(value) is FunctionType:
                if _goes_by_value(value) and value not in seen:
                    seen.add(value)
                    todo.append(value)
            elif value is not _MISSING and not _is_steady(value):
                return None
            places.append(place)
    return places


def _is_steady(value: Any) -> bool:
    return isinstance(value, _STEADY) or (type(value) is tuple and all(map(_is_steady, value)))


def _places(function: FunctionType) -> Iterator[Place]:
    for cell in function.__closure__ or ():
        yield cell, None, _found(cell, None)
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__, name, function.__globals__[name]


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _found(where: dict[str, Any] | CellType, name: str | None) -> Any:
    if name is not None:
        assert isinstance(where, dict)
        return where.get(name, _MISSING)
    try:
        return where.cell_contents  # type: ignore[union-attr]
    except ValueError:  # it is empty
        return _MISSING
