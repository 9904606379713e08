"""Progress where no terminal is: plain lines on stderr, few enough for a log."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from duodao.watch import wording

if TYPE_CHECKING:
    from duodao.telemetry import Snapshot

EVERY = 5.0
"""Seconds between two lines at least. A nightly job of eight hours then leaves some 6,000 lines, a short one two."""


class Lines:
    """Writes a line at the start, one every EVERY seconds at most, every notice, and the summary.

    Time is the snapshot's own, so nothing here waits and nothing here has a clock.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._next: float | None = None
        self._ended = False

    def __call__(self, snapshot: Snapshot) -> None:
        """Say what `snapshot` has to tell, if it is time."""
        if self._ended:
            return
        for notice in snapshot.notices:
            self._say(wording.clean(notice))
        if snapshot.state == "done":
            self._ended = True
            for line in wording.summary(snapshot):
                self._say(line)
        elif self._next is None:
            known = "" if snapshot.total is None else f" {wording.many(snapshot.total)}"
            self._say(f"started{known}: {' -> '.join(wording.clean(stage.name) for stage in snapshot.stages)}")
            self._next = snapshot.seconds + EVERY
        elif snapshot.seconds >= self._next:
            self._next = snapshot.seconds + EVERY
            waits = wording.waiting(snapshot)
            self._say(f"{wording.status(snapshot)}{'; ' if waits else ''}{waits}")

    def notify(self, text: str) -> None:
        """Say something now. Safe in a signal handler, where sys.stderr may be in the middle of a write."""
        with contextlib.suppress(OSError):
            os.write(2, f"duodao: {text}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Nothing to restore: a run that raised leaves the lines it wrote."""
        self._ended = True

    def _say(self, text: str) -> None:
        # A log that was closed (`2>&1 | head`) must not end the run that writes to it.
        stream = self._stream or sys.stderr
        try:
            stream.write(f"duodao: {text}\n")
            stream.flush()
        except (OSError, ValueError):
            self._ended = True
