"""Which display a run gets: the terminal's, plain lines, or a notebook's. `progress=True` comes here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from duodao.telemetry import Snapshot


class Display(Protocol):
    """A progress callable that holds something (a terminal, a cell) and gives it back."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Show `snapshot`; the one whose state is "done" is the last."""
        ...

    def notify(self, text: str) -> None:
        """Tell the user something, now or with the next snapshot. Safe in a signal handler."""
        ...

    def close(self) -> None:
        """End without a last snapshot, as after an exception. Idempotent."""
        ...


def display() -> Display:
    """The display that fits where this program runs. Source: M46.

    A notebook kernel gets a bar in its cell, a terminal on stderr the live display, anything else (a pipe, a log,
    TERM=dumb) plain lines on stderr. stdout is never written.
    """
    if _in_notebook():
        from duodao.watch.notebook import Notebook

        return Notebook()
    if _on_terminal():
        from duodao.watch.terminal import Terminal

        return Terminal()
    from duodao.watch.lines import Lines

    return Lines()


def _in_notebook() -> bool:
    # A module that was never imported can't be the one that runs us; importing IPython to ask would cost 0.3 s.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
