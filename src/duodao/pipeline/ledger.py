"""What became of every input: counts, the journal, the order of emission, and what the caller sees of it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from duodao.errors import TooManyFailures
from duodao.outcome import Attempt, Outcome, Report
from duodao.pipeline.window import GAP, Failed, Order

KEPT_FAILURES = 100
SHARE_AFTER = 20


class Keeper(Protocol):
    """What the ledger needs of a journal (channel/journal.py has it)."""

    def record(
        self, outcomes: list[Outcome[Any]], joined: dict[int, list[int]] | None = None
    ) -> list[tuple[int, BaseException]]:
        """Queue outcomes for the next commit; those that can't be stored come back with the reason."""
        ...

    def load(self, ids: Sequence[int]) -> dict[int, Outcome[Any]]:
        """Committed outcomes, read back."""
        ...


class _OnDisk:
    """A committed outcome that waits for its turn in the journal, not in memory."""

    __slots__ = ()


ON_DISK = _OnDisk()


class Ledger:
    """One run's outcomes. whole: make an Outcome of each (collect, journal, sink), else bare values, which is faster.

    Invariant: every input number is put into the order exactly once - a value, an Outcome, Failed or GAP.
    """

    def __init__(
        self, *, ordered: bool, whole: bool, raising: bool, outcomes: bool, max_failures: float | None,
        keeper: Keeper | None,
    ) -> None:  # fmt: skip
        self.report = Report()
        self.order = Order()
        self.fatal: BaseException | None = None
        self.unsaved: dict[int, Outcome[Any]] = {}
        self.on_disk = 0
        self.tries: dict[int, list[Attempt]] = {}
        self.spent: dict[int, float] = {}
        self.whole = whole
        self._ordered = ordered
        self._ready: collections.deque[tuple[list[Any], bool]] = collections.deque()
        self._loose = 0
        self._raising = raising
        self._outcomes = outcomes
        self._max_failures = max_failures
        self._keeper = keeper
        self._pending_error: BaseException | None = None

    # -- from the engine -----------------------------------------------------------------------------------------------

    @property
    def passed(self) -> int:
        """Inputs that need no place in the window any more: handed on, or held on disk."""
        return self.order.passed + self._loose + self.on_disk

    def succeeded(self, ids: Sequence[int], values: list[Any]) -> None:
        """Bare values of a run that needs no Outcomes."""
        self.report.succeeded += len(values)
        if self._ordered:
            self.order.put(ids, values)
        else:
            self._ready.append((values, False))
            self._loose += len(values)

    def failed(self, number: int, error: BaseException) -> None:
        """An input's failure in a run that needs no Outcomes."""
        self.report.failed += 1
        self._place(number, Failed(error))

    def settle(self, outcomes: list[Outcome[Any]], joined: dict[int, list[int]] | None = None) -> None:
        """Outcomes of a run that needs them. joined: the other inputs each of them speaks for."""
        for at, outcome in enumerate(outcomes):
            tries = self.tries.pop(outcome.index, None)
            spent = self.spent.pop(outcome.index, 0.0)
            if tries or spent:
                seconds = outcome.seconds + spent
                outcomes[at] = dataclasses.replace(outcome, tries=tuple(tries or ()), seconds=seconds)
        if self._keeper is not None:
            self._keep(outcomes, joined)
            return
        for outcome in outcomes:
            self._count(outcome)
            self._place(outcome.index, outcome)

    def found(self, known: Mapping[int, Any]) -> None:
        """Inputs the journal has finished: their Outcomes, or a mark for those that another input speaks for."""
        self.report.skipped += len(known)
        for number, outcome in known.items():
            if isinstance(outcome, Outcome):
                self._count(outcome)
                self._place(number, outcome)
            else:
                self.gap(number)

    def _keep(self, outcomes: list[Outcome[Any]], joined: dict[int, list[int]] | None) -> None:
        keeper = self._keeper
        assert keeper is not None
        self.unsaved.update((outcome.index, outcome) for outcome in outcomes)
        refused = keeper.record(outcomes, joined)
        if refused:
            failed = [dataclasses.replace(self.unsaved[i], value=None, error=error) for i, error in refused]
            self.unsaved.update((outcome.index, outcome) for outcome in failed)
            for number, error in keeper.record(failed, joined):  # an input that can't be stored either
                bare = dataclasses.replace(self.unsaved[number], input=repr(self.unsaved[number].input), error=error)
                self.unsaved[number] = bare
                keeper.record([bare], joined)

    def committed(self, ids: Sequence[int], limit: int) -> None:
        """The journal has these: they may be seen. Beyond `limit` held ones they wait on disk for their turn."""
        for number in ids:
            outcome = self.unsaved.pop(number, None)
            if outcome is None:
                continue
            self._count(outcome)
            if self._ordered and number != self.order.passed and self.order.held - self.on_disk >= limit:
                self.on_disk += 1
                self.order.put([number], [ON_DISK])
            else:
                self._place(number, outcome)

    def gap(self, number: int) -> None:
        """This number yields nothing of its own."""
        if self._ordered:
            self.order.gap(number)
        else:
            self._loose += 1

    def _place(self, number: int, entry: Any) -> None:
        if self._ordered:
            self.order.put([number], [entry])
        else:
            self._ready.append(([entry], True))
            self._loose += 1

    def _count(self, outcome: Outcome[Any]) -> None:
        if outcome.error is None:
            self.report.succeeded += 1
            return
        if len(self.report.failures) < KEPT_FAILURES:
            self.report.failures.append(outcome)
        self.report.failed += 1

    def judge(self, *, final: bool = False) -> None:
        """End the run when more inputs failed than `max_failures` allows. A share is judged from 20 outcomes on, and
        once more at the end. Called between deliveries: within one, failures are counted before successes."""
        report, limit = self.report, self._max_failures
        if limit is None or self.fatal is not None:
            return
        done = report.failed + report.succeeded
        share = isinstance(limit, float) and limit < 1
        if report.failed > (limit * done if share else limit) and (not share or final or done >= SHARE_AFTER):
            report.stopped = f"max_failures={limit:g}: {report.failed} of {done} inputs failed"
            self.fatal = TooManyFailures(f"the run was stopped by {report.stopped}", report)

    # -- to the caller -------------------------------------------------------------------------------------------------

    def emit(self) -> list[Any]:
        """What the caller sees next; raises the error whose turn has come, after all that come before it."""
        if self._pending_error is not None:
            error, self._pending_error = self._pending_error, None
            raise error
        while True:
            first = self.order.passed
            if self._ordered:
                entries, mixed = self.order.pop()
            else:
                entries, mixed = self._ready.popleft() if self._ready else ([], False)
            if not entries:
                # A run that was stopped hands over what it has finished, although inputs before it never will be.
                if self.fatal is not None and not self.unsaved and self.order.skip():
                    continue
                return []
            if not (mixed or self.whole):
                return entries
            if self.on_disk:
                entries = self._read_back(first, entries)
            out = self._visible(entries)
            if out:
                return out
            if self._pending_error is not None:
                error, self._pending_error = self._pending_error, None
                raise error

    def _read_back(self, first: int, entries: list[Any]) -> list[Any]:
        ids = [first + at for at, entry in enumerate(entries) if entry is ON_DISK]
        if not ids or self._keeper is None:
            return entries
        self.on_disk -= len(ids)
        loaded = self._keeper.load(ids)
        return [loaded[first + at] if entry is ON_DISK else entry for at, entry in enumerate(entries)]

    def _visible(self, entries: list[Any]) -> list[Any]:
        out: list[Any] = []
        for entry in entries:
            kind = type(entry)
            if entry is GAP:
                continue
            error = entry.error if kind is Failed or (self.whole and kind is Outcome) else None
            if error is not None and self._raising:
                self._pending_error = error
                break
            out.append(entry if self._outcomes or not self.whole else entry.value)
        return out

    def spend(self, number: int, seconds: float) -> None:
        """Seconds that a call of an input took which is not its last."""
        self.spent[number] = self.spent.get(number, 0.0) + seconds

    def note(self, number: int, attempt: Attempt) -> None:
        """A failed attempt of an input that may run again."""
        self.tries.setdefault(number, []).append(attempt)

    @property
    def settled(self) -> bool:
        """Nothing waits to be committed or seen."""
        return not (self.unsaved or self._ready or self.order.held or self._pending_error)
