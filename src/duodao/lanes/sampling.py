"""The first calls of `auto`: they run on one worker, are measured there, and end with a choice.

    engine ──take(batch)──► sampler: one worker of the thread or process lane, running Metered(function)
                               │ results                        ▲ looks at the call in work after 50 ms
                               ▼                                │
                            judge (a thread): enough? ──► advise ──► adopt ──► deliver

A function that can't be shown to be harmless is tried out in a process, so that a crash is its item's error.

Invariants:
  1. A sampled result is delivered, never thrown away. Only one that can't be pickled back is made once more, here.
  2. What is learned from samples belongs to the judge's thread; the engine's thread only hands batches over.
  3. The judge ends when the lane is chosen and the last sample is in, or when it is closed.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from typing import TYPE_CHECKING, Any

from duodao.clock import SYSTEM
from duodao.cost.advise import LIMIT, Advice, Terms, advise, enough, figures
from duodao.cost.sample import Board, Cost, Metered, Sampled
from duodao.cost.trust import trusted
from duodao.errors import NotPicklable
from duodao.lanes.base import Batch, Deliver, Failure, Lane, Result, Work
from duodao.lanes.shipping import ROUNDS, first_line, shipping, unsendable

if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 5
"""Calls that failed after which the choice is made without them."""
PATIENCE = 1.0
"""Seconds between looks at a worker that hasn't begun a call: it is starting, or opening what `setup=` names."""
_END, _BEGUN = object(), object()


