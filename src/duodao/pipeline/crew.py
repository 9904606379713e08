"""A pool's threads: each takes calls from one queue until it has been idle for some seconds.

    submit ─► calls (C queue) ─► threads: lent by the thread lane, one stint each
                 └──────────────► a thread of the pool that waits for just this call runs it itself (help first)

A thread that waits for a call in a way that can't help (it runs already; a time-out; `concurrent.futures.wait`) lends
its place: one more thread may work meanwhile, and the surplus one ends after its call. So calls that wait for calls
never starve, and at most LENT places are lent: one more standard wait is refused with Deadlock.

Races closed:
  - A call is put as the last idle thread gives up: the thread looks into the queue again under the lock under which
    `submit` counts idle threads.
  - Two threads want one call: `take()` gives it to one of them; the other passes on.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from _thread import get_ident
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from duodao.clock import SYSTEM
from duodao.errors import Deadlock
from duodao.lanes.base import Batch, Lane, Result, Work
from duodao.lanes.choose import make
from duodao.pipeline.future import Call, Future
from duodao.pipeline.roster import Roster
from duodao.sync import graph

LENT = 256
"""Places that may be lent at a time; each is a thread."""

_END: Any = object()


class Crew(Roster):
    """The thread lane of a pool. workers: calls at a time; idle: seconds until an idle thread ends."""

    def __init__(self, workers: int, name: str, setup: dict[str, Callable[[], Any]], idle: float) -> None:
        super().__init__(workers, name)
        self._calls: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._seconds = idle
        self._idle = 0
        self._count = 0
        self._most = workers
        self._lent = 0
        self._blocked: dict[int, list[Any]] = {}  # id of a waiter -> it, its futures, has it lent
        self._running: dict[int, bool] = {}  # thread -> is it in a call
        self._names: list[int] = []
        work = Work(self._stint, "the threads of a pool", setup=setup)
        self._lane: Lane = make("thread", work, workers + LENT, idle=0.0)

    def submit(self, call: Call) -> Future:
        """Queue a call, and start a thread for it where none is idle."""
        future = Future(self, call)
        with self._lock:
            if not self.open:
                self.refuse()
            self._calls.put(future)
            hire = self._calls.qsize() > self._idle and self._hire()
        if hire:
            try:
                self._start()
            except RuntimeError:  # no more threads here: those that there are will do
                if not self._count:
                    future.cancel()
                    raise
        return future

    def _hire(self) -> bool:
        """Count one more thread, if there may be one. Under the lock."""
        if self._count >= self._limit():
            return False
        self._count += 1
        return True

    def _limit(self) -> int:
        return self._most + min(self._lent, LENT)

    def _start(self) -> None:
        batch = Batch(range(1), [None])
        try:
            self._lane.start(batch, self._ended)
        except BaseException:
            self._lane.cancel(batch)
            with self._lock:
                self._count -= 1
            raise

    def _ended(self, result: Result) -> None:
        """A stint is over, or could not begin."""
        error = result.fatal
        if error is None and result.errors:
            error = result.errors[0].error
        if error is not None:
            with self._lock:
                self._count -= 1
            self.fail(error)
        self.changed()

    def drop(self) -> list[Future]:
        """Take what no thread has begun."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                future = self._calls.get_nowait()
                if future is not _END:
                    found.append(future)
        self._send_home()
        return found

    # -- one thread ---------------------------------------------------------------------------------------------------

    def _stint(self, _: Any, **__: Any) -> None:
        me = get_ident()
        number = self._take_number()
        threading.current_thread().name = f"{self.name}_{number}"
        running, calls = self._running, self._calls
        running[me] = False
        counted = True
        try:
            while True:
                future = self._rest()
                if future is _END:
                    counted = False
                    return
                running[me] = True
                future.run(me)
                while not calls.empty() and self._count <= self._limit():
                    try:
                        future = calls.get_nowait()
                    except queue.Empty:
                        break
                    if future is _END:
                        break
                    future.run(me)
                running[me] = False
                del future
                if self._surplus():
                    counted = False
                    return
        finally:
            del self._running[me]
            with self._lock:
                self._names.append(number)
                self._count -= counted

    def _take_number(self) -> int:
        with self._lock:
            if self._names:
                self._names.sort()
                return self._names.pop(0)
            return len(self._running)

    def _rest(self) -> Any:
        """The next call, waited for; the end after `idle` seconds without one, and when the pool is closed."""
        while True:
            with self._lock:
                if self.closed and self._calls.empty():
                    self._count -= 1
                    self._send_home()
                    return _END
                self._idle += 1
            found = SYSTEM.get(self._calls, self._seconds)
            with self._lock:
                self._idle -= 1
                if found is not None and found is not _END:
                    return found
                if self._calls.empty():
                    self._count -= 1
                    if self.closed:
                        self._send_home()
                    return _END

    def _surplus(self) -> bool:
        """End this thread, which stood in for one that goes on now?"""
        if self._count <= self._limit():
            return False
        with self._lock:
            surplus = self._count > self._limit()
            self._count -= surplus
            return surplus

    def _send_home(self) -> None:
        """Wake an idle thread, which wakes the next."""
        if self._idle:
            self._calls.put(_END)

    # -- those that wait ----------------------------------------------------------------------------------------------

    def attend(self, future: Future, timeout: float | None) -> None:
        """Help first: a thread of ours runs the call that it waits for itself. Where it can't (a time-out, or another
        runs it already) it lends its place meanwhile."""
        me = get_ident()
        if me not in self._running:
            future.park(timeout)
            return
        if timeout is None:
            future.run(me)
        if not future.done() and (timeout is None or timeout > 0):
            with self._lending():
                future.park(timeout)

    @contextlib.contextmanager
    def _lending(self) -> Iterator[None]:
        self._lend()
        try:
            yield
        finally:
            with self._lock:
                self._lent -= 1

    def _lend(self) -> None:
        with self._lock:
            self._lent += 1
            hire = not self._calls.empty() and self._hire()
        if hire:
            with contextlib.suppress(RuntimeError):
                self._start()

    def installed(self, waiter: object, future: Future) -> None:
        """A thread is about to wait by the standard library's means, where it can't help: while one of the futures had
        not begun, it lends its place, until it has left them all."""
        if get_ident() not in self._running:
            return
        with self._lock:
            entry = self._blocked.setdefault(id(waiter), [waiter, 0, False])
            entry[1] += 1
            lends = future.call is not None and not entry[2]
            if lends and self._lent >= LENT:
                del self._blocked[id(waiter)]
                raise Deadlock(
                    f"{LENT} threads of {self.name} wait for calls that none is left to run: wait by future.result()"
                )
            entry[2] = entry[2] or lends
        if lends:
            self._lend()

    def removed(self, waiter: object) -> None:
        """It waits for one future fewer."""
        with self._lock:
            entry = self._blocked.get(id(waiter))
            if entry is not None:
                entry[1] -= 1
                if not entry[1]:
                    del self._blocked[id(waiter)]
                    self._lent -= entry[2]

    def resolvers(self, future: Future) -> Sequence[graph.Unit] | None:
        """Of a queued call: any of the threads, when all are in calls."""
        if future.call is None or self._idle:
            return None
        running = dict(self._running)
        full = self._count >= self._limit() and len(running) == self._count and all(running.values())
        return tuple(running) if full else None

    def busy(self) -> Sequence[graph.Unit]:
        """The threads that are in calls."""
        return [ident for ident, inside in list(self._running.items()) if inside]

    def over(self) -> bool:
        """Has the last thread ended? While calls are queued there is one."""
        return not self._count

    # -- the end ------------------------------------------------------------------------------------------------------

    def wind_down(self) -> None:
        """No more will be submitted: threads end when the queue is empty."""
        with self._lock:
            self._send_home()

    def dismiss(self, seconds: float) -> None:
        """The last step: nothing runs any more."""
        self._lane.close(seconds)
