"""The thread lane: whole batches go to threads made on demand; idle ones help with what a slow call holds up.

One lock, taken a few times per batch and never per item. An idle thread blocks on a C SimpleQueue, into which only as
many runs are put as threads are idle; the others wait in `_ready`. The watchdog is one more thread: it waits for the
earliest deadline, or without end while nothing runs, and never polls. Its deadlines: 20 ms after a batch began (what
has ended goes out, what has not begun is offered to other threads), and the calls' time-outs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections import deque
from contextvars import copy_context
from math import inf
from time import perf_counter
from typing import Any

from duodao.clock import SYSTEM
from duodao.errors import CallTimeout, Closed, SetupFailed
from duodao.lanes.base import PROMPT, Batch, Deliver, Failure, Result, Work, bind
from duodao.lanes.caught import caught
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs
from duodao.lanes.shares import Run, end_copy

FLOOR = 0.1
"""Seconds that threads with resources have to end their calls when the lane is closed, whatever the grace."""
HANDSHAKE = 2.0
"""Seconds that a thread has to close what `setup=` opened: the program may end next, and daemons with it."""


class _Worker:
    """One thread of the lane. lost: its call was given up, another thread has its place. closing: its resources."""

    __slots__ = ("call", "closing", "lost", "stack", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.call: Any = None
        self.stack: Any = None
        self.lost = False
        self.closing = False


class Threads:
    """Calls on up to `workers` daemon threads.

    Calls see the context variables as they were when the lane was made; each thread has its own copy.
    idle: seconds until a thread without work ends, None for as long as the lane is open.
    """

    name = "thread"
    target = 0.010
    depth = 2
    singly = False

    def __init__(self, work: Work, workers: int, idle: float | None = None, **_: Any) -> None:
        self.workers = workers
        self._work = work
        self._rest = idle
        self._context = copy_context()
        self._lock = threading.Lock()
        self._closed = False
        self._ready: deque[Run] = deque()
        self._idle = 0
        self._inbox: queue.SimpleQueue[Run | None] = queue.SimpleQueue()  # one entry per thread that was idle
        self._runs: dict[Run, None] = {}  # those that threads are in, oldest first
        self._threads: set[_Worker] = set()
        self._made = 0
        self._trouble: list[str] = []
        # The watchdog's. `_calls` is touched without the lock: a call belongs to whoever pops it.
        self._calls: dict[_Worker, tuple[Run, int, float]] = {}  # only with a time-out; oldest first
        self._due: deque[tuple[float, Run]] = deque()
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._wakes = inf  # when the watchdog looks next
        self._watchdog: threading.Thread | None = None

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Hand the batch to an idle thread, to a new one, or to the next that is free."""
        work = self._work
        items = batch.items if work.seed is None else list(zip(batch.items, batch.ids, strict=True))
        if not items:
            deliver(Result(batch, []))
            return
        run = Run(batch, deliver, items, shared=work.timeout is not None)
        with self._lock:
            if self._closed:
                raise Closed("this thread lane is closed")
            if self._watchdog is None and (work.timeout is not None or len(items) > 1):
                self._watchdog = threading.Thread(target=self._watch, name="duodao-thread-watchdog", daemon=True)
                self._watchdog.start()
            if self._offer(run):
                return
            if len(self._threads) < self.workers:
                self._enter(run)
                if self._hire(run):
                    return
                self._runs.pop(run, None)
            self._ready.append(run)

    def cancel(self, batch: Batch) -> None:
        """Drop what no thread has begun; calls that run go on, unheard."""
        with self._lock:
            for run in [run for run in (*self._ready, *self._runs) if run.batch is batch]:
                run.drop()

    def close(self, grace: float) -> None:
        """End the threads. One whose call still runs after `grace` seconds is left to end by itself, as a daemon."""
        with self._lock:
            self._closed = True
            for run in (*self._ready, *self._runs):
                run.drop()
            self._ready.clear()
            for _ in range(self._idle):
                self._inbox.put(None)
            self._idle = 0
            workers = list(self._threads)
        self._bell.put(True)
        self._await(workers, max(grace, FLOOR) if self._work.setup else grace)
        self._await([worker for worker in workers if worker.closing], HANDSHAKE)
        if self._watchdog is not None:
            _join(self._watchdog, None)
        with self._lock:
            trouble, self._trouble = self._trouble, []
        for text in trouble:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    @staticmethod
    def _await(workers: list[_Worker], seconds: float) -> None:
        ends = perf_counter() + seconds
        for worker in workers:
            if worker.thread is not None and worker.thread is not threading.current_thread():
                _join(worker.thread, max(0.0, ends - perf_counter()))

    # -- threads, under the lock --------------------------------------------------------------------------------------

    def _offer(self, run: Run) -> bool:
        """Give it to an idle thread."""
        if not self._idle:
            return False
        self._idle -= 1
        self._enter(run)
        self._inbox.put(run)
        return True

    def _enter(self, run: Run) -> None:
        run.inside += 1
        if run not in self._runs:
            self._runs[run] = None

    def _hire(self, run: Run) -> bool:
        """One more thread, which begins inside of `run`, and is counted there already; False when none can be had."""
        worker = _Worker()
        self._made += 1
        context = self._context.copy()
        worker.thread = threading.Thread(
            target=context.run, args=(self._main, worker, run), name=f"duodao-thread-{self._made}", daemon=True
        )
        self._threads.add(worker)
        try:
            worker.thread.start()
        except RuntimeError:  # no more threads on this machine: the others do the work, if there are any
            self._threads.discard(worker)
            run.inside -= 1
            if not self._threads:
                raise
            return False
        return True

    # -- one thread ---------------------------------------------------------------------------------------------------

    def _main(self, worker: _Worker, first: Run) -> None:
        run: Run | None = first
        del first
        try:
            while True:
                run = self._next() if run is None else run
                if run is None or not self._serve(worker, run):
                    return
                run = None
        finally:
            run = None
            if worker.stack is not None:
                worker.closing = True
                try:
                    worker.stack.close()
                except Exception as error:
                    self._trouble.append(f"closing a setup resource failed: {error!r}")
            with self._lock:
                self._threads.discard(worker)

    def _next(self) -> Run | None:
        with self._lock:
            while self._ready:
                run = self._ready.popleft()
                if not run.over:
                    self._enter(run)
                    return run
            if self._closed:
                return None
            for run in self._runs:
                if run.left():
                    run.inside += 1
                    return run
            self._idle += 1
        return self._await_run()

    def _await_run(self) -> Run | None:
        """What this idle thread is given; None: it must end."""
        if self._rest is None:
            return self._inbox.get()
        with contextlib.suppress(queue.Empty):
            return self._inbox.get(timeout=self._rest)
        with self._lock:
            if self._idle:  # so many runs fewer than idle threads were put
                self._idle -= 1
                return None
        return self._inbox.get()

    def _serve(self, worker: _Worker, run: Run) -> bool:
        """Run what is left of it. False when this thread must end."""
        if worker.call is None:
            try:
                self._open(worker)
            except SetupFailed as error:
                with self._lock:
                    self._threads.discard(worker)
                    run.over = True
                    self._runs.pop(run, None)
                run.deliver(Result(run.batch, [], fatal=error))
                return False
        if run.source is not None:
            self._quick(run, worker.call)
        while True:
            feed = run.feed
            if feed is not None:
                if len(run.out) > run.taken:
                    self._flush(run)  # the call during which the watchdog split the run
                if run.left() > 1 and not run.armed:
                    self._arm(run, perf_counter())
                if not self._share(worker, run, feed):
                    return False
            if self._leave(run):
                return True

    def _open(self, worker: _Worker) -> None:
        work = self._work
        resources, worker.stack = open_all(work.setup)
        worker.call = bind(work, resources) if work.seed is None else bind_pairs(work, resources, reseeds=False)

    def _quick(self, run: Run, call: Any) -> None:
        source, out = run.source, run.out
        if source is None:  # the watchdog was faster
            return
        run.mark = perf_counter()
        self._arm(run, run.mark)
        while True:
            try:
                for item in source:
                    out.append(call(item))  # a comprehension would lose the values before an error
                return  # noqa: TRY300 - it ends the loop, not the try
            except BaseException as error:
                run.errors[len(out)] = caught(error)  # before the value: who reads `out` looks here for it
                out.append(None)

    def _share(self, worker: _Worker, run: Run, feed: Any) -> bool:
        """Pull and time calls. False when the last one was given up meanwhile: its outcome is dropped here."""
        call, done, calls, limit = worker.call, run.done, self._calls, self._work.timeout
        began = perf_counter()
        for position, item in feed:
            if limit is not None:
                calls[worker] = (run, position, began)
                if self._wakes > began + limit:
                    self._bell.put(True)
            failure = None
            try:
                value = call(item)
            except BaseException as error:
                value, failure = None, caught(error)
            end_copy()
            ended = perf_counter()
            if limit is not None and calls.pop(worker, None) is None:
                return False
            if failure is not None:
                failure.seconds = ended - began
            done.append((position, value, failure, ended - began))
            if ended - began >= PROMPT:
                self._flush(run)
                ended = perf_counter()
            elif not run.armed and run.left():
                self._arm(run, ended)
            began = ended
        return True

    def _leave(self, run: Run) -> bool:
        """False when the watchdog split the run just now: there is more to do."""
        end_copy()
        now = perf_counter()
        with self._lock:
            if run.left() and not run.over:
                return False
            run.inside -= 1
            last = not run.inside
            # Others are still in: the watchdog will deliver what this thread did, if it has been asked to look.
            results = run.take(now) if last or not run.armed else ()
            if last:
                run.over = True
                self._runs.pop(run, None)
        for result in results:
            run.deliver(result)
        return True

    def _flush(self, run: Run) -> None:
        with self._lock:
            results = run.take(perf_counter())
        for result in results:
            run.deliver(result)

    # -- the watchdog -------------------------------------------------------------------------------------------------

    def _arm(self, run: Run, now: float) -> None:
        """Ask the watchdog to look at it in 20 ms."""
        with self._lock:
            if run.armed:
                return
            run.armed = True
            self._due.append((now + PROMPT, run))
        if self._wakes > now + PROMPT:
            self._bell.put(True)

    def _watch(self) -> None:
        while True:
            # Infinite before the look: a thread that adds a deadline after the look finds a later time here, and rings.
            self._wakes = inf
            now = perf_counter()
            with self._lock:
                if self._closed:
                    return
                wakes, results = self._look(now)
            for run, result in results:
                run.deliver(result)
            wakes = min(wakes, self._overtime(now))
            self._wakes = wakes
            del results
            SYSTEM.get(self._bell, None if wakes == inf else max(0.0, wakes - now))

    def _look(self, now: float) -> tuple[float, list[tuple[Run, Result]]]:
        """Attend to the runs that are due: when to look again, and what to deliver. Under the lock."""
        due = self._due
        results: list[tuple[Run, Result]] = []
        while due and (due[0][0] <= now or due[0][1].over):
            run = due.popleft()[1]
            run.armed = False
            if run.over:
                continue
            run.split()
            results += [(run, result) for result in run.take(now)]
            for _ in range(min(run.left(), self._idle + self.workers - len(self._threads))):
                if not self._offer(run):
                    run.inside += 1
                    self._hire(run)
        return (due[0][0] if due else inf), results

    def _overtime(self, now: float) -> float:
        """Give up the calls that ran too long; when the next one will have."""
        limit = self._work.timeout
        if limit is None:
            return inf
        for worker, (run, position, began) in self._calls.copy().items():
            if began + limit > now:
                return began + limit
            if self._calls.pop(worker, None) is not None:
                self._give_up(worker, run, position, now - began)
        return inf

    def _give_up(self, worker: _Worker, run: Run, position: int, seconds: float) -> None:
        name, limit = self._work.name, self._work.timeout
        error = CallTimeout(f"{name} ran longer than its time-out of {limit:g} s")
        notice = f"a call of {name} was given up after {limit:g} s; a thread can't be stopped: the call may still run"
        failure = Failure(error, "timeout", seconds)
        with self._lock:
            worker.lost = True
            self._threads.discard(worker)
            wanted = not run.over
            if not self._closed:
                self._hire(run)  # it takes the lost thread's place inside the run
        if wanted:
            result = Result(
                run.batch, [None], positions=[position], errors={0: failure}, seconds=seconds, notices=(notice,)
            )
            run.deliver(result)


def _join(thread: threading.Thread, seconds: float | None) -> None:
    with contextlib.suppress(RuntimeError):  # Ctrl-C came before it had started
        thread.join(seconds)
