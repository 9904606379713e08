"""Tasks under one owner: none outlives the block that owns it, and no failure of one is lost.

    with Group() as group:                 owner ── start ──► Task ── Thread | Coroutine | Process (lanes)
        group.start(fn, ...)                 │                 │ over
                                             └── waits in lot ◄┴─ settling: first failure cancels all; settled: wake

The block's end waits for all tasks that are no daemons, then ends the daemons. Phases: new, open (the body runs),
closing (its end waits), over.
Source: asyncio.TaskGroup; N. J. Smith, https://vorpus.org/blog/notes-on-structured-concurrency-or-go-statement-considered-harmful/
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar, Unpack, overload

from duodao.clock import SYSTEM, Clock
from duodao.errors import Closed, UsageError
from duodao.lanes.apart import Exchange, Packed, Process
from duodao.lanes.eventloop import LoopThread, post
from duodao.lanes.foreign import add_note, is_a
from duodao.lanes.interrupt import Cancelled, Interrupt, attach, detach
from duodao.lanes.single import Call, Coroutine, Ending, Noted, Over, Single, Thread
from duodao.pipeline.callee import Runs, StartOptions, function_of, lane_of, name_of
from duodao.pipeline.closing import Closing, GroupEnd
from duodao.pipeline.restart import Intensity, Restart, as_restart
from duodao.pipeline.stall import Stall
from duodao.pipeline.task import Task
from duodao.pipeline.timers import Timers
from duodao.sync import graph, lot

T = TypeVar("T")
_numbers = itertools.count(1)


class Group:
    """Tasks as processes, threads and coroutines under one owner; `with` or `async with`, once.

    name: in messages. grace: seconds that a task has to end when it is asked to, before it is killed or given up.
    The block ends when all tasks that are no daemons have; the first failure, or an exception in the body, cancels the
    others. All failures arrive together in an ExceptionGroup, each with a note that names its task; KeyboardInterrupt
    arrives alone. Stalled is among them when all tasks waited, without a time-out, for what none of them could do.
    Tasks may start tasks, from threads and coroutines of this process. Source: M4, M6, M8, M9, M24.
    """

    def __init__(self, name: str | None = None, *, grace: float = 5.0) -> None:
        if name is not None and not isinstance(name, str):
            raise UsageError(f"Group(name={name!r}): a text is needed")
        if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not grace >= 0:
            raise UsageError(f"Group(grace={grace!r}): seconds from 0 are needed")
        self.name = name if name is not None else f"group-{next(_numbers)}"
        self.grace = grace
        self.clock: Clock = SYSTEM
        self.phase = "new"
        self.cancelled = False
        self.owner: graph.Unit | None = None
        self.live: dict[Task[Any], None] = {}
        self.failures: list[BaseException] = []
        self.notices: list[str] = []
        self.lock = threading.RLock()
        self.parked: lot.Parked = deque()
        self.end = GroupEnd(self)
        self.exchange: Exchange | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.loop_thread: LoopThread | None = None
        self.threads: list[Thread] = []  # those that may be alive
        self._many = 16
        self._pid = os.getpid()
        self._counted = itertools.count(1)
        self._interrupt: Interrupt | None = None
        self._timers: Timers | None = None
        self.stall = Stall(self)

    def __repr__(self) -> str:
        return f"<Group {self.name!r} {self.phase}, {len(self.live)} tasks>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} belongs to the process that made it: a task in a process can't start tasks in it, but "
            "may make a Group of its own"
        )

    @property
    def tasks(self) -> tuple[Task[Any], ...]:
        """Those that have not ended."""
        with self.lock:
            return tuple(self.live)

    @overload
    def start(self, fn: Callable[..., Awaitable[T]], /, *args: Any, **options: Unpack[StartOptions]) -> Task[T]: ...
    @overload
    def start(self, fn: Callable[..., T], /, *args: Any, **options: Unpack[StartOptions]) -> Task[T]: ...
    @overload
    def start(self, fn: Runs[T], /, *args: Any, **options: Unpack[StartOptions]) -> Task[T]: ...
    def start(
        self,
        fn: Any,
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        lane: str | None = None,
        name: str | None = None,
        daemon: bool = False,
        restart: str | Restart | None = None,
    ) -> Task[Any]:
        """Start `fn(*args, **kwargs)`, or `fn.run(*args, **kwargs)` of an object that has `run()`, and return its Task.

        lane: "process", "thread" or "coroutine"; None: "coroutine" for an async function, else "process". name: the
        function's and a number when None. daemon: the block does not wait for it, and ends it. restart: "on-failure",
        "always" or a Restart. UsageError for a wrong option or before `with`; Closed after the block, and from outside
        while the group is being cancelled; NotPicklable when the function or an argument can't travel to a process;
        OSError, GuardDied when no process can be made.
        """
        function = function_of(fn)
        lane = lane_of(lane, function)
        if name is not None and not isinstance(name, str):
            raise UsageError(f"name={name!r}: a text is needed")
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
            raise UsageError(f"kwargs={kwargs!r}: a mapping of keyword arguments, by name, is needed")
        plan = as_restart(restart)
        self._check_open()
        call = Call(function, args, dict(kwargs or {}), name or f"{name_of(fn)}-{next(self._counted)}")
        make = self._maker(lane, call)
        intensity = None if plan is None else Intensity(plan, self.clock)
        task: Task[Any] = Task(self, call.name, lane, make, daemon=bool(daemon), intensity=intensity)
        try:
            with self.lock:
                self._check_open()
                self.live[task] = None
            task.begin()
        except BaseException:
            if not task.begun():
                self._drop(task)
            raise
        return task

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(f"{self!r} belongs to process {self._pid}; make a Group of your own in this one")
        if self.phase == "new":
            raise UsageError(f"{self!r} owns nothing yet: start tasks inside of `with` or `async with`")
        if self.phase == "over":
            raise Closed(f"{self!r} has ended: no task can be started in it")
        if self.cancelled:
            own = graph.unit() in {self.owner, *(task.unit for task in self.tasks)}
            if own:  # the caller is being cancelled, too
                raise Cancelled(f"{self!r} is being cancelled", self._interrupt)
            raise Closed(f"{self!r} is being cancelled: no task can be started in it")

    def _maker(self, lane: str, call: Call) -> Callable[[Over, Noted], Single]:
        if lane == "thread":
            return partial(self._thread, call, context=copy_context())
        if lane == "coroutine":
            return partial(Coroutine, call, context=copy_context(), loop=self._coroutines())
        packed = Packed(call)
        with self.lock:
            if self.exchange is None:
                self.exchange = Exchange(f"duodao-exchange-{self.name}")
        return partial(Process, packed, exchange=self.exchange)

    def _thread(self, call: Call, over: Over, noted: Noted, context: Context) -> Thread:
        single = Thread(call, over, noted, context)
        with self.lock:
            self.threads.append(single)
            if len(self.threads) > self._many:
                self.threads = [each for each in self.threads if each.thread.is_alive() or each.thread.ident is None]
                self._many = 2 * len(self.threads) + 16
        return single

    def _coroutines(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None:
                self.loop_thread = LoopThread()
                self.loop = self.loop_thread.loop
            return self.loop

    # The owner's block

    def __enter__(self) -> Group:
        ident = threading.get_ident()
        self._open(ident)
        self._interrupt = Interrupt(ident, f"{self!r} is being cancelled")
        attach(ident, self._listen)
        return self

    # Any: it does swallow what `cancel` raised in the body, but `bool` makes checkers hold names of the block unbound.
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> Any:
        if os.getpid() != self._pid:  # a forked copy leaves the block: the tasks are the original's
            return False
        closing = Closing(self)
        closing.wait(partial(self._body_ended, error, closing))
        closing.release(self._timers)
        return closing.end(error)

    async def __aenter__(self) -> Group:
        task = asyncio.current_task()
        if task is None:
            raise UsageError("`async with Group()` needs a task: it was awaited outside of one")
        self._open(task)
        self.loop = task.get_loop()
        attach(task, self._listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> Any:
        if os.getpid() != self._pid:
            return False
        closing = Closing(self)
        await closing.await_(partial(self._body_ended, error, closing))
        closing.release(self._timers)
        return closing.end(error)

    def _open(self, owner: graph.Unit) -> None:
        with self.lock:
            if self.phase != "new":
                raise UsageError(f"{self!r} was used before: a Group has one block")
            self.phase = "open"
            self.owner = owner

    def _listen(self, wait: graph.Wait | None) -> None:
        """The owner begins a wait in the body, or ends one."""
        if self._interrupt is not None:
            self._interrupt.listen(wait)
        if wait is not None and not wait.timed:
            self.stall.look()

    def _body_ended(self, error: BaseException | None, closing: Closing) -> None:
        with self.lock:  # from here on nobody strikes the owner
            if self.phase != "open":
                return
            self.phase = "closing"
            interrupt = self._interrupt
            if self.owner is not None:
                detach(self.owner, self._listen)
        own = closing.is_own(error, interrupt) or (is_a(error, CancelledError) and self.cancelled)
        if error is not None and not own:
            closing.disturbed(error)

    # What tasks tell

    def fail(self, error: BaseException, note: str | None = None) -> None:
        """A failure: it cancels all tasks, and arrives at the block's end."""
        with self.lock:
            if not any(each is error for each in self.failures):
                self.failures.append(error)
                if note is not None:
                    add_note(error, note)
        self.cancel()

    def cancel(self) -> None:
        """Ask all tasks to end, and the body, where it waits for one of our primitives. No task can be started then."""
        with self.lock:
            first, self.cancelled = not self.cancelled, True
            live = list(self.live)
            if first and self.phase == "open":
                if self._interrupt is not None:
                    self._interrupt.strike()
                elif self.loop is not None:
                    post(self.loop, self._cancel_owner)
        for task in live:  # again, should a Ctrl-C have come between: none is asked twice
            task.cancel()

    def _cancel_owner(self) -> None:
        if self.phase == "open" and isinstance(self.owner, asyncio.Task):
            self.end.cancelled_owner = True
            self.owner.cancel()

    def settling(self, task: Task[Any], ending: Ending) -> None:
        """For tasks: one has ended; those who wait for it are told next."""
        error = ending.error
        if error is None or (is_a(error, CancelledError) and self.cancelled):
            return
        where = f", pid {task.pid}" if task.lane == "process" else ""
        self.fail(error, f"in task {task.name!r} ({task.lane}{where}) of group {self.name!r}")

    def settled(self, task: Task[Any], notice: str | None) -> None:
        """For tasks: it has ended, and its callbacks have run."""
        with self.lock:
            if notice is not None:
                self.notices.append(notice)
        self._drop(task)

    def _drop(self, task: Task[Any]) -> None:
        with self.lock:
            self.live.pop(task, None)
            quiet = not self.live or all(each.daemon for each in self.live)
        if quiet:
            lot.wake_all(self.parked)
            self.end.quiet.set()
        self.stall.look()

    def noted(self) -> None:
        """For tasks: one begins a wait without a time-out."""
        self.stall.look()

    def later(self, delay: float, function: Callable[[], Any]) -> None:
        """For tasks: call it in `delay` seconds, unless the group is over by then."""
        with self.lock:
            if self.phase == "over":
                return
            if self._timers is None:
                self._timers = Timers(f"duodao-timers-{self.name}", self.clock)
        self._timers.call(delay, function)

    def serves(self, thread: threading.Thread) -> bool:
        """For tasks: is this the thread that sees processes end?"""
        return self.exchange is not None and self.exchange.thread is thread

    def own_threads(self) -> set[threading.Thread | None]:
        """The threads that serve this group or are tasks of it."""
        with self.lock:
            found: set[threading.Thread | None] = {each.thread for each in self.threads}
            found.update(each.thread for each in (self.exchange, self._timers, self.loop_thread) if each is not None)
        return found
