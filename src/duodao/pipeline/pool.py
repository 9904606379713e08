"""duodao.Pool: an executor of the standard library's kind, on a lane.

Pool ─► Crew (threads)  Courier (processes)  OnLoop (coroutines, inline): each a Roster that queues and runs
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from duodao.errors import UsageError
from duodao.lanes.choose import default_workers
from duodao.pipeline.roster import Roster

if TYPE_CHECKING:
    import concurrent.futures

T = TypeVar("T")

LANES = ("thread", "process", "coroutine", "inline")
_numbers = itertools.count(1)


class Pool(Executor):
    """Runs calls on threads, processes or coroutines that are made when needed, reused, and let go when idle.

    A `concurrent.futures.Executor` in every respect; its futures work with `as_completed`, `wait`,
    `asyncio.wrap_future` and `loop.run_in_executor`. Beyond the standard library:

    - Calls that submit to their own pool and wait never starve: a waiting thread runs the call itself, and a circle of
      waits raises errors.Deadlock in one of its calls.
    - A worker process that dies fails the call in it, with errors.WorkerDied; the pool goes on, and no call runs twice.
    - Calls reach processes by value where need be: lambdas, closures, functions of `__main__`.

    workers: calls at a time. None, by lane: thread: 8 per CPU, at most 64; process: one per CPU; coroutine: 1000;
    inside of a worker of ours 8, 1, and 1000 per CPU. A CPU is what this process may use, by cgroup and affinity.
    lane: "thread"; "process"; "coroutine" (async functions, on one event loop); "inline" (in `submit` itself, for
    tests). initializer: called with `initargs` in each worker before its first call; when it raises, the pool is
    broken. name: of the pool in messages, and of its threads. idle: seconds until an idle worker is let go. max_calls:
    so many a worker process runs before another takes its place, None for no limit.

    Raises UsageError for a wrong option. Source: M30, M31; https://docs.python.org/3/library/concurrent.futures.html
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        lane: str = "thread",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        name: str | None = None,
        idle: float = 10.0,
        max_calls: int | None = None,
    ) -> None:
        if lane not in LANES:
            raise UsageError(f"lane={lane!r}: a pool has no such lane (valid: {', '.join(LANES)})")
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise UsageError(f"workers={workers!r}: a whole number of at least 1 is needed, or None for the default")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if not isinstance(initargs, Iterable):
            raise UsageError(f"initargs={initargs!r}: a tuple of arguments for the initializer is needed")
        if not isinstance(idle, (int, float)) or not idle >= 0:
            raise UsageError(f"idle={idle!r}: seconds are needed, 0 or more")
        if max_calls is not None and (lane != "process" or not isinstance(max_calls, int) or max_calls < 1):
            raise UsageError(f"max_calls={max_calls!r}: it is for lane='process', and a whole number from 1")
        if name is not None and not isinstance(name, str):
            raise UsageError(f"name={name!r}: a text is needed")
        self.name = name or f"Pool-{next(_numbers)}"
        self.lane = lane
        self.workers = default_workers(lane) if workers is None else workers
        self._roster = _roster(lane, self.workers, self.name, initializer, initargs, idle, max_calls)
        self._end = weakref.finalize(self, _drop, self._roster)
        self._end.atexit = False  # at exit the rosters end themselves, and finish what was submitted

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run `fn(*args, **kwargs)` on a worker. Returns its future.

        Raises RuntimeError after `shutdown`, and in a forked copy; BrokenExecutor after a failed initializer.
        """
        return self._roster.submit((fn, args, kwargs))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """The values of `fn` over the zipped iterables, in their order; all are submitted at once.

        timeout: seconds from now until the last value, then TimeoutError. chunksize: accepted; what travels together
        is decided by the pool. buffersize: at most so many are submitted and not yet taken, the iterables are read as
        values are taken. A call that raises ends the iteration with its error, and cancels what has not begun.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is None:
            return super().map(fn, *iterables, timeout=timeout)
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        inputs = zip(*iterables, strict=False)
        ends = None if timeout is None else monotonic() + timeout
        first = deque(self.submit(fn, *args) for args in itertools.islice(inputs, buffersize))
        return self._lazily(fn, inputs, first, ends)

    def _lazily(
        self,
        fn: Callable[..., T],
        inputs: Iterator[tuple[Any, ...]],
        futures: deque[concurrent.futures.Future[T]],
        ends: float | None,
    ) -> Iterator[T]:
        try:
            while futures:
                futures[0].exception(None if ends is None else max(0.0, ends - monotonic()))  # waits for it
                for args in itertools.islice(inputs, 1):
                    futures.append(self.submit(fn, *args))
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let go the workers once the submitted ones have ended. Idempotent.

        wait: return when all of that has happened. cancel_futures: cancel what has not begun. Raises Deadlock where a
        call waits, directly or not, for the thread that waits here.
        """
        self._roster.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill_workers(self) -> None:
        """Shut down at once: cancel what has not begun, and kill the processes that are in calls (errors.WorkerDied).

        Calls on threads and event loops can't be killed; they run to their end. Idempotent.
        """
        self._roster.kill()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.name} can't be sent to another process: its workers and futures are here. Submit from the process "
            "that made it, or make a pool inside of the call"
        )

    def __repr__(self) -> str:
        state = "broken" if self._roster.broken else "shut down" if self._roster.closed else "open"
        return f"<Pool {self.name!r} lane={self.lane} workers={self.workers} {state}>"


def _roster(
    lane: str,
    workers: int,
    name: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    idle: float,
    max_calls: int | None,
) -> Roster:
    """Loads what the lane needs, and only that."""
    setup: dict[str, Callable[[], Any]] = {}
    if initializer is not None:
        from duodao.pipeline.apply import Initializer

        setup["initializer"] = Initializer(initializer, tuple(initargs))
    if lane == "thread":
        from duodao.pipeline.crew import Crew

        return Crew(workers, name, setup, idle)
    if lane == "process":
        from duodao.pipeline.courier import Courier

        return Courier(workers, name, setup, idle, max_calls)
    from duodao.pipeline.onloop import Inline, OnLoop

    return (OnLoop if lane == "coroutine" else Inline)(workers, name, setup, idle)


def _drop(roster: Roster) -> None:
    """The pool is gone; what it was given still runs."""
    roster.shutdown(wait=False, cancel_futures=False)