class Sampling:
    """Runs the first batches and learns from them.

    make(lane, work, workers) makes a lane; terms() says what there is to choose from; adopt(advice) takes the choice.
    """

    def __init__(
        self,
        work: Work,
        first: Batch,
        make: Callable[[str, Work, int | None], Lane],
        terms: Callable[[], Terms],
        adopt: Callable[[Advice], None],
    ) -> None:
        self._work = work
        self._make = make
        self._terms = terms
        self._adopt = adopt
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._out: dict[Batch, tuple[Deliver, Lane, set[int]]] = {}
        self._costs: list[Cost] = []
        self._failed = self._started = 0
        self._kept: list[tuple[Any, Any]] = []
        self._stays = self._chosen = ""
        self._warm = self._idle = self._decided = self._died = False
        self._grace = 0.0
        self._lanes: list[Lane] = []
        self._metered: list[Metered] = []
        self._sampler = self._open(self._safest(first))
        self._judge = threading.Thread(target=self._run, name="duodao-judge", daemon=True)
        self._judge.start()

    # -- the engine's side ---------------------------------------------------------------------------------------------

    def take(self, batch: Batch, deliver: Deliver) -> bool:
        """Run a batch as a sample; False when the lane is chosen already."""
        with self._lock:
            if self._decided:
                return False
            lane = self._sampler
            self._out[batch] = (deliver, lane, set(range(len(batch.items))))
            self._started += len(batch.items)
            idle, self._idle = self._idle, False
        if idle:
            self._inbox.put(_BEGUN)
        lane.start(batch, self._inbox.put)
        return True

    def cancel(self, batch: Batch) -> bool:
        """Stop a sample; False when the batch is none."""
        with self._lock:
            entry = self._out.pop(batch, None)
        if entry is None:
            return False
        entry[1].cancel(batch)
        self._inbox.put(_BEGUN)
        return True

    def close(self, grace: float) -> None:
        """End the judge and the samplers."""
        self._grace = grace
        self._inbox.put(_END)
        self._judge.join()

    # -- where samples run ---------------------------------------------------------------------------------------------

    def _safest(self, first: Batch) -> str:
        work, lanes = self._work, self._terms().lanes
        if "thread" in lanes and work.timeout is None and not work.setup:
            if trusted(work.function, *work.common.values(), items=first.items):
                return "thread"
        elif "inline" in lanes and "process" not in lanes:
            return "inline"
        self._stays = unsendable(self._work)
        if not self._stays and "process" in lanes:
            return "process"
        return "thread" if "thread" in lanes else "inline"

    def _open(self, lane: str) -> Lane:
        board = Board.shared() if lane == "process" else Board()
        metered = Metered(self._work.function, board)
        sampler = self._make(lane, dataclasses.replace(self._work, function=metered), 1)
        self._metered.append(metered)
        self._lanes.append(sampler)
        self._warm = self._warm or lane == "process"
        return sampler

    # -- the judge's side ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait: float | None = LIMIT
        try:
            while True:
                entry = SYSTEM.get(self._inbox, wait)
                if entry is _END:
                    break
                if entry is None:
                    wait = self._look(LIMIT if wait is None else wait)
                elif entry is _BEGUN:
                    wait = LIMIT
                else:
                    self._learn(entry)
                    wait = LIMIT
                if self._decided:
                    wait = None
                    with self._lock:
                        if not self._out:
                            break
        except Exception as error:  # whatever a user's object does when it is pickled must not leave the engine waiting
            self._fail(error)
        finally:
            self._close_samplers(self._grace)

    def _learn(self, result: Result) -> None:
        """Take in what a sampler delivered, and pass it on."""
        with self._lock:
            entry = self._out.get(result.batch)
        if entry is None:
            return
        deliver, _, left = entry
        if result.fatal is not None:
            if isinstance(result.fatal, NotPicklable) and not self._stays and "thread" in self._terms().lanes:
                self._stays = f"it can't travel to a process ({first_line(result.fatal)})"
                self._here(result.batch, sorted(left))
                return
            with self._lock:
                self._out.pop(result.batch, None)
            deliver(result)
            return
        positions = list(range(len(result.values)) if result.positions is None else result.positions)
        self._unwrap(result, positions)
        self._note_deaths(result)
        stuck = self._stuck(result, positions)
        if stuck:
            self._here(result.batch, [positions[at] for at in stuck])
            result = _without(result, positions, stuck)
            positions = list(result.positions or ())
        with self._lock:
            left.difference_update(positions)
            if not left:
                self._out.pop(result.batch, None)
        if not self._decided and self._ready():
            self._decide(None)
        if positions:
            deliver(result)

    def _ready(self) -> bool:
        if enough(self._costs, sum(cost.wall for cost in self._costs)):
            return True
        return self._failed > 0 and self._failed + len(self._costs) >= TRIES

    def _unwrap(self, result: Result, positions: list[int]) -> None:
        """Put the values in place of the Sampled, note what they cost, and correct the times for the meter's own."""
        batch, errors = result.batch, result.errors or {}
        each = []
        for at, got in enumerate(result.values):
            if type(got) is Sampled:
                result.values[at] = got.value
                self._costs.append(got.cost)
                each.append(got.cost.wall)
                if len(self._kept) < ROUNDS:
                    self._kept.append((batch.items[positions[at]], got.value))
            else:
                failure = errors.get(at)
                each.append(0.0 if failure is None else failure.seconds)
                if failure is not None and failure.kind != "lost" and not isinstance(failure.error, NotPicklable):
                    self._failed += 1
        if len(errors) < len(each):
            result.seconds = max(sum(each), 1e-7 * len(each))
            result.each = each if result.each is not None else None

    def _note_deaths(self, result: Result) -> None:
        """After a death only processes will do. Where the choice was made before it, the item must not come back."""
        for failure in (result.errors or {}).values():
            if failure.kind == "died":
                self._died = True
                if self._chosen not in ("", "process"):
                    failure.kind = "error"  # run once more, it would end the caller's own process

    def _stuck(self, result: Result, positions: list[int]) -> list[int]:
        """Indices of values whose input or result couldn't travel, where a thread can do it instead."""
        if self._stays or not result.errors or "thread" not in self._terms().lanes:
            return []
        stuck = [at for at, failure in result.errors.items() if isinstance(failure.error, NotPicklable)]
        if stuck and len(stuck) <= len(positions):
            self._stays = f"its {getattr(result.errors[stuck[0]].error, 'what', 'value')} can't travel to a process"
        return sorted(stuck)

    def _here(self, batch: Batch, positions: list[int]) -> None:
        """Run some positions of a batch again on a thread of this process."""
        with self._lock:
            deliver, _, left = self._out[batch]
            self._sampler = self._open("thread")
            self._out[batch] = (deliver, self._sampler, left)
        part = Batch([batch.ids[at] for at in positions], [batch.items[at] for at in positions], attempt=batch.attempt)

        def translate(result: Result) -> None:
            inner = range(len(result.values)) if result.positions is None else result.positions
            result.batch, result.positions = batch, [positions[at] for at in inner]
            self._inbox.put(result)

        self._sampler.start(part, translate)

    def _look(self, waited: float) -> float | None:
        """50 ms have passed: judge a call that still runs. Returns seconds until the next look."""
        with self._lock:
            if not self._out:
                self._idle = True
                return None
        running = self._metered[-1].board.running()
        if running is None:  # a process or what it needs is being opened
            return min(2 * waited, PATIENCE)
        left = LIMIT - running.wall - sum(cost.wall for cost in self._costs)
        if left > 0.001:
            return left
        self._decide(running)
        with self._lock:
            waiting = [(batch, deliver) for batch, (deliver, _, _) in self._out.items()]
        for batch, deliver in waiting:  # nothing came back, but there is room now: an empty delivery says so
            deliver(Result(batch, [], positions=()))
        return None

    def _decide(self, running: Cost | None) -> None:
        advice = self._choose(running)
        with self._lock:
            self._decided = True
            done = not self._out
        if done:  # before the choice is put to work: its first process can then be the sampler's
            self._close_samplers(0.0)
        self._chosen = advice.lane
        self._adopt(advice)
        self._kept.clear()

    def _choose(self, running: Cost | None) -> Advice:
        costs = [*self._costs, *([] if running is None else [running])]
        terms = self._terms()
        remaining = None if terms.remaining is None else max(0, terms.remaining - self._started)
        terms = dataclasses.replace(terms, remaining=remaining, warm=self._warm, stays=self._stays)
        if self._died:
            return Advice(
                "process", terms.workers or terms.cpus, "a call ended its process, which threads would not survive"
            )
        if not costs:
            lane = "process" if self._warm and not self._stays else "thread" if "thread" in terms.lanes else "inline"
            return Advice(lane, terms.workers or 0, f"its first {self._failed} calls failed, nothing could be measured")
        seen = figures(costs, unfinished=running is not None)
        advice = advise(seen, terms)
        if advice.lane == "process" and not terms.stays:
            stays, ship = self._shipping()
            advice = advise(seen, dataclasses.replace(terms, stays=stays, ship=ship))
        elif terms.stays and advice.lane != "process" and terms.stays not in advice.why:
            advice = dataclasses.replace(advice, why=f"{advice.why}; {terms.stays}")
        return advice

    def _shipping(self) -> tuple[str, float | None]:
        """(why nothing can travel or "", seconds per item it takes)."""
        if not self._warm:
            stays = unsendable(self._work)
            if stays:
                return stays, None
        if not self._kept:
            return "", None
        try:
            return "", shipping([item for item, _ in self._kept], [value for _, value in self._kept])[0]
        except NotPicklable as error:
            return f"its {error.what} can't travel to a process", None

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._decided = True
            waiting, self._out = list(self._out.items()), {}
        for batch, (deliver, _, _) in waiting:
            deliver(Result(batch, [], fatal=error))

    def _close_samplers(self, grace: float) -> None:
        for lane in self._lanes:
            lane.close(grace)
        for metered in self._metered:
            metered.close()
            metered.board.release()


def _without(result: Result, positions: list[int], dropped: list[int]) -> Result:
    """The result without some of its values; `dropped` are indices in `values`."""
    gone = set(dropped)
    keep = [at for at in range(len(result.values)) if at not in gone]
    errors: dict[int, Failure] = {
        new: result.errors[at] for new, at in enumerate(keep) if result.errors and at in result.errors
    }
    return Result(
        result.batch,
        [result.values[at] for at in keep],
        positions=[positions[at] for at in keep],
        errors=errors or None,
        seconds=result.seconds,
        each=None if result.each is None else [result.each[at] for at in keep],
        notices=result.notices,
    )
