"""Who holds the hub: while calls run, a native thread asks it for a sign of life, and sees where its thread stands.

    native thread ── async ──► hub ── `_sign` released ──► it goes on
        └── no sign for STUCK: note the stack, and whose call it is; when the sign comes, the lane tells the user
            └── that call's time is over: `hung` delivers it, and the process is killed: nothing else ends such a call

C code that keeps the GIL keeps this thread from running, too. It is noticed afterwards, by how late this thread is and
by the CPU it took; one that never ends is the business of whoever runs this process (hosting.Host.overdue).

Nothing here may touch what gevent has patched: in this thread it would make a second hub. Without a call in flight the
thread is parked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from types import FrameType
from typing import Any, TypeAlias

import gevent
from gevent.monkey import get_original

from duodao.lanes.base import Work

STUCK = 0.100
"""Seconds without a sign of life before the user is told."""
PERIOD = 0.100
"""Seconds between two questions."""
MERCY = 0.5
"""Seconds beyond a call's time-out until the process that it holds is ended."""
_SHOWN = 3
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep

_GEVENT = os.path.dirname(os.path.abspath(gevent.__file__)) + os.sep

Stack: TypeAlias = "tuple[tuple[str, int, str], ...]"
"""Frames as (file, line, function)."""

_clock_of = getattr(time, "pthread_getcpuclockid", None)
_allocate = get_original("_thread", "allocate_lock")
_start = get_original("_thread", "start_new_thread")
_ident = get_original("_thread", "get_ident")


@dataclass(frozen=True, slots=True)
class Held:
    """A hub that was held. stack: (file, line, function), the innermost last, as seen while it was."""

    seconds: float
    stack: Stack

    def where(self) -> str:
        """The stack, as tracebacks show it."""
        lines = [(file, line, function, None) for file, line, function in self.stack]
        return "".join(traceback.StackSummary.from_list(lines).format())

    def text(self, name: str) -> str:
        """One line for the user."""
        where = " < ".join(f"{function} ({file}:{line})" for file, line, function in self.stack[: -_SHOWN - 1 : -1])
        at = f", in {where}" if where else ""
        return (
            f"{name} held the hub of its worker for {self.seconds:.1f} s{at}, and nothing else ran there meanwhile: "
            "what computes, or waits in C code, belongs on lane='process' or 'thread'"
        )


class Vigil:
    """Made in the hub's thread. busy: is a call in flight? told: called in the hub, with what held it.

    hung: called in the native thread, before it ends the process, with the worker whose call's time is over.
    """

    def __init__(
        self,
        work: Work,
        hub: Any,
        busy: Callable[[], bool],
        told: Callable[[Held], None],
        hung: Callable[[Any, Held], None],
    ) -> None:
        self._limit = work.timeout
        self._busy = busy
        self._told = told
        self._hung = hung
        self._main = _ident()
        self._sign = _allocate()
        self._sign.acquire()
        self._bell = _allocate()  # released: go on, or end
        self._bell.acquire()
        self._ended = _allocate()
        self._parked = True
        self._closing = False
        self._started = False
        self._asked: float | None = None
        self._seen: Stack = ()
        self._missed: Held | None = None
        self._rose = 0.0
        self._spent = 0.0
        self._async = hub.loop.async_()
        self._async.ref = False

    def begin(self) -> None:
        """Calls are about to run. In the hub's thread."""
        if not self._parked:
            return
        self._parked = False
        self._rose, self._spent = monotonic(), self._cpu()
        if not self._started:
            self._started = True
            self._async.start(self._answer)
            self._ended.acquire()
            _start(self._run, ())
        else:
            self._bell.release()

    def end(self) -> None:
        """End the thread, and wait for it."""
        self._closing = True
        if self._started:
            for lock in (self._bell, self._sign):
                with contextlib.suppress(RuntimeError):
                    lock.release()
            self._ended.acquire()
            self._async.close()

    def _answer(self) -> None:
        """In the hub: a sign of life."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        seconds = monotonic() - asked
        seen, self._seen = self._seen, ()
        missed, self._missed = self._missed, None
        self._sign.release()
        if seen:
            self._told(Held(seconds, seen))
        elif missed is not None:
            self._told(missed)

    # In the native thread

    def _run(self) -> None:
        try:
            self._awake(self._rose)
            while not self._closing:
                self._ask()
                slept = monotonic()
                if self._bell.acquire(True, PERIOD):
                    continue
                self._awake(slept + PERIOD)
                if not self._busy():
                    self._park()
        finally:
            self._ended.release()

    def _park(self) -> None:
        self._parked = True
        if self._busy():  # it began in between, and may have seen us not parked
            self._parked = False
        elif not self._closing:
            self._bell.acquire()
            self._awake(self._rose)

    def _awake(self, due: float) -> None:
        """C code that keeps the GIL lets nobody ask: it is seen by how late this thread is, and by the CPU it took."""
        late = monotonic() - due
        spent, self._spent = self._spent, self._cpu()
        if late > STUCK and self._spent - spent > late / 4:
            stack, hand = self._look()
            if hand is not None:
                self._missed = Held(late, stack)

    def _cpu(self) -> float:
        """Seconds that the hub's thread has run."""
        return 0.0 if _clock_of is None else time.clock_gettime(_clock_of(self._main))

    def _ask(self) -> None:
        self._asked = asked = monotonic()
        self._async.send()
        while not self._sign.acquire(True, STUCK) and not self._closing:  # closing: the hub's thread waits for us
            stack, hand = self._look()
            if self._asked is None or _idle(stack):
                continue  # it answered as we looked, or it only lacks a CPU, or the lane reads nothing now
            self._seen = stack
            if self._limit is None:
                continue
            late = monotonic() - asked if hand is None else perf_counter() - hand.began
            if late > self._limit + MERCY:
                try:
                    if hand is not None:
                        self._hung(hand, Held(late, stack))
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)

    def _look(self) -> tuple[Stack, Any]:
        """Where the hub's thread stands, and which worker's call that is."""
        frame: FrameType | None = sys._current_frames().get(self._main)
        stack = []
        hand = None
        while frame is not None:
            code = frame.f_code
            if code.co_name == "_labour" and code.co_filename.startswith(_OURS):
                hand = frame.f_locals.get("me")
                break
            stack.append((code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        return tuple(stack[::-1]), hand


def _idle(stack: Stack) -> bool:
    """Is it in none of the user's code?"""
    return not stack or stack[-1][0].startswith((_OURS, _GEVENT))
