"""Output of workers reaches the caller's own sys.stdout, sys.stderr and logging, by whole lines.

A worker's streams are replaced, so what it prints comes out where a print of the caller would: in a notebook's cell, in
a captured test, in a redirected stream. It travels on the pipe of the results, before the result of the call that
printed it. What C code or a child of a worker writes to descriptors 1 and 2 goes where those of the program go.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from duodao.lanes.wire import dumps, shown

_LINE = 65536
"""Characters. A longer line travels in pieces: what never ends must not fill the memory."""


class LineStream(io.TextIOBase):
    """A text stream of a worker. Whole lines are sent as they are written; the rest waits for its end or `finish`.

    Each thread writes lines of its own: a `print` of several words is several writes.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, number: int, send: Callable[[int, str], None]) -> None:
        self._number = number
        self._send = send
        self._open: dict[int, str] = {}
        self._lock = threading.RLock()
        self._raw: _Raw | None = None

    @property
    def buffer(self) -> _Raw:
        """The binary stream below, as `sys.stdout.buffer`."""
        if self._raw is None:
            self._raw = _Raw(self)
        return self._raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The descriptor of the program's own stream: for subprocesses that are given this one."""
        return self._number

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        thread = threading.get_ident()
        with self._lock:
            whole, newline, rest = text.rpartition("\n")
            before = self._open.pop(thread, "")
            if newline:
                self._send(self._number, before + whole + newline)
                before = ""
            if before or rest:
                self._open[thread] = before + rest
                if len(before) + len(rest) > _LINE:
                    self._send(self._number, self._open.pop(thread))
        return len(text)

    def finish(self) -> None:
        """Send the lines that have no end."""
        with self._lock:
            texts, self._open = self._open, {}
            for text in texts.values():
                self._send(self._number, text)


class _Raw(io.RawIOBase):
    """Bytes into the text stream above it."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = bytes(data)
        self._stream.write(self._decoder.decode(view))
        return len(view)


class LogHandler(logging.Handler):
    """The worker's only handler: sends every record to the caller, whose loggers decide what becomes of it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = dict(record.__dict__)
            fields["msg"] = record.getMessage()
            fields["args"] = None
            if record.exc_info:
                fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
                fields["exc_info"] = None
            try:
                data = dumps(fields)
            except Exception:
                data = dumps({name: v if isinstance(v, str | int | float) else shown(v) for name, v in fields.items()})
            self._send(data)
        except Exception:
            self.handleError(record)


Levels = dict[str, int]


def log_levels() -> Levels:
    """The caller's loggers that have a level of their own; "" is the root. What they drop is dropped in the worker."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    if logging.root.manager.disable:
        levels["/disable"] = logging.root.manager.disable
    return levels


def apply_levels(levels: Levels, handler: logging.Handler) -> None:
    """In the worker: those levels, and `handler` in place of whatever the root had."""
    logging.root.handlers[:] = [handler]
    logging.disable(levels.pop("/disable", logging.NOTSET))
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


def emit_output(number: int, text: str) -> None:
    """In the lane: print what a worker printed. A stream that is closed or broken loses it; the run goes on."""
    stream = sys.stderr if number == 2 else sys.stdout
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except Exception:
        return


def emit_record(fields: dict[str, Any]) -> None:
    """In the lane: handle a worker's log record as if it had been logged here."""
    record = logging.makeLogRecord(fields)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
