"""The lanes that the contract suite runs over. A new lane joins with one line in CASES."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import contract_calls

from duodao.lanes.base import Batch, Failure, Lane, Result, Work
from duodao.lanes.coroutine import Coroutines
from duodao.lanes.inline import Inline
from duodao.lanes.thread import Threads

PATIENCE = 30.0
"""Seconds after which a test that waits for a delivery fails; none waits that long when all is well."""


@dataclass(frozen=True)
class Case:
    """A lane under test. loops: names of the functions whose frame calls the user's function.

    blocking: `start` returns when the batch has ended. remote: errors are copies, and workers are kept after `close`.
    stops: `cancel` ends a running call. cuts: `cancel` keeps the rest of a batch that has begun from running. polls: a
    read of a file would stop all calls, so they wait in `select`.
    """

    name: str
    make: Callable[..., Lane]
    loops: tuple[str, ...]
    is_async: bool = False
    blocking: bool = False
    remote: bool = False
    stops: bool = True
    cuts: bool = True
    polls: bool = False

    def work(self, name: str, **options: Any) -> Work:
        """The work for a function of contract_calls, in the form this lane runs."""
        form = "_async" if self.is_async else "_polled" if self.polls and name == "gated" else ""
        function = getattr(contract_calls, name + form)
        return Work(function, name, is_async=self.is_async, **options)


def given_loop(work: Work, workers: int) -> Lane:
    """The coroutine lane on a loop that somebody else runs, driven from another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    lane = Coroutines(work, workers, loop=loop)
    close = lane.close

    def close_all(grace: float) -> None:
        close(grace)
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    lane.close = close_all  # type: ignore[method-assign]
    return lane


CASES = [
    Case("inline", Inline, ("_run",), blocking=True, stops=False),
    Case("thread", Threads, ("_quick", "_share"), stops=False),
    Case("coroutine", Coroutines, ("_labour",), is_async=True),
    Case("coroutine-given-loop", given_loop, ("_labour",), is_async=True),
]
if importlib.util.find_spec("duodao.lanes.process"):
    from duodao.lanes.process import Processes

    CASES.append(Case("process", Processes, ("run_fast", "run_careful"), remote=True, stops=False, cuts=False))
if importlib.util.find_spec("duodao.lanes.nested"):
    from duodao.lanes.nested import Nested

    def nested(name: str, widths: Callable[[int], tuple[int, ...]]) -> Callable[..., Lane]:
        """A lane in processes; `workers` is spread over its levels by `widths`."""
        return lambda work, workers: Nested(name, work, widths(workers))

    threads, loops = ("_quick", "_share"), ("_labour",)
    options: dict[str, Any] = {"remote": True, "stops": False, "cuts": False}
    CASES += [
        Case("nested-thread", nested("thread", lambda workers: (1, workers)), threads, **options),
        Case("nested-process", nested("thread", lambda workers: (workers, 1)), threads, **options),
        Case("nested-coroutine", nested("coroutine", lambda workers: (1, workers, 1)), loops, True, remote=True),
    ]
    if importlib.util.find_spec("gevent"):
        CASES += [
            Case("greenlet", nested("greenlet", lambda workers: (1, workers)), loops, remote=True, polls=True),
            Case("nested-greenlet", nested("greenlet", lambda workers: (workers, 1)), loops, remote=True, polls=True),
        ]


class Inbox:
    """Plays the engine: takes deliveries, holds invariant 1, and sends what is lost again, one by one and carefully."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.queue: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.values: dict[int, Any] = {}
        self.failures: dict[int, Failure] = {}
        self.notices: list[str] = []
        self.results: list[Result] = []
        self._open: dict[Batch, set[int]] = {}
        self._helpers: list[threading.Thread] = []

    def start(self, items: list[Any], *, ids: Any = None, careful: bool = False, apart: bool = False) -> Batch:
        """Start a batch; apart: from a thread of its own, for a lane that blocks meanwhile."""
        first = len(self.values) + len(self.failures)
        ids = range(first, first + len(items)) if ids is None else ids
        batch = Batch(ids, items, careful=careful)
        self._open[batch] = set(range(len(items)))
        if apart:
            helper = threading.Thread(target=self.lane.start, args=(batch, self.queue.put))
            self._helpers.append(helper)
            helper.start()
        else:
            self.lane.start(batch, self.queue.put)
        return batch

    def next(self) -> Result:
        """One delivery, checked and entered under the items' ids."""
        result = self.queue.get(timeout=PATIENCE)
        self.results.append(result)
        self.notices += result.notices
        if result.fatal is not None:
            return result
        left = self._open[result.batch]
        where = range(len(result.batch.items)) if result.positions is None else result.positions
        assert len(where) == len(result.values), "positions and values of different lengths"
        assert result.each is None or len(result.each) == len(result.values)
        assert set(result.errors or ()) <= set(range(len(result.values)))
        for index, position in enumerate(where):
            assert position in left, f"position {position} delivered twice"
            left.remove(position)
            number = result.batch.ids[position]
            failure = (result.errors or {}).get(index)
            if failure is None:
                self.values[number] = result.values[index]
            elif failure.kind == "lost":
                self.start([result.batch.items[position]], ids=[number], careful=True)
            else:
                self.failures[number] = failure
        return result

    def finish(self) -> None:
        """Take deliveries until nothing is out."""
        while any(self._open.values()):
            result = self.next()
            assert result.fatal is None, result.fatal
        for helper in self._helpers:
            helper.join(PATIENCE)


class Gate:
    """The test's end of the two FIFOs of contract_calls.gated."""

    def __init__(self, folder: Any) -> None:
        self.gate, self.started = str(folder / "gate"), str(folder / "started")
        os.mkfifo(self.gate)
        os.mkfifo(self.started)
        # Both ends are held here: no open() blocks, and no reader ever sees an end.
        self._gate = os.open(self.gate, os.O_RDWR)
        self._started = os.open(self.started, os.O_RDWR)

    @property
    def common(self) -> dict[str, str]:
        return {"gate": self.gate, "started": self.started}

    def begun(self, count: int = 1) -> set[int]:
        """Wait until so many calls have come to the gate; their items."""
        text = b""
        while text.count(b"\n") < count:
            text += os.read(self._started, 1)
        return {int(line) for line in text.split()}

    def mark(self) -> None:
        """Write as if an item 0 had begun: what `begun` reads then has come before."""
        os.write(self._started, b"0\n")

    def open(self, count: int = 1) -> None:
        """Let so many calls pass."""
        os.write(self._gate, b"." * count)

    def close(self) -> None:
        os.close(self._gate)
        os.close(self._started)
