"""The runs behind `measure`: calls one after another, metered; then the same items on one worker and on two.

Calls that could end the caller's process are made in another one, like the samples of `auto`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import queue
import threading
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any

from duodao.cost.advise import Advice, Profile, Terms, advise, figures
from duodao.cost.sample import Board, Cost, Metered, Sampled
from duodao.cost.trust import trusted
from duodao.errors import NotPicklable
from duodao.lanes.base import Batch, Lane, Result, Work
from duodao.lanes.shipping import shipping, unsendable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CALLS, MOST = 5, 2000
"""Metered calls: at least, unless time is up, and at most."""
SLICE = 0.010
"""Seconds of work in a batch."""


def trial(
    work: Work, items: list[Any], make: Callable[[str, Work, int], Lane], terms: Terms, seconds: float
) -> Profile:
    """Measure `work` with `items`, in some `seconds`, at most half of them metered. Raises what a call raises."""
    if work.is_async:
        return _awaited(work, items, terms, seconds)
    stays = unsendable(work)
    harmless = not work.setup and trusted(work.function, *work.common.values(), items=items)
    lane = "thread" if harmless or stays else "process"
    values: list[Any] = []
    notes: list[str] = []
    try:
        costs = _metered(work, items, lane, make, seconds / 2, values)
    except NotPicklable as error:
        stays = f"its {error.what} can't travel to a process"
        costs = _metered(work, items, lane := "thread", make, seconds / 2, values)
    seen = figures(costs)
    sent = ship = None
    if not stays:
        try:
            ship, sent = shipping(items[: len(values)], values)
        except NotPicklable as error:
            stays = f"its {error.what} can't travel to a process"
    advice = advise(seen, dataclasses.replace(terms, ship=ship, stays=stays))
    count = max(4, min(MOST, int(seconds / 8 / max(seen.wall, 1e-7)))) // 2 * 2
    load = list(itertools.islice(itertools.cycle(items), count))
    threads = _gain("thread", work, load, make, seen.wall) if seen.wall < seconds else None
    processes = _gain("process", work, load, make, seen.wall) if not stays and seen.wall < seconds else None
    if stays:
        notes.append(stays)
    if seen.wall >= seconds:
        notes.append("a call takes too long to try two at once")
    return Profile(work.name, seen, advice, threads, processes, sent, tuple(notes))


def _metered(
    work: Work,
    items: Sequence[Any],
    lane: str,
    make: Callable[[str, Work, int], Lane],
    seconds: float,
    values: list[Any],
) -> list[Cost]:
    """Cost of calls made one after another until `seconds` are over; `values` gets what the first round returned."""
    metered = Metered(work.function, Board())
    costs: list[Cost] = []
    with closing(metered), _opened(make(lane, dataclasses.replace(work, function=metered), 1)) as sampler:
        feed = itertools.cycle(items)
        began = perf_counter()
        size = 1
        while len(costs) < CALLS or (perf_counter() - began < seconds and len(costs) < MOST):
            part = list(itertools.islice(feed, size))
            got: list[Sampled] = _run(sampler, [part])
            costs += [one.cost for one in got]
            values += [one.value for one in got[: len(items) - len(values)]]
            mean = sum(one.cost.wall for one in got) / len(got)
            size = max(1, min(2 * size, int(SLICE / max(mean, 1e-7))))
            if perf_counter() - began > 2 * seconds:
                break
    return costs


def _gain(lane: str, work: Work, load: Sequence[Any], make: Callable[[str, Work, int], Lane], each: float) -> float:
    """How many times faster two workers are than one, the workers being started already: best of two runs of each."""
    size = max(1, min(len(load) // 4, int(SLICE / max(each, 1e-7))))
    parts = [list(load[at : at + size]) for at in range(0, len(load), size)]
    taken = []
    for workers in (1, 2):
        with _opened(make(lane, work, workers)) as opened:
            _run(opened, [[item] for item in load[:workers]])
            times = []
            for _ in range(2):
                began = perf_counter()
                _run(opened, parts)
                times.append(perf_counter() - began)
            taken.append(min(times))
    return taken[0] / taken[1]


def _run(lane: Lane, parts: list[list[Any]]) -> list[Any]:
    """Run lists of items, and wait: the values in order. Raises the first error."""
    inbox: queue.SimpleQueue[Result] = queue.SimpleQueue()
    starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
    values: list[Any] = [None] * starts[-1]
    place: dict[Batch, int] = {}
    for start, part in zip(starts, parts, strict=False):
        batch = Batch(range(start, start + len(part)), part)
        place[batch] = start
        lane.start(batch, inbox.put)
    left = len(values)
    while left:
        result = inbox.get()
        if result.fatal is not None:
            raise result.fatal
        for failure in (result.errors or {}).values():
            raise failure.error or RuntimeError("the worker was lost")
        positions = range(len(result.values)) if result.positions is None else result.positions
        for position, value in zip(positions, result.values, strict=True):
            values[place[result.batch] + position] = value
        left -= len(result.values)
    return values


class _opened:  # noqa: N801 - it reads like contextlib.closing, which can't pass the grace
    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __enter__(self) -> Lane:
        return self._lane

    def __exit__(self, *_: object) -> None:
        self._lane.close(1.0)


def _awaited(work: Work, items: list[Any], terms: Terms, seconds: float) -> Profile:
    """An async function, call by call on a loop of its own in a thread of its own: the caller may have one running."""
    costs: list[Cost] = []
    errors: list[BaseException] = []

    def calls() -> Iterator[Any]:
        began = perf_counter()
        for done, item in enumerate(itertools.cycle(items)):
            if done >= MOST or (done >= CALLS and perf_counter() - began > seconds / 2):
                return
            yield item

    def run() -> None:
        try:
            with asyncio.Runner() as runner, closing(Metered(runner.run, Board())) as metered:
                for item in calls():
                    args = item if work.star else (item,)
                    costs.append(metered(work.function(*args, **work.common)).cost)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="duodao-measure")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    seen = figures(costs)
    note = (
        ()
        if seen.share < 0.5
        else (f"it computes {seen.share:.0%} of its time and keeps its loop's other calls waiting",)
    )
    width = terms.workers or 1000
    return Profile(work.name, seen, Advice("coroutine", width, "it is an async function"), notes=note)
