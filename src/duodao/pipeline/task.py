"""A task of a Group: one call on its lane, over all its restarts, as its owner and anybody else sees it.

States: ready (not begun, or waiting for its restart, or for a core), running, blocked, ended; ended is for good.
Whoever takes `_ending` from None to a value, under the lock, ends the task: its call, or those who gave it up.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from duodao.errors import Broken, Deadlock, UsageError
from duodao.lanes.foreign import add_note, is_a, said
from duodao.lanes.single import STOPPED, Blocked, Coroutine, Ending, Noted, Over, Single
from duodao.pipeline.states import in_kernel, on_loop
from duodao.sync import graph, lot

if TYPE_CHECKING:
    from duodao.pipeline.restart import Intensity

T = TypeVar("T")
_LOG = logging.getLogger("duodao")
_STUBBORN = 1.0
"""Seconds that a thread or coroutine has to end when every wait of it raises, before it is given up."""


class Host(Protocol):
    """The task's group."""

    grace: float

    def later(self, delay: float, function: Callable[[], Any]) -> None:
        """Call it in `delay` seconds."""
        ...

    def settling(self, task: Task[Any], ending: Ending) -> None:
        """The task has ended; those who wait for it have not been told."""
        ...

    def settled(self, task: Task[Any], notice: str | None) -> None:
        """It has ended, and its callbacks have run."""
        ...

    def serves(self, thread: threading.Thread) -> bool:
        """Is this the thread that sees processes end?"""
        ...

    def noted(self) -> None:
        """A task begins a wait of our primitives without a time-out."""
        ...


class _End:
    """The task's end, as something that is waited for."""

    unsettled = True  # while it waits for its restart

    def __init__(self, task: Task[Any]) -> None:
        self._task = task

    def resolvers(self) -> tuple[graph.Unit, ...] | None:
        """The thread, asyncio task or process that it runs in; None while it does not run: anything may start it."""
        unit = self._task.unit
        return None if unit is None else (unit,)

    def describe(self) -> str:
        return f"task {self._task.name!r}"


