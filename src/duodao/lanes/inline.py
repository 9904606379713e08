"""The inline lane: calls run in the engine's own thread. Right for items under some 2 microseconds.

A clock reading costs twice a tiny call, so calls run in slices between two readings: one call per slice from 5
microseconds on, some 0.5 ms of calls below that.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from itertools import islice
from time import perf_counter
from typing import Any

from duodao.errors import Closed, SetupFailed
from duodao.lanes.base import PROMPT, Batch, Deliver, Failure, Result, Work, bind
from duodao.lanes.caught import caught
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs, preserved

QUICK = 0.000_005
"""Seconds. Calls shorter than this share a clock reading."""
SLICE = 0.0005
"""Seconds of quick calls between two readings."""


class Inline:
    """Runs a batch inside `start`. KeyboardInterrupt leaves `start`: it is the user's, not the item's."""

    name = "inline"
    workers = 1
    target = 0.005
    depth = 1
    singly = False

    def __init__(self, work: Work, **_: Any) -> None:
        self._work = work
        self._call: Any = None
        self._stack: ExitStack | None = None
        self._slice = 1
        self._closed = False

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Run the batch here and deliver it: whole, or in parts whenever 20 ms have passed."""
        if self._closed:
            raise Closed("this inline lane is closed")
        if self._call is None:
            try:
                self._open()
            except SetupFailed as error:
                deliver(Result(batch, [], fatal=error))
                return
        if self._work.seed is None:
            self._run(batch, batch.items, deliver)
        else:
            with preserved():
                self._run(batch, list(zip(batch.items, batch.ids, strict=True)), deliver)

    def _open(self) -> None:
        resources, self._stack = open_all(self._work.setup)
        seeded = self._work.seed is not None
        self._call = bind_pairs(self._work, resources, reseeds=True) if seeded else bind(self._work, resources)

    def _run(self, batch: Batch, items: list[Any], deliver: Deliver) -> None:
        call = self._call
        feed = iter(items)
        size, first = len(items), 0  # first: position of values[0]
        values: list[Any] = []
        errors: dict[int, Failure] = {}
        each: list[float] | None = None
        began = last = perf_counter()
        while first + len(values) < size:
            known = len(values)
            part = islice(feed, self._slice)
            while True:
                # list.extend(map(...)) is no faster on 3.11 and takes a StopIteration of the function for the end.
                try:
                    for item in part:
                        values.append(call(item))  # noqa: PERF401 - a comprehension loses the values before an error
                    break
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    errors[len(values)] = caught(error)
                    values.append(None)
            now = perf_counter()
            count = len(values) - known
            per = (now - last) / count
            if count == 1:
                if each is None:
                    each = [(last - began) / known] * known if known else []
                each.append(per)
                if known in errors:
                    errors[known].seconds = per
            elif each is not None:
                each += [per] * count
            # At most eightfold: one lucky reading must not hide a thousand slow calls behind one clock.
            self._slice = 1 if per >= QUICK else min(count * 8, max(1, int(SLICE / per)))
            last = now
            if now - began >= PROMPT and first + len(values) < size:
                where = range(first, first + len(values))
                spent = now - began
                deliver(Result(batch, values, positions=where, errors=errors or None, seconds=spent, each=each))
                first += len(values)
                values, errors, each, began = [], {}, None, now
        if values or not size:
            whole = None if first == 0 else range(first, size)
            spent = last - began
            deliver(Result(batch, values, positions=whole, errors=errors or None, seconds=spent, each=each))

    def cancel(self, batch: Batch) -> None:
        """Nothing to stop: the batch has ended when `start` returns."""

    def close(self, grace: float) -> None:  # noqa: ARG002 - nothing runs that it could wait for
        """Close the resources."""
        self._closed = True
        stack, self._stack = self._stack, None
        if stack is not None:
            try:
                stack.close()
            except Exception as error:
                warnings.warn(f"closing a setup resource failed: {error!r}", RuntimeWarning, stacklevel=2)
