"""The two loops of a worker, and the thread that sends what is done when the next call takes long.

The fast loop is for items under FAST: per item it costs the call, an append and nothing else. The careful one notes, in
the worker's progress slot, the batch, the item and the time its call began, so that the lane can name who killed the
worker and who ran too long. Both continue after an item that raised.

Rejected: noting every item in both (0.7 of the speed on x*x); handing over at fixed item counts (a long call that
follows a short one would hold its result).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from duodao.lanes.base import PROMPT, contain
from duodao.lanes.wire import dump_error

FAST = 20e-6
"""Seconds per item. Noting an item costs 0.2 microseconds, one percent of this."""


class Slot:
    """64 bytes of the arena that tell the lane what this worker is in: the batch (0: nothing), the item, since when.

    The lane reads while the worker writes. `batch` is zeroed before the others change hands, and a reader that acts on
    what it read (a kill for a time-out) reads again after the worker's death, when nothing changes any more.
    """

    __slots__ = ("numbers", "times")

    def __init__(self, memory: memoryview) -> None:
        self.numbers = memory.cast("Q")
        self.times = memory.cast("d")

    def note(self, batch: int, item: int) -> None:
        """From now on the worker is in this item."""
        self.numbers[1] = item
        self.times[2] = monotonic()
        self.numbers[0] = batch

    def idle(self) -> None:
        """The worker is in no item."""
        self.numbers[0] = 0

    def read(self) -> tuple[int, int, float]:
        """Batch, item, time by `time.monotonic`, which all processes of a machine share."""
        return self.numbers[0], self.numbers[1], self.times[2]


class Job:
    """A batch in the worker. The loops append to `out` last, so whoever sees n outcomes finds their errors and
    times."""

    __slots__ = ("began", "each", "errors", "itemised", "out", "rest", "sent", "seq", "told", "views")

    def __init__(self, seq: int, itemised: bool) -> None:
        self.seq = seq
        self.itemised = itemised
        self.out: list[Any] = []
        self.errors: dict[int, bytes] = {}
        self.each: list[float] | None = None
        self.sent = 0
        self.began = monotonic()
        self.told = 0.0  # seconds of it that were reported
        self.views: Any = None
        self.rest: deque[Any] | None = None  # what is not begun, where another thread may take it away


def run_fast(call: Callable[[Any], Any], items: Iterable[Any], job: Job) -> None:
    """Every item, without a note of which; the item that raised is the one after those in `out`."""
    out = job.out
    add = out.append
    rest = iter(items)
    while True:
        try:
            for item in rest:
                add(call(item))
        except BaseException as error:
            job.errors[len(out)] = dump_error(contain(error))
            add(None)
        else:
            return


def run_careful(
    call: Callable[[Any], Any],
    items: Iterable[Any],
    job: Job,
    slot: Slot,
    flush: Callable[[Job], None],
    full: Callable[[], bool] | None,
) -> bool:
    """Every item, noted. `full` is asked after each whether the worker must be replaced: then False, the rest not
    run."""
    out, errors = job.out, job.errors
    each = job.each = []
    seq = job.seq
    numbers, times = slot.numbers, slot.times
    now = monotonic
    for index, item in enumerate(items):
        numbers[1] = index
        times[2] = began = now()
        numbers[0] = seq
        try:
            value = call(item)
        except BaseException as error:
            errors[index] = dump_error(contain(error))
            value = None
        took = now() - began
        each.append(took)
        out.append(value)
        if took >= PROMPT:
            flush(job)
        if full is not None and full():
            return False
    return True


def run_apart(
    call: Callable[[Any], Any], items: Iterable[Any], job: Job, slot: Slot, flush: Callable[[Job], None]
) -> None:
    """Every item, noted, and each outcome sent before the next call begins; `job.rest` may be emptied meanwhile."""
    out, seq = job.out, job.seq
    rest = job.rest = deque(items)
    index = 0
    while True:
        try:
            item = rest.popleft()
        except IndexError:
            return
        slot.note(seq, index)
        try:
            value = call(item)
        except BaseException as error:
            job.errors[index] = dump_error(contain(error))
            value = None
        out.append(value)
        del item, value
        if rest:
            flush(job)
        index += 1


class Flusher:
    """A thread that sends what a batch has done so far, when it has been running for PROMPT.

    It wakes every PROMPT seconds while batches run, and parks for good, without a time-out, when a whole period passed
    without one: an idle worker costs nothing.
    """

    def __init__(self, flush: Callable[[Job], None]) -> None:
        self._flush = flush
        self._job: Job | None = None
        self._parked = True
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, job: Job) -> None:
        """The worker starts a batch."""
        self._job = job
        if self._parked:
            self._parked = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="duodao-flusher", daemon=True)
                self._thread.start()
            self._bell.put(None)

    def end(self) -> None:
        """The batch is done; what is left of it is the caller's to send."""
        self._job = None

    def _run(self) -> None:
        while True:
            self._bell.get()
            while True:
                with contextlib.suppress(queue.Empty):
                    self._bell.get(timeout=PROMPT)
                job = self._job
                if job is not None:
                    if (job.rest or len(job.out) > job.sent) and monotonic() - job.began >= PROMPT:
                        self._flush(job)
                    continue
                self._parked = True
                if self._job is None:
                    break
                self._parked = False  # one began in between, and may have seen us not parked
