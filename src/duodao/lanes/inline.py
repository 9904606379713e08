"""The inline lane: calls run in the engine's own thread. Right for items under some 2 microseconds, where no lane can win."""

from __future__ import annotations

import random
from contextlib import ExitStack
from itertools import islice
from time import perf_counter
from typing import Any

from duodao.errors import SetupFailed
from duodao.lanes.base import PROMPT, Batch, Deliver, Failure, Result, Work, bind, contain
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs


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

    def start(self, batch: Batch, deliver: Deliver) -> None:
        if self._call is None:
            try:
                resources, self._stack = open_all(self._work.setup)
            except SetupFailed as error:
                deliver(Result(batch, [], fatal=error))
                return
            self._call = bind(self._work, resources)
        values: list[Any] = []
        errors: dict[int, Failure] = {}
        call = self._call
        began = perf_counter()
        feed = iter(batch.items)
        while True:
            try:
                for item in feed:
                    values.append(call(item))
                break
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                errors[len(values)] = Failure(contain(error))
                values.append(None)
        deliver(Result(batch, values, errors=errors or None, seconds=perf_counter() - began))

    def cancel(self, batch: Batch) -> None:
        pass

    def close(self, grace: float) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
