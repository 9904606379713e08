"""One call that lives by itself: a thread or a coroutine that is started, asked to end, and tells how it ended.

    task ── start() ──► Thread | Coroutine | Process (apart.py)
         ◄─ over(self, Ending) ── once, from whichever thread sees the end

`unit` is who the call is in the graph of waits, None until it runs. A Single runs once; a restart makes another.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from duodao.errors import CallExited, Closed
from duodao.lanes.eventloop import launch, post
from duodao.lanes.foreign import is_a, set_cause, set_traceback
from duodao.lanes.interrupt import Cancelled, Interrupt, attach, detach
from duodao.sync import graph
from duodao.sync.units import reach

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
STOPPED = -int(signal.SIGTERM)
"""The exit code of a call that ended because it was asked to."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is run. name: of the thread, the asyncio task, and in messages."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)


@dataclass(slots=True)
class Ending:
    """How a call ended: with a value, with an error, or because it was asked to (stopped).

    code: what a process would have: 0, n of sys.exit(n), 1 after an exception, minus the signal that ended it.
    """

    value: Any = None
    error: BaseException | None = None
    stopped: bool = False
    code: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """What a call waits for without running. stuck: the whole of it waits, untimed, for our primitives alone.

    number tells this wait from others of the call; stacks: (thread, frames) of each that waits, for a message; reaches:
    which other processes could end its waits, by `units.reach`.
    """

    on: str
    stuck: bool
    number: int
    stacks: tuple[tuple[str, graph.Stack], ...] = field(default=())
    reaches: tuple[str, ...] = ("",)


class Single(Protocol):
    """A call of its own, on any lane. pid, native_id: as `Task` has them."""

    @property
    def unit(self) -> graph.Unit | None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def native_id(self) -> int | None: ...

    def start(self) -> None:
        """Begin. OSError, GuardDied or RuntimeError when no thread or process can be made; then it never ends."""
        ...

    def begun(self) -> bool:
        """After `start` raised: did it begin all the same (Ctrl-C), so that it will end and tell so?"""
        ...

    def cancel(self) -> None:
        """Ask it to end. Allowed at any time, from any thread."""
        ...

    def kill(self) -> None:
        """End it as hard as its lane can."""
        ...

    def blocked(self) -> Blocked | None:
        """What it waits for, if that is one of our primitives."""
        ...

    def unread(self) -> bool:
        """Has it told what was not taken in yet, so that `blocked` may be of the past?"""
        ...

    def join(self, seconds: float) -> None:
        """After its end: wait until its thread is gone, too."""
        ...


Over: TypeAlias = "Callable[[Any, Ending], object]"
"""Called with the Single itself and how it ended."""
Noted: TypeAlias = "Callable[[Any], object]"
"""Called with the Single itself when it begins a wait of our primitives without a time-out."""


def left(error: BaseException, name: str) -> Ending:
    """How a call ended that raised."""
    if is_a(error, (Cancelled, asyncio.CancelledError)):
        return Ending(stopped=True, code=STOPPED)
    try:
        if isinstance(error, SystemExit):
            return exited(error.code, name)
        trace = error.__traceback__
        if trace is not None:
            set_traceback(error, trace.tb_next)  # without our own frame, whose locals hold the error
    except BaseException as broken:  # its class lets nobody look at it
        set_cause(broken, error)
        error = broken
    return Ending(error=error, code=1)


def exited(code: object, name: str) -> Ending:
    """How a call ended that left by sys.exit(code)."""
    if code is None or code == 0:
        return Ending()
    number = code & 0xFF if isinstance(code, int) else 1
    return Ending(error=CallExited(f"task {name!r} left by sys.exit({code!r})"), code=number)


def users(stack: graph.Stack) -> graph.Stack:
    """A stack without the frames that are Duodao's, where it has others."""
    return tuple(frame for frame in stack if not frame[0].startswith(_OURS)) or stack


def ours(wait: graph.Wait | None) -> Blocked | None:
    """A wait in the graph, as a Single tells it."""
    if wait is None or wait.doom is not None:
        return None
    stuck = not wait.timed and not getattr(wait.ticket, "rung", False)  # rung: it goes on when it has a processor
    return Blocked(wait.on.describe(), stuck, wait.number, reaches=(reach(wait.on),))


