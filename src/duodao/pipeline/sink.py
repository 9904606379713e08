"""A run's results as a file of JSON lines, its failures as another; a resumed run leaves what an undisturbed one does.

How a run goes on: it hands over all outcomes again, those it takes from the journal too, in input order. What they come
to is compared with what the file already has. As long as it is the same, nothing is written; at the first difference -
a torn last line, an input that is new, gone or changed, a line that somebody edited - the file is cut there and written
from there on. So the file itself is the proof, and a mark in the journal, which it would have to be synced with before
every commit, isn't needed. Rejected: marks (offset and position per commit) trust what is in the file before them.

Invariant: up to what was compared or written, the file is what an undisturbed run over these inputs has written so far.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from typing import Any

from duodao.channel.rows import error_text, trace_text
from duodao.clock import SYSTEM
from duodao.errors import UsageError
from duodao.outcome import Outcome

_BLOCK = 256 * 1024  # bytes that are compared or written at once
_SECONDS = 0.2  # or what came within this time, so that a reader of the file sees it grow
_REPR = 1000  # characters of a value that JSON can't hold

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


class JsonLines:
    """Writes one line per success: the value itself, or with records=True index, input, value, attempts, seconds, lane.

    path: the file, "-" for stdout, or an open stream, which is flushed but not closed. journal: given when the run has
    one; the file then goes on (see above), else it starts empty. failed_path: where failures go, and results that JSON
    can't hold (NaN and infinity included); made when there is one, removed when the run has none. By default beside
    `path`: out.jsonl -> out.failed.jsonl. unfit: how many results JSON couldn't hold; failed: those and the failures.
    Raises UsageError in `open` when the file can't be written.
    """

    def __init__(
        self, path: Any, *, records: bool = False, journal: Any = None,
        failed_path: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        self.failed = 0
        self.unfit = 0
        self._records = records
        self._resume = journal is not None
        self._stream = path if hasattr(path, "write") else None
        self._path = None if self._stream is not None else os.fsdecode(path)
        if self._path not in (None, "-"):  # a function may change the directory before a file is opened or removed
            self._path = os.path.abspath(self._path)
        if failed_path is None and self._path not in (None, "-"):
            failed_path = f"{os.fsdecode(path).removesuffix('.jsonl')}.failed.jsonl"
        self._failed_path = None if failed_path is None else os.path.abspath(os.fsdecode(failed_path))
        self._out: _File | _Stream | None = None
        self._dead: _File | None = None
        self._used = False

    def open(self) -> None:
        """Make the files ready; without a journal they start empty."""
        if self._path is None or self._path == "-":
            self._out = _Stream(self._stream or sys.stdout)
        else:
            self._out = _File(self._path, resume=self._resume)
        if self._failed_path is not None and os.path.exists(self._failed_path):
            try:
                self._dead = _File(self._failed_path, resume=self._resume)
            except BaseException:
                self._out.close(cut=False)
                raise

    def write(self, outcomes: list[Outcome[Any]]) -> None:
        """The next outcomes, in input order, also those that the journal had. Raises OSError when the disk is full."""
        out = self._out
        assert out is not None, "open() comes first"
        self._used = True
        lines = []
        for outcome in outcomes:
            if outcome.error is not None:
                self._fail(_failure(outcome, outcome.error))
                continue
            try:
                lines.append(_encode(_record(outcome) if self._records else outcome.value))
            except Exception as error:  # a dict of a class of the user's may raise anything
                self.unfit += 1
                self._fail(_misfit(outcome, error))
        if lines:
            out.write(lines)

    def close(self, complete: bool = True) -> None:
        """Write what is left, bring it to the disk, end. Idempotent.

        What an earlier run has written beyond this run's outcomes goes, so an incomplete file is a beginning of the
        complete one. Unless the run was incomplete and came to no outcome at all: it may have been refused because
        another process is writing this very file.
        """
        out, dead = self._out, self._dead
        self._out = self._dead = None
        cut = complete or self._used or not self._resume
        try:
            if out is not None:
                out.close(cut=cut)
        finally:
            if dead is not None:
                dead.close(cut=cut)
                if cut and not self.failed and dead.regular:  # never a device: root could unlink /dev/null
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(dead.path)

    def _fail(self, record: dict[str, Any]) -> None:
        self.failed += 1
        if self._failed_path is None:
            return
        if self._dead is None:
            self._dead = _File(self._failed_path, resume=self._resume)
        self._dead.write([_encode(record)])


class _File:
    """A file that is compared as long as it agrees, then written."""

    def __init__(self, path: str, *, resume: bool) -> None:
        self.path = path
        try:
            # A pipe is opened to write only: if we could read from it too, nothing would tell that its reader is gone.
            pipe = os.path.exists(path) and not os.path.isfile(path)
            self._fd = os.open(path, (os.O_WRONLY if pipe else os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"the output {path} can't be written: {error.strerror}") from error
        kind = os.fstat(self._fd)
        self.regular = stat.S_ISREG(kind.st_mode)
        self._comparing = self.regular and resume and kind.st_size > 0
        if self.regular and not resume:
            os.ftruncate(self._fd, 0)
        self._at = 0
        self._lines: list[str] = []
        self._size = 0
        self._since = SYSTEM.now()

    def write(self, lines: list[str]) -> None:
        self._lines += lines
        self._size += sum(map(len, lines))
        if self._size >= _BLOCK or SYSTEM.now() - self._since >= _SECONDS:
            self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        self._lines.append("")
        data = "\n".join(self._lines).encode("ascii")
        self._lines = []
        self._size = 0
        if self._comparing:
            if os.pread(self._fd, len(data), self._at) == data:
                self._at += len(data)
                self._since = SYSTEM.now()
                return
            self._comparing = False
            os.ftruncate(self._fd, self._at)
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self._at) if self.regular else os.write(self._fd, view)
            self._at += count
            view = view[count:]
        self._since = SYSTEM.now()

    def close(self, *, cut: bool) -> None:
        try:
            self._flush()
            if self._comparing and cut:
                os.ftruncate(self._fd, self._at)
            if self.regular:
                os.fsync(self._fd)
        finally:
            os.close(self._fd)


class _Stream:
    """Stdout, or what the caller has opened; text or bytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = getattr(stream, "buffer", stream)
        if self._stream is not stream:
            stream.flush()  # what was printed before comes first
        self._text = not hasattr(stream, "buffer") and hasattr(stream, "encoding")

    def write(self, lines: list[str]) -> None:
        data = "\n".join([*lines, ""])
        self._stream.write(data if self._text else data.encode("ascii"))
        self._stream.flush()

    def close(self, *, cut: bool) -> None:  # noqa: ARG002 - a stream can't be cut
        self._stream.flush()


