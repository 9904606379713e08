"""What a pool's worker process runs. It is all that is imported there, so it imports little."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any


class Left:
    """The value of a call that ended with SystemExit and the like, which a lane would wrap: an executor hands it on."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.text = "".join(traceback.format_exception(error))


def apply(call: tuple[Any, tuple[Any, ...], dict[str, Any]], initializer: None = None) -> Any:
    """One call. initializer: what was opened per worker; it has no value."""
    del initializer
    function, args, kwargs = call
    try:
        return function(*args, **kwargs)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        return Left(error)


class Initializer:
    """A factory for `setup=`: calls the user's initializer in each worker, once."""

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args

    def __call__(self) -> None:
        self.function(*self.args)


class Frozen:
    """A function that travels by value: pickled once here, unpickled once in each worker of the pool."""

    def __init__(self, key: str, blob: bytes) -> None:
        self._key = key
        self._blob = blob[::-1]  # backwards: a lane that finds `__main__` in a pickle makes it again, by value

    def __reduce__(self) -> tuple[Any, ...]:
        return _thaw, (self._key, self._blob)


_thawed: dict[str, Any] = {}
_KEPT = 256


def _thaw(key: str, blob: bytes) -> Any:
    try:
        return _thawed[key]
    except KeyError:
        function = _thawed[key] = pickle.loads(blob[::-1])
    if len(_thawed) > _KEPT:
        del _thawed[next(iter(_thawed))]
    return function
