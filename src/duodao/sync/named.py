"""The name of a primitive: as given, or the place where it was made."""

from __future__ import annotations

import os
from typing import Any, NoReturn, TypeAlias

from duodao.errors import UsageError

Site: TypeAlias = "tuple[str, int]"
"""Where something was made: file and line."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def site(frame: Any) -> Site:
    """The first frame, from this one outwards, that is not Duodao's own."""
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def checked(name: str | None) -> str | None:
    """A name as it may be given. UsageError for anything but a text."""
    if name is None or isinstance(name, str):
        return name
    raise UsageError(f"name={name!r}: a text is needed")


class Named:
    """What has `_name` and `_site`."""

    __slots__ = ()

    @property
    def name(self: Any) -> str:
        """As given, else where it was made: "app.py:12"."""
        name: str | None = self._name
        return f"{os.path.basename(self._site[0])}:{self._site[1]}" if name is None else name

    @name.setter
    def name(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.describe()} belongs to one process and can't be sent or copied: for processes make it with "
            f"{type(self).__name__}(shared=True)"
        )

    def describe(self) -> str:
        """As messages name it: "Event 'ready'"."""
        return f"{type(self).__name__} {self.name!r}"