def _record(outcome: Outcome[Any]) -> dict[str, Any]:
    return {
        "index": outcome.index, "input": plain(outcome.input), "value": outcome.value, "attempts": outcome.attempts,
        "seconds": outcome.seconds, "lane": outcome.lane,
    }  # fmt: skip


def _failure(outcome: Outcome[Any], error: BaseException) -> dict[str, Any]:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {
        "index": outcome.index, "input": plain(outcome.input), "error": name, "message": error_text(error),
        "traceback": trace_text(error), "attempts": outcome.attempts, "seconds": outcome.seconds, "lane": outcome.lane,
        "tries": [
            {"number": t.number, "stage": t.stage, "lane": t.lane, "seconds": t.seconds, "error": t.error}
            for t in outcome.tries
        ],
    }  # fmt: skip


def _misfit(outcome: Outcome[Any], error: BaseException) -> dict[str, Any]:
    record = _failure(outcome, error)
    message = f"JSON can't hold the result: {error_text(error)}"
    return {**record, "message": message, "traceback": "", "value": _short(outcome.value)}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: itself where it can, paths and bytes as the text they are (bytes that don't decode
    as surrogates, so that they round-trip), else its repr."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bytes, os.PathLike)):
        return os.fsdecode(value)
    try:
        _encode(value)
    except Exception:  # as in `write`; an int of more digits than Python writes
        return _short(value)
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # a repr of the user's
        text = f"<{type(value).__qualname__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= _REPR else f"{text[: _REPR - 3]}..."