class Thread:
    """The call in a daemon thread of its own, with a copy of the context variables in `context`."""

    def __init__(self, call: Call, over: Over, noted: Noted, context: Context) -> None:
        self.unit: graph.Unit | None = None
        self.pid: int | None = os.getpid()
        self._call = call
        self._over = over
        self._noted = noted
        self._stop: Interrupt | None = None
        self._asked = False
        self.thread = threading.Thread(target=context.copy().run, args=(self._main,), name=call.name, daemon=True)

    @property
    def native_id(self) -> int | None:
        """As the kernel numbers it."""
        return self.thread.native_id

    def start(self) -> None:
        launch(self.thread)

    def begun(self) -> bool:
        return self.thread.ident is not None or self.thread in threading.enumerate()  # also while it is being made

    def _main(self) -> None:
        ident = threading.get_ident()
        stop = self._stop = Interrupt(ident, f"task {self._call.name!r} was asked to end")
        attach(ident, self._listen)
        self.unit = ident
        try:
            if self._asked:
                stop.strike()
            ending = self._run()
        finally:
            detach(ident, self._listen)
        self._over(self, ending)

    def _run(self) -> Ending:
        try:
            return Ending(self._call())
        except BaseException as error:
            return left(error, self._call.name)

    def _listen(self, wait: graph.Wait | None) -> None:
        if self._stop is not None:
            self._stop.listen(wait)
        if wait is not None and not wait.timed:
            self._noted(self)

    def cancel(self) -> None:
        self._asked = True  # first: the thread that has no Interrupt yet looks here after it made one
        if self._stop is not None:
            self._stop.strike()

    def kill(self) -> None:
        self.cancel()
        if self._stop is not None:
            self._stop.insist()

    def blocked(self) -> Blocked | None:
        return None if self.unit is None else ours(graph.waiting(self.unit))

    def unread(self) -> bool:
        return False

    def join(self, seconds: float) -> None:
        if self.thread is not threading.current_thread() and self.thread.ident is not None:
            self.thread.join(seconds)


class Coroutine:
    """The call as a task of an event loop. A plain function runs on the loop, too, and blocks it while it does."""

    native_id: int | None = None
    pid: int | None = None

    def __init__(self, call: Call, over: Over, noted: Noted, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self.unit: graph.Unit | None = None
        self.loop = loop
        self.task: asyncio.Task[None] | None = None
        self._call = call
        self._over = over
        self._noted = noted
        self._context = context.copy()
        self._asked = False
        self._was_begun = False
        self._ending: Ending | None = None

    def start(self) -> None:
        if self.loop.is_closed():
            raise Closed(f"task {self._call.name!r} can't start: its event loop is closed")
        try:
            post(self.loop, self._begin)
        except BaseException:  # Ctrl-C: perhaps it was posted
            self._asked = True
            post(self.loop, self._begin)
            raise

    def begun(self) -> bool:
        return not self.loop.is_closed()

    def _begin(self) -> None:
        if self._was_begun:
            return
        self._was_begun = True
        if self._asked:
            self._over(self, Ending(stopped=True, code=STOPPED))
            return
        task = self.loop.create_task(self._main(), name=self._call.name, context=self._context)
        self.task = task
        self.unit = task
        attach(task, self._listen)
        task.add_done_callback(self._done)

    async def _main(self) -> None:
        try:
            value = self._call()
            if inspect.isawaitable(value):
                value = await value
        except BaseException as error:  # SystemExit, too: it would end the loop
            self._ending = left(error, self._call.name)
            if self._ending.stopped:
                raise
        else:
            self._ending = Ending(value)

    def _done(self, task: asyncio.Task[None]) -> None:
        detach(task, self._listen)
        if task.cancelled():  # perhaps before its first step
            self._ending = Ending(stopped=True, code=STOPPED)
        elif (error := task.exception()) is not None:
            self._ending = left(error, self._call.name)
        ending, self._ending = self._ending, None
        self._over(self, ending or Ending(stopped=True, code=STOPPED))

    def _listen(self, wait: graph.Wait | None) -> None:
        if wait is not None and not wait.timed:
            self._noted(self)

    def cancel(self) -> None:
        self._asked = True
        post(self.loop, self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    kill = cancel

    def blocked(self) -> Blocked | None:
        return None if self.unit is None else ours(graph.waiting(self.unit))

    def unread(self) -> bool:
        return False

    def join(self, seconds: float) -> None:
        """Its loop's thread is the owner's to end."""
