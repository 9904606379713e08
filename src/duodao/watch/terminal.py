"""Progress on a terminal: a few lines that redraw themselves, notices and the program's own prints above them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from duodao.watch import wording

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duodao.telemetry import Snapshot, StageSnapshot


class Terminal:
    """Draws each snapshot it is given and owns the terminal's state until `close` or the snapshot that says "done".

    No refresh thread: the engine calls when there is something new, so an idle display costs nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._ended = False
        self._last: Snapshot | None = None
        self._pending: list[str] = []

    def __call__(self, snapshot: Snapshot) -> None:
        """Draw `snapshot`; at its end the bar makes room for the summary."""
        if self._ended:
            return
        self._last = snapshot
        live = self._live or self._open()
        self._print(snapshot.notices, live)
        if snapshot.state == "done":
            self.close()
            for line in wording.summary(snapshot):
                self._console.print(Text(f"duodao: {line}"), soft_wrap=True)
        else:
            live.update(draw(snapshot), refresh=True)

    def notify(self, text: str) -> None:
        """Say something above the bar with the next snapshot. Safe in a signal handler: nothing is written here."""
        self._pending.append(text)

    def close(self) -> None:
        """Give the terminal back: cursor shown, bar gone, sys.stdout and sys.stderr as they were. Idempotent."""
        self._ended = True
        self._print((), self._live)
        self._stop()

    def pause(self) -> None:
        """Give the terminal back for a while (Ctrl-Z). `resume` draws again."""
        self._stop()

    def resume(self) -> None:
        """Draw again after `pause`."""
        if not self._ended and self._last is not None:
            self._open().update(draw(self._last), refresh=True)

    def _print(self, notices: Iterable[str], live: Live | None) -> None:
        pending, self._pending = self._pending, []
        console = live.console if live is not None else self._console
        for notice in (*pending, *notices):
            console.print(Text(f"duodao: {wording.clean(notice)}", style="yellow"), soft_wrap=True)

    def _open(self) -> Live:
        # stdout goes above the bar only where it is this terminal: data that was redirected must stay where it is.
        self._live = live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        live.start()
        return live

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def draw(snapshot: Snapshot) -> RenderableType:
    """The whole display: bar, totals, a line per stage, and the input that everyone waits for."""
    parts: list[RenderableType] = [_headline(snapshot), _totals(snapshot)]
    if snapshot.stages:
        parts.append(_stages(snapshot.stages))
    waits = wording.waiting(snapshot)
    if waits:
        parts.append(Text(waits, style="yellow", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _headline(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in (1, None, None, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    bar = ProgressBar(total=snapshot.total, completed=snapshot.done, pulse=snapshot.total is None)
    left = "" if snapshot.eta is None else f"ETA {wording.duration(snapshot.eta)}"
    grid.add_row(
        bar if snapshot.total is not None else Text(snapshot.state),
        Text(wording.progress(snapshot), style="bold"),
        Text(wording.rate(snapshot.rate), style="cyan"),
        Text(left),
    )
    return grid


def _totals(snapshot: Snapshot) -> Text:
    flying, failed, *rest = wording.counters(snapshot)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{flying}  ")
    text.append(f"{failed}  ", style="red" if snapshot.failed else "")
    for part in rest:
        text.append(f"{part}  ")
    text.append(wording.duration(snapshot.seconds))
    if snapshot.state == "draining":
        text.append("  draining: no new input is taken", style="yellow")
    return text


def _stages(stages: tuple[StageSnapshot, ...]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(5):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    for stage in stages:
        grid.add_row(
            Text(f"  {wording.clean(stage.name)}"),
            Text(wording.lane(stage), style="magenta"),
            Text(f"{wording.count(stage.in_flight)} in flight"),
            Text(f"{wording.count(stage.queued)} queued" if stage.queued else ""),
            Text(f"{wording.count(stage.failed)} failed" if stage.failed else "", style="red"),
        )
    return grid
