"""Pickling for other processes: plain pickle where it will do, by value where the other side couldn't import.

cloudpickle alone costs five times as much on plain values, so pickle is tried first. What plain pickle would look up in
`__main__` (and lambdas, closures, notebook cells) goes by value, for another process's `__main__` is not the caller's.
cloudpickle puts "<dynamic-code>" in place of a function's file; here the file stays, so that the traceback of a call
that failed elsewhere shows the line of source.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from duodao.errors import NotPicklable

PROTOCOL = 5
Raised = (Exception, SystemExit, GeneratorExit)
"""What user code may raise while it is pickled in the caller's thread. KeyboardInterrupt is the caller's own Ctrl-C."""

Place = Callable[[pickle.PickleBuffer], Any]
"""pickle's buffer_callback; it may be called again for the same buffers after `place.reset()`."""

_MAIN = b"__main__"
_dumps, _modules = pickle.dumps, sys.modules


def dumps(value: Any, place: Place | None = None) -> bytes:
    """`value` pickled, by value where pickle can't or would refer to `__main__`. Raises what pickling it raises."""
    try:
        data = _dumps(value, 5) if place is None else _dumps(value, 5, buffer_callback=place)
    except Raised:
        pass
    else:
        if _MAIN not in data and ("cloudpickle" not in _modules or not _registered(data)):
            return data
    reset = getattr(place, "reset", None)
    if reset is not None:
        reset()
    return by_value(value, place)


def by_value(value: Any, place: Place | None = None) -> bytes:
    """`value` as bytes that `pickle.loads` reads where cloudpickle is installed. Raises what pickling it raises."""
    file = io.BytesIO()
    _by_value()(file, protocol=PROTOCOL, buffer_callback=place).dump(value)
    return file.getvalue()


def pieces(value: Any) -> list[bytes | bytearray | memoryview]:
    """As `dumps`, cut: large buffers in it (`bytes`, arrays) stand in the list as they are, not copied.

    The pieces, of which `len` is the size in bytes, one after the other are what `pickle.loads` reads.
    """
    found = _Pieces()
    try:
        pickle.Pickler(found, PROTOCOL).dump(value)
    except Raised:
        pass
    else:
        if not any(refers_to_absent(piece) for piece in found.list if type(piece) is bytes and len(piece) <= _FRAME):
            return found.flat()
    found = _Pieces()
    _by_value()(found, protocol=PROTOCOL).dump(value)
    return found.flat()


class _Pieces:
    """A file for a Pickler, which hands buffers above its frame size through in one piece."""

    def __init__(self) -> None:
        self.list: list[Any] = []
        self.write = self.list.append

    def flat(self) -> list[Any]:
        """All as bytes and views of bytes, whatever the shape of an array."""
        return [piece.raw() if type(piece) is pickle.PickleBuffer else piece for piece in self.list]


_FRAME = 131072
"""Bytes. A pickler's own pieces are frames of some 64 KB; a longer one is data, in which no name is looked for."""


def refers_to_absent(data: bytes) -> bool:
    """Does a pickle look something up in a module that a worker does not have? A name in a text is taken for one."""
    return _MAIN in data or _registered(data)


def _registered(data: bytes) -> bool:
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return any(name.encode() in data for name in registered)


@lru_cache(maxsize=1)
def _by_value() -> type[Any]:
    """The class is made when it is first needed: cloudpickle takes 10 ms to import."""
    import cloudpickle

    code_by_value = cloudpickle.Pickler.dispatch_table[types.CodeType]

    def with_file(code: types.CodeType) -> tuple[Any, ...]:
        make, arguments = code_by_value(code)[:2]
        return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in arguments)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: with_file}, cloudpickle.Pickler.dispatch_table)

        def reducer_override(self, obj: Any) -> Any:
            """C structures of `__main__`: the descriptors of their fields can't be pickled, and needn't be."""
            if isinstance(obj, type) and _is_local_structure(obj):
                return _structure, _parts_of(obj)
            return super().reducer_override(obj)

    return Pickler


def _is_local_structure(kind: type) -> bool:
    ctypes = sys.modules.get("ctypes")
    local = kind.__module__ == "__main__" or "<locals>" in kind.__qualname__
    return local and ctypes is not None and isinstance(kind, (type(ctypes.Structure), type(ctypes.Union)))


def _parts_of(kind: type) -> tuple[Any, ...]:
    made = {field[0] for field in vars(kind).get("_fields_", ())}
    body = {
        name: value
        for name, value in vars(kind).items()
        if name not in made and not isinstance(value, types.GetSetDescriptorType)
    }
    return kind.__name__, kind.__bases__, body


def _structure(name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    made: type = type(bases[0])(name, bases, body)
    return made


def not_picklable(value: Any, what: str, error: BaseException) -> NotPicklable:
    """The error for an input, a result or a function that can't travel."""
    wrapped = NotPicklable(f"the {what} {shown(value)} can't be pickled ({said(error)})", what)
    wrapped.__cause__ = error
    return wrapped


def shown(value: Any, limit: int = 200) -> str:
    """`repr(value)` in at most `limit` characters, whatever the value's own repr does."""
    if isinstance(value, str | bytes | bytearray) and len(value) > limit:
        value = value[:limit]  # repr of a gigabyte takes a gigabyte
    try:
        text = repr(value)
    except Raised:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def said(error: BaseException) -> str:
    """The exception's class and text, whatever its own `__str__` does."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException as broken:
        return f"{kind}, whose text can't be shown: that raised {type(broken).__name__}"
    return f"{kind}: {text}" if text else kind
