"""Pickling by value: functions and classes that a worker can't import (lambdas, closures, `__main__`, notebook cells).

cloudpickle does it, but puts "<dynamic-code>" in place of a function's file; here the file stays, so that the traceback
of a call that failed in a worker shows the line of source.
"""

from __future__ import annotations

import io
import types
from collections import ChainMap
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pickle

PROTOCOL = 5


@lru_cache(maxsize=1)
def _pickler() -> type[Any]:
    """The class is made when it is first needed: cloudpickle takes 10 ms to import."""
    import cloudpickle

    by_value = cloudpickle.Pickler.dispatch_table[types.CodeType]

    def with_file(code: types.CodeType) -> tuple[Any, ...]:
        make, arguments = by_value(code)[:2]
        return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in arguments)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: with_file}, cloudpickle.Pickler.dispatch_table)

    return Pickler


def dumps(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """`value` as bytes that `pickle.loads` reads where cloudpickle is installed. Raises what pickling it raises."""
    file = io.BytesIO()
    _pickler()(file, protocol=PROTOCOL, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()
