"""Ctrl-C: once drains, twice stops, three times leaves at once; SIGTERM counts too. Ctrl-Z gives the terminal back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

INTERRUPTED = 130
"""Exit code: 128 + SIGINT, what a shell expects."""

_SHOW_CURSOR = "\x1b[?25h"


class Interrupts:
    """While it is entered, signals act on a run. count: interrupts so far.

    drain: stop taking inputs, say: tell the user; both safe in a signal handler. pause, resume: give the terminal back,
    take it again.
    """

    def __init__(
        self,
        drain: Callable[[], None],
        say: Callable[[str], None],
        *,
        pause: Callable[[], None] | None = None,
        resume: Callable[[], None] | None = None,
    ) -> None:
        self.count = 0
        self._drain = drain
        self._say = say
        self._pause = pause
        self._resume = resume
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `command &` in a script: whoever started us decides
                self._before[number] = signal.signal(number, self._interrupt)
        if self._pause is not None and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._drain()
            self._say(f"{_name(number)}: finishing what is in flight; once more stops at once")
        elif self.count == 2:
            # Raised in the main thread, wherever it waits: leaving the run's `with` cancels and reaps.
            raise KeyboardInterrupt
        else:
            # The children go with us: their lifelines end when this process does.
            if sys.stderr.isatty():
                write(_SHOW_CURSOR)
            os._exit(INTERRUPTED)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        assert self._pause is not None
        self._pause()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here, until fg
        signal.signal(signal.SIGTSTP, self._suspend)
        if self._resume is not None:
            self._resume()


def _name(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "asked to end"


def write(text: str) -> None:
    """Straight to stderr: sys.stderr may be in the middle of a write of the very thread a handler interrupted."""
    with contextlib.suppress(OSError):  # nobody reads it; the exit code tells
        os.write(2, text.encode("utf-8", "backslashreplace"))
