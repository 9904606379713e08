"""Ctrl-C: the terminal sends it to the main process only, since ours lead groups of their own, so it is passed on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["came", "heed", "listen"]

AGAIN = 0.01
"""Seconds until a Ctrl-C comes again that came in the middle of an output."""
_told: list[Callable[[], object]] = []
_came = False


def listen(callback: Callable[[], object] | None = None) -> None:
    """Call `callback` in the handler when Ctrl-C comes, before KeyboardInterrupt is raised.

    Nothing happens where the program has a handler of its own, or in another thread than the main one.
    """
    if callback is not None and callback not in _told:
        _told.append(callback)
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        heed()


def heed() -> None:
    """In a child, which ignores it at first: raise KeyboardInterrupt."""
    signal.signal(signal.SIGINT, _handler)


def came() -> bool:
    """Has there been a Ctrl-C?"""
    return _came


def _handler(number: int, frame: FrameType | None) -> None:
    global _came  # noqa: PLW0603 - a fact of the whole process
    if _inside_output(frame):
        again = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))  # it ends sleeps
        again.daemon = True
        again.start()
        return
    _came = True
    for callback in _told:
        callback()
    signal.default_int_handler(number, frame)


def _inside_output(frame: FrameType | None) -> bool:
    """Is a message to the parent half written? What comes after one that was cut off could not be read."""
    while frame is not None:
        if frame.f_code.co_name == "send" and frame.f_globals.get("__name__") == "duodao.lanes.solo":
            return True
        frame = frame.f_back
    return False
