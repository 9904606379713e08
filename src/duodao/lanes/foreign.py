"""What is done to a user's exception: its class may have overridden everything that is done to exceptions.

An error that escapes here would end a lane's thread, and whoever waits for that thread would wait for ever.
"""

from __future__ import annotations

from types import TracebackType

from duodao.pickling import said as said  # noqa: PLC0414  # the lanes have it from here

_CAUSE = BaseException.__dict__["__cause__"]
_DICT = BaseException.__dict__["__dict__"]


def set_cause(error: BaseException, cause: BaseException) -> None:
    """`error.__cause__ = cause`, past a `__setattr__` or property of its class."""
    _CAUSE.__set__(error, cause)


def set_traceback(error: BaseException, trace: TracebackType | None) -> None:
    """`error.__traceback__ = trace`, past a `__setattr__` or property of its class."""
    BaseException.with_traceback(error, trace)


def add_note(error: BaseException, text: str) -> None:
    """`error.add_note(text)`, also on a frozen dataclass. One that keeps something else in `__notes__` goes without."""
    notes = _DICT.__get__(error).setdefault("__notes__", [])
    if type(notes) is list:
        notes.append(text)


def is_a(error: BaseException | None, kinds: type | tuple[type, ...]) -> bool:
    """`isinstance`, without asking the exception for its `__class__`."""
    return issubclass(type(error), kinds)


def arguments(error: BaseException) -> str:
    """`repr` of the exception's arguments, with commas, whatever their own repr does."""
    try:
        return ", ".join(map(repr, error.args))
    except BaseException:
        return "..."
