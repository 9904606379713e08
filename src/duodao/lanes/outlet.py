"""What a worker says to its lane: frames on the result pipe, its output by whole lines, its log records."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import Any

from duodao.lanes import payload, wire
from duodao.lanes.forward import LineStream, LogHandler
from duodao.lanes.wire import Raised, dump_error


class Outlet:
    """The worker's end of the result pipe. While it is open, `sys.stdout`, `sys.stderr` and the root logger lead here.

    private: descriptors that a forked copy of the worker closes, so that it neither holds them open nor writes.
    """

    def __init__(self, results: int, *private: int) -> None:
        self._results = results
        self._private = (results, *private)
        self._copied = False
        self._writing = threading.Lock()
        self._streams = (LineStream(1, self._print), LineStream(2, self._print))
        self.logs = LogHandler(self._log)
        sys.stdout, sys.stderr = self._streams
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._copied = True
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.root.removeHandler(self.logs)
        for fd in self._private:
            with contextlib.suppress(OSError):
                os.close(fd)

    def send(self, kind: int, seq: int = 0, **fields: Any) -> None:
        """Write one frame, whole. A forked copy of the worker whose call came back ends here: nobody asked it."""
        if self._copied:
            os._exit(1)
        pieces: list[Any] = list(wire.parts(kind, seq, **fields))
        with self._writing:
            wire.write_all(self._results, pieces)

    def _print(self, number: int, text: str) -> None:
        self.send(wire.OUTPUT, number, body=text.encode("utf-8", "surrogatepass"))

    def _log(self, record: bytes) -> None:
        self.send(wire.LOG, body=record)

    def finish(self) -> None:
        """Send the lines that have no end."""
        for stream in self._streams:
            stream.finish()


def packed(
    values: list[Any], errors: dict[int, bytes], *, each_alone: bool = False
) -> tuple[bytes, bool, payload.Buffers | None]:
    """The values pickled; when one can't be, or if so asked, each by itself, and the bad ones among the errors."""
    if not each_alone:
        try:
            body, large = payload.pack(values)
        except Raised:
            pass
        else:
            return body, False, large
    blobs, bad = wire.dump_each(values, "result")
    errors.update({index: dump_error(error) for index, error in bad.items()})
    return wire.plain(blobs), True, None
