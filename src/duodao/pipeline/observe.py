"""Makes the snapshots that `progress=` shows, at most ten a second, and only when somebody looks."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING

from duodao.telemetry import Snapshot, Waiting

if TYPE_CHECKING:
    from duodao.pipeline.engine import Engine

EVERY = 0.1
RATE_OVER = 50


def snapshot(engine: Engine, rate: float = 0.0) -> Snapshot:
    """The run now. rate: items per second, 0 when unknown (then the mean since the start is taken)."""
    report, source = engine.ledger.report, engine.source
    seconds = engine.clock.now() - engine.started
    done = report.succeeded + report.failed
    rate = rate or (done / seconds if seconds > 0 else 0.0)
    total = source.total if source is not None else None
    if source is not None and source.ended:
        total = engine.read
    left = None if total is None else max(0, total - done)
    notices, engine.notices[:] = tuple(engine.notices), []
    return Snapshot(
        total=total, read=engine.read, done=done, failed=report.failed,
        retried=sum(node.report.retried for node in engine.nodes), skipped=report.skipped, seconds=seconds, rate=rate,
        eta=None if left is None or rate <= 0 else left / rate, waiting=_waiting(engine),
        stages=tuple(node.snapshot() for node in engine.nodes), state=engine.state, notices=notices,
    )  # fmt: skip


def _waiting(engine: Engine) -> Waiting | None:
    """The input that everyone waits for: the next in order, when others are done already."""
    order = engine.ledger.order
    if not order.held:
        return None
    number, now = order.passed, engine.clock.now()
    for node in engine.nodes:
        for batch, parcel in list(node.flying.items()):
            if number in batch.ids:
                try:
                    text = repr(parcel.inputs[batch.ids.index(number)])
                except Exception as broken:
                    text = f"<repr raises {type(broken).__name__}>"
                return Waiting(number, text[:200], now - parcel.started)
    return None


class Observer:
    """Calls `show` with a Snapshot: at once, then at most every 0.1 s while the run goes on, and once at its end."""

    def __init__(self, show: Callable[[Snapshot], object]) -> None:
        self._show = show
        self._next = 0.0
        self._past: collections.deque[tuple[float, int]] = collections.deque(maxlen=RATE_OVER)

    def due(self, now: float) -> float:
        """When the next snapshot is due."""
        return max(self._next, now)

    def tick(self, engine: Engine) -> None:
        """Show a snapshot if one is due."""
        now = engine.clock.now()
        if now >= self._next:
            self._next = now + EVERY
            self._show(snapshot(engine, self._rate(engine, now)))

    def _rate(self, engine: Engine, now: float) -> float:
        report = engine.ledger.report
        done = report.succeeded + report.failed - report.skipped
        self._past.append((now, done))
        then, before = self._past[0]
        return (done - before) / (now - then) if now > then else 0.0

    def end(self, engine: Engine) -> None:
        """The last snapshot; then the display is closed, also when the run has raised."""
        try:
            self._show(snapshot(engine, self._rate(engine, engine.clock.now())))
        finally:
            close = getattr(self._show, "close", None)
            if callable(close):
                close()
