"""One run in a worker: its function, bound to what it shares and what `setup=` opened."""

from __future__ import annotations

import dataclasses
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from duodao.errors import NotPicklable
from duodao.lanes import payload, wire
from duodao.lanes.base import Work, bind
from duodao.lanes.foreign import said
from duodao.lanes.loops import FAST
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs
from duodao.lanes.wire import Raised, dump_error, dumps


class Stint:
    """What the worker has of its present run."""

    def __init__(self, work: Work, common: tuple[int, list[payload.Place], list[str]] | None) -> None:
        self.work = work
        self.careful = work.timeout is not None or work.max_memory is not None or work.seed is not None
        self.pace = FAST  # the first batch is a careful one
        self.looked = 0.0
        self.told = False  # that it is ready
        self.calls = 0
        self._common: dict[str, Any] = {}
        self._views: payload.Views | None = None
        self._close: Callable[[], object] | None = None
        self._call: Callable[[Any], Any] | None = None
        if common is not None:
            piece, places, names = common
            self._views = payload.Views(piece, places)
            blob, *buffers = self._views.buffers
            self._common = dict(zip(names, pickle.loads(blob, buffers=buffers), strict=True))

    def opened(self) -> Callable[[Any], Any]:
        """The callable of the loops; the first time it opens `setup=`. Raises SetupFailed."""
        if self._call is None:
            resources = self._open()
            work = self.complete()
            self._call = bind(work, resources) if work.seed is None else bind_pairs(work, resources, reseeds=True)
        return self._call

    def complete(self) -> Work:
        """The work with what its calls share."""
        return dataclasses.replace(self.work, common=self._common)

    def _open(self) -> dict[str, Any]:
        if not self.work.setup:
            return {}
        opened, stack = open_all(self.work.setup)
        self._close = stack.close
        return opened

    def itemised(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`call` from pickle to pickle, so that a death in either belongs to the item."""
        seeded = self.work.seed is not None

        def whole(given: Any) -> bytes:
            blob, index = given if seeded else (given, 0)
            try:
                item = pickle.loads(blob)
            except Raised as error:
                raise _unreadable(error) from error
            value = call((item, index)) if seeded else call(item)
            try:
                return dumps(value)
            except Raised as error:
                raise wire.not_picklable(value, "result", error) from error

        return whole

    def close(self) -> bool:
        """Close what was opened; a failure is printed, for its run has all its results. True when it went well."""
        close, self._close, self._call = self._close, None, None
        if close is None:
            return True
        try:
            close()
        except BaseException:
            traceback.print_exc()
            return False
        return True

    def release(self) -> bool:
        """Let go of what the run shared; False while something else still looks at it."""
        self._common = {}
        return self._views is None or self._views.release()


def _unreadable(error: BaseException) -> NotPicklable:
    return NotPicklable(f"the input can't be unpickled in a worker ({said(error)})", "input")


def unread(error: BaseException) -> bytes:
    """The error of an item that can't be unpickled in a worker."""
    wrapped = _unreadable(error)
    wrapped.__cause__ = error
    return dump_error(wrapped)
