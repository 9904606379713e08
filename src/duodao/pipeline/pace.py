"""How many queued calls may travel to a worker together: those known to be short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SHORT = 0.001
"""Seconds. A call that is expected to take longer travels alone, so that nothing waits behind it."""
TOGETHER = 0.005
"""Seconds of calls in one batch."""
MOST = 256
"""Calls in one batch."""
_KNOWN = 512


def key(function: Any) -> Any:
    """What a function is remembered by: never the function itself, which may hold much.

    A code object's number may come again for another: that function is then once taken for a short or a long one.
    """
    while True:
        inner = getattr(function, "func", None)  # functools.partial
        if inner is None or inner is function:
            break
        function = inner
    code = getattr(function, "__code__", None)
    if code is not None:
        return id(code)
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", type(function).__qualname__)


class Pace:
    """Seconds per call, by function. A long call counts at once, a short one slowly."""

    def __init__(self) -> None:
        self._seconds: dict[Any, float] = {}

    def note(self, function: Callable[..., Any], seconds: float) -> None:
        """A call took this long."""
        name = key(function)
        known = self._seconds.get(name)
        if known is None or seconds > SHORT:
            if len(self._seconds) >= _KNOWN:
                del self._seconds[next(iter(self._seconds))]
            self._seconds[name] = seconds
        else:
            self._seconds[name] = known + (seconds - known) * 0.2

    def of(self, function: Callable[..., Any]) -> float:
        """Seconds that a call is expected to take; SHORT for one not known."""
        return self._seconds.get(key(function), SHORT)
