"""The journal of a run: what became of each input, kept so that a killed run goes on where it was.

Promise: at-least-once execution, exactly-once recording. An input whose outcome was committed never runs again; one
that was in flight when the program died does. See README.md beside this file.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from duodao.channel.identity import Identity, fingerprint
from duodao.channel.keys import checked, described, digester
from duodao.errors import Closed, JournalError, UsageError
from duodao.outcome import Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from duodao.channel.inspection import Inspection
    from duodao.channel.shelf import Shelf

__all__ = ["Counts", "Identity", "Joined", "Journal", "fingerprint"]


class Counts(NamedTuple):
    """total: inputs read. skipped: found finished. added: the others. dropped: rows left by inputs that are gone."""

    total: int = 0
    added: int = 0
    skipped: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Joined:
    """What `admit` says of a finished input that has no outcome of its own: it went into a `Pipeline.batch` group."""

    index: int


class Journal:
    """A file that makes a run durable: `duodao.map(f, inputs, journal=Journal("run.journal"))`, or just its path.

    path: the file; made if missing. key: how an input is known again: None by its content, "mtime" for inputs that are
    paths (path, size and time of change), or a function of the item that gives a str, bytes, int or tuple. Equal keys
    are told apart by their occurrence. fresh: start over. accept_code: keep results that other code has computed.
    retry_failed: run the failed inputs again (changed code is no obstacle then). Raises UsageError for a wrong option.

    Results are pickled: a journal is to be trusted like the program itself. Inputs are kept with their results, so
    large ones are better passed as paths.
    Source: M7, M8.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, key: Callable[[Any], Any] | str | None = None, fresh: bool = False,
        accept_code: bool = False, retry_failed: bool = False,
    ) -> None:  # fmt: skip
        try:
            self.path = os.path.realpath(os.fsdecode(path))
        except (TypeError, ValueError) as error:
            raise UsageError(f"journal={path!r}: the path of a file is needed") from error
        if fresh and retry_failed:
            raise UsageError("fresh=True forgets what failed, retry_failed=True needs it: give one of them")
        self._key = checked(key)
        self._digest = digester(self._key)
        self._fresh = fresh
        self._accept_code = accept_code
        self._retry_failed = retry_failed
        self._notes: dict[str, Any] = {}
        self._shelf: Shelf | None = None
        self._counts = Counts()
        self._pending: dict[int, tuple[bytes, int | None]] = {}

    # -- the engine's ------------------------------------------------------------------------------------------------

    def open(
        self, identity: Identity, *, on_committed: Callable[[list[int]], None],
        on_error: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        """Lock the file, check it, start the writer. The callbacks are called from the writer's thread.

        Raises JournalBusy, JournalMismatch (the message names the option that goes on), JournalDamaged, JournalFull,
        UsageError (no file can be made there).
        """
        from duodao.channel.shelf import Shelf

        if self._shelf is not None:
            raise UsageError(f"the journal {self.path} is in use by another run of this Journal object")
        self._pending.clear()
        self._counts = Counts()
        self._shelf = Shelf(
            self.path, identity, keyed=described(self._key), fresh=self._fresh,
            accept_code=self._accept_code or self._retry_failed, keep_code=not self._accept_code, notes=self._notes,
            on_committed=on_committed, on_error=on_error,
        )  # fmt: skip

    def admit(self, ids: Sequence[int], items: list[Any]) -> dict[int, Outcome[Any] | Joined]:
        """Those of the next inputs, in input order, that need not run: finished ones, and ones that have no key."""
        shelf = self._open_shelf()
        digest = self._digest
        settled: dict[int, Outcome[Any] | Joined] = {}
        try:
            digests = list(map(digest, items))
        except Exception:
            digests = []
            kept = []
            for id, item in zip(ids, items, strict=True):
                try:
                    digests.append(digest(item))
                    kept.append(id)
                except Exception as error:
                    error.add_note(f"input {id} has no key")
                    settled[id] = Outcome(id, item, None, error)
            shelf.unkeyed([outcome for outcome in settled.values() if isinstance(outcome, Outcome)])
        else:
            kept = list(ids)
        keys = shelf.seen_keys(kept[0] if kept else 0, digests)
        found = shelf.find(keys)
        skipped = 0
        if found:
            inputs = dict(zip(ids, items, strict=True))
            for id, key, row in shelf.finished(kept, keys, found):
                if row.failed and self._retry_failed:
                    self._pending[id] = key, row.id
                    continue
                settled[id] = Joined(id) if row.joined else row.outcome(id, inputs[id])
                skipped += 1
            self._pending.update((id, (key, None)) for id, key in zip(kept, keys, strict=True) if key not in found)
        else:
            self._pending.update(zip(kept, zip(keys, [None] * len(keys), strict=True), strict=True))
        total, added, before, _ = self._counts
        self._counts = Counts(total + len(ids), added + len(ids) - skipped, before + skipped)
        return settled

    def record(
        self, outcomes: list[Outcome[Any]], joined: dict[int, list[int]] | None = None
    ) -> list[tuple[int, BaseException]]:
        """Queue outcomes for the next commit. joined: first member of a group -> the others, which finish with it.

        Returns the ids whose value can't be pickled, with the reason: they aren't recorded. May wait for the disk.
        """
        return self._open_shelf().record(outcomes, joined or {}, self._pending)

    def load(self, ids: Sequence[int]) -> dict[int, Outcome[Any]]:
        """Outcomes that this run has committed."""
        return self._open_shelf().load(ids)

    def note(self, name: str, value: Any) -> None:
        """Keep something JSON can hold about the run, such as its command. Before `open` or after it."""
        self._notes[name] = value
        if self._shelf is not None:
            self._shelf.note(name, value)

    def finish(self, complete: bool = False) -> Counts:
        """Commit what is queued, close and unlock; a second call only returns the counts again.

        complete: all inputs were read, so what no input claimed is dropped and counted.
        """
        shelf, self._shelf = self._shelf, None
        if shelf is not None:
            self._pending.clear()
            self._counts = self._counts._replace(dropped=shelf.close(complete=complete))
        return self._counts

    def close(self) -> None:
        """End an incomplete run. Idempotent."""
        self.finish(complete=False)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_shelf", None) is not None:
            with contextlib.suppress(JournalError):
                self.close()
            warnings.warn(f"the journal {self.path} was never closed", ResourceWarning, source=self, stacklevel=2)

    def _open_shelf(self) -> Shelf:
        if self._shelf is None:
            raise Closed(f"the journal {self.path} is not open")
        return self._shelf

    # -- a reader's --------------------------------------------------------------------------------------------------

    @staticmethod
    def inspect(path: str | os.PathLike[str]) -> Inspection:
        """Read a journal, also while a run writes it; nothing in it is changed. Close what you get, or use `with`."""
        from duodao.channel.inspection import Inspection

        return Inspection(os.path.realpath(os.fsdecode(path)))