class Task(Generic[T]):
    """What `Group.start` returns. Source: M4, M6, M9, M24.

    name, lane, daemon: as given. restarts: how often it was started again.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        lane: str,
        make: Callable[[Over, Noted], Single],
        *,
        daemon: bool,
        intensity: Intensity | None,
    ) -> None:
        self.name = name
        self.lane = lane
        self.daemon = daemon
        self.restarts = 0
        self._host = host
        self._make = make
        self._intensity = intensity
        self._lock = threading.RLock()
        self._single: Single | None = None
        self._seen: Single | None = None  # the last one, also after its end
        self._asked = False
        self._cancelled = False
        self._ending: Ending | None = None
        self._parked: lot.Parked = deque()
        self._callbacks: list[Callable[[Task[T]], object]] = []
        self._end = _End(self)

    def __repr__(self) -> str:
        what = "ended" if self._ending is not None else "alive" if self._single is not None else "ready"
        return f"<Task {self.name!r} {self.lane} {what}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} belongs to the process that started it and can't be pickled; send what it returns")

    # What it is

    @property
    def pid(self) -> int | None:
        """Of its process; of this program for a thread; None for a coroutine, and before it runs."""
        return None if self._seen is None else self._seen.pid

    @property
    def native_id(self) -> int | None:
        """Of its thread, as the kernel numbers it; of a process its main thread's, which is the pid."""
        return None if self._seen is None else self._seen.native_id

    @property
    def exitcode(self) -> int | None:
        """None until it has ended; 0; n of sys.exit(n); 1 after an exception; minus the signal that ended it.

        Threads and coroutines have the one a process would have; -15 when they ended because they were asked to.
        """
        return None if self._ending is None else self._ending.code

    @property
    def unit(self) -> graph.Unit | None:
        """Who it is in the graph of waits; None while it does not run."""
        single = self._single
        return None if single is None or self._ending is not None else single.unit

    @property
    def state(self) -> str:
        """ "ready", "running", "blocked" or "ended". Takes 10 ms when the kernel has to be asked."""
        return self._look()[0]

    @property
    def blocked_on(self) -> str | None:
        """What it waits for: a lock, queue or task by name; a call of the kernel; None when it isn't blocked."""
        return self._look()[1]

    def _look(self) -> tuple[str, str | None]:
        if self._ending is not None:
            return "ended", None
        single = self._single
        if single is None or single.unit is None:
            return "ready", None
        wait = single.blocked()
        if wait is not None:
            return "blocked", wait.on
        if isinstance(single, Coroutine):
            return on_loop(single)
        return in_kernel(single)

    def waiting(self) -> Blocked | None:
        """Its wait, if that is for one of our primitives."""
        single = self._single
        return None if single is None or self._ending is not None else single.blocked()

    def unread(self) -> bool:
        """Has its process told what was not taken in yet?"""
        single = self._single
        return single is not None and single.unread()

    def is_alive(self) -> bool:
        """Has it not ended? True also while it waits for a restart."""
        return self._ending is None

    # How it ends

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; False after `timeout` seconds. Deadlock when it can't end before the caller goes on.

        On an event loop use `await task`: this blocks the loop.
        """
        if (
            timeout is None
            and self.lane == "process"
            and self.is_alive()
            and self._host.serves(threading.current_thread())
        ):
            raise Deadlock(
                f"a callback waits for task {self.name!r}, whose end would be seen by the thread that it holds up; "
                "wait in a task, or in the group's body"
            )
        return bool(lot.wait(self._end, self._parked, self._over_now, timeout))

    async def ajoin(self, timeout: float | None = None) -> bool:
        """`join` for coroutines."""
        return bool(await lot.await_(self._end, self._parked, self._over_now, timeout))

    def result(self, timeout: float | None = None) -> T:
        """What it returned, or its exception raised; TimeoutError after `timeout` seconds.

        concurrent.futures.CancelledError when it ended because it was asked to.
        """
        if not self.join(timeout):
            raise TimeoutError(f"task {self.name!r} has not ended after {timeout} s")
        return self._outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Its exception, None when it returned; else as `result`."""
        if not self.join(timeout):
            raise TimeoutError(f"task {self.name!r} has not ended after {timeout} s")
        ending = self._ending
        assert ending is not None
        if ending.stopped:
            raise CancelledError(f"task {self.name!r} was asked to end")
        return ending.error

    def __await__(self) -> Generator[Any, None, T]:
        yield from self.ajoin().__await__()
        return self._outcome()

    def _outcome(self) -> T:
        ending = self._ending
        assert ending is not None
        if ending.stopped:
            raise CancelledError(f"task {self.name!r} was asked to end")
        if ending.error is not None:
            try:
                raise ending.error
            finally:
                del self, ending  # the error's traceback has this frame, and would be a circle with it
        return ending.value  # type: ignore[no-any-return]  # the call's own

    def _over_now(self) -> bool:
        return self._ending is not None

    def add_done_callback(self, function: Callable[[Task[T]], object]) -> None:
        """Call `function(task)` when it has ended: in the thread that saw the end, or here if it has ended before.

        For processes that is one thread for all of the group: it should be quick. What it raises is logged.
        UsageError for what can't be called. Source: M32.
        """
        if not callable(function):
            raise UsageError(f"add_done_callback({function!r}): a function that takes the task is needed")
        with self._lock:
            if self._ending is None:
                self._callbacks.append(function)
                return
        self._call(function)

    def _call(self, function: Callable[[Task[T]], object]) -> None:
        try:
            function(self)
        except BaseException as error:  # SystemExit, too: it would end the thread that sees the others' ends
            if is_a(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            _LOG.exception("a callback of task %r failed", self.name)

    # How it is ended

    def terminate(self) -> None:
        """Ask it to end: SIGTERM to a process; a coroutine is cancelled; a thread's waits on our primitives raise.

        It is then not restarted, and its end is no failure.
        """
        self._ask()

    def cancel(self) -> bool:
        """As `terminate`, and after the group's grace it is killed, or given up. False: it has ended before."""
        if self._cancelled:
            return self.is_alive()
        if not self._ask():
            return False
        self._host.later(self._host.grace, self.insist)
        self._cancelled = True  # last: a Ctrl-C in here, and it is asked again
        return True

    def kill(self) -> None:
        """End its process with SIGKILL, now. A thread can't be killed: all its waits raise from here on."""
        self._ask(hard=True)

    def _ask(self, *, hard: bool = False) -> bool:
        with self._lock:
            if self._ending is not None:
                return False
            self._asked = True
            single = self._single
        if single is None:  # it waits for its restart, or is about to begin and will see that it was asked
            self._conclude(Ending(stopped=True, code=STOPPED))
        elif hard:
            single.kill()
        else:
            single.cancel()
        return True

    def insist(self) -> None:
        """The grace is over: end it as hard as its lane can, and what can't be ended is given up a second later."""
        if self._ask(hard=True) and self.lane != "process":
            self._host.later(_STUBBORN, self.give_up)

    def give_up(self) -> None:
        """Count it as ended, whatever it does."""
        self._conclude(
            Ending(stopped=True, code=STOPPED),
            f"task {self.name!r} ({self.lane}) did not end when it was asked to and was given up; it may still run: "
            "let it wait in Duodao's primitives, where it can be asked to end, or run it in a process",
        )

    # Its life

    def begin(self) -> None:
        """For its group, once: run it. Raises what its lane raises when it can't."""
        with self._lock:
            if self._ending is None:
                self._single = self._seen = single = self._make(self._over, self._noted)
                single.start()

    def begun(self) -> bool:
        """For its group: after `begin` raised, will it end by itself all the same? Then it was asked to."""
        with self._lock:
            if self._single is None or not self._single.begun():
                return False
        self._ask()
        return True

    def _again(self) -> None:
        try:
            with self._lock:
                self.restarts += self._ending is None
                self.begin()
        except Exception as error:
            single = self._single
            if single is not None:
                self._over(single, Ending(error=error, code=1))

    def _noted(self, _: Single) -> None:
        self._host.noted()

    def _over(self, single: Single, ending: Ending) -> None:
        """Its call has ended: run it again, or let it be the end."""
        with self._lock:
            if single is not self._single or self._ending is not None:
                return  # it was given up
            delay = self._next(ending)
            if delay is not None:
                self._single = None
        if delay is None:
            self._conclude(ending)
            return
        what = "returned" if ending.error is None else f"failed ({said(ending.error)})"
        _LOG.warning("task %r %s; restart %d in %.3g s", self.name, what, self.restarts + 1, delay)
        self._host.later(delay, self._again)

    def _next(self, ending: Ending) -> float | None:
        intensity = self._intensity
        if intensity is None or self._asked or ending.stopped:
            return None
        delay = intensity.after(failed=ending.error is not None)
        if intensity.spent:
            plan = intensity.plan
            text = f"it had been restarted {plan.limit} times within {plan.period:g} s, the limit of restart="
            if ending.error is None:
                ending.error = Broken(f"task {self.name!r} keeps returning: {text}")
            else:
                add_note(ending.error, text)
        return delay

    def _conclude(self, ending: Ending, notice: str | None = None) -> None:
        with self._lock:
            if self._ending is not None:
                return
            self._ending = ending
            callbacks, self._callbacks = self._callbacks, []
        self._host.settling(self, ending)
        lot.wake_all(self._parked)
        try:
            for function in callbacks:
                self._call(function)
        finally:  # also after a Ctrl-C
            self._host.settled(self, notice)
