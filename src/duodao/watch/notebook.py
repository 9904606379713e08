"""Progress in a notebook cell: one output that is updated in place. Needs IPython only, no widget extension."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from IPython.display import display

from duodao.watch import wording

if TYPE_CHECKING:
    from duodao.telemetry import Snapshot

EVERY = 0.25
"""Seconds between two updates at least: every update is a message that the notebook's server must carry."""

KEEP = 5
"""Notices that stay in view."""


class Bar:
    """What the cell shows: HTML where the front end can, the same in plain text where it can't."""

    def __init__(self, snapshot: Snapshot, notices: list[str]) -> None:
        self._snapshot = snapshot
        self._notices = notices

    def __repr__(self) -> str:
        lines = wording.summary(self._snapshot) if self._snapshot.state == "done" else [wording.status(self._snapshot)]
        return "\n".join([*lines, *filter(None, [wording.waiting(self._snapshot)]), *self._notices])

    def _repr_html_(self) -> str:
        total = self._snapshot.total
        share = f'value="{self._snapshot.done}" max="{max(total, 1)}"' if total is not None else ""
        text = "<br>".join(escape(line) for line in repr(self).split("\n"))
        return f'<div><progress style="width:100%" {share}></progress><br><small>{text}</small></div>'


class Notebook:
    """Updates one output of the running cell, at most every EVERY seconds of the run and at its end."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._next = 0.0
        self._notices: list[str] = []
        self._last: Snapshot | None = None
        self._ended = False

    def __call__(self, snapshot: Snapshot) -> None:
        """Show `snapshot`, if it is time."""
        if self._ended:
            return
        self._last = snapshot
        self._notices = [*self._notices, *map(wording.clean, snapshot.notices)][-KEEP:]
        done = snapshot.state == "done"
        if not (done or snapshot.notices or snapshot.seconds >= self._next):
            return
        self._next = snapshot.seconds + EVERY
        self._show(snapshot)
        self._ended = done

    def notify(self, text: str) -> None:
        """Say something under the bar with the next update."""
        self._notices = [*self._notices, wording.clean(text)][-KEEP:]

    def close(self) -> None:
        """The cell keeps the state it reached; a run that raised is shown as it was then. Idempotent."""
        if not self._ended and self._last is not None:
            self._show(self._last)
        self._ended = True

    def _show(self, snapshot: Snapshot) -> None:
        bar = Bar(snapshot, self._notices)
        if self._handle is None:
            self._handle = display(bar, display_id=True)  # type: ignore[no-untyped-call]  # IPython has no types here
        else:
            self._handle.update(bar)
