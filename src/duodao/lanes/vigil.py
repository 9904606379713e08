"""Who holds the hub: while calls run, a native thread asks it for a sign of life, and sees where its thread stands.

    native thread ── async ──► hub ── `_sign` released ──► it goes on
        └── no sign for STUCK: note the stack, and whose call it is; when the sign comes, the lane tells the user
            └── that call's time is over: `hung`, which ends the process: nothing else can end it
                └── C code that keeps the GIL keeps this thread from running, too: then the kernel's timer strikes

Nothing here may touch what gevent has patched: in this thread it would make a second hub. Without a call in flight the
thread is parked and no timer runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import clock_gettime, monotonic, perf_counter, pthread_getcpuclockid
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
"""Seconds beyond a call's time-out until the process that it holds is ended; the kernel's timer has twice as many."""
_SHOWN = 3
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep

_GEVENT = os.path.dirname(os.path.abspath(gevent.__file__)) + os.sep

Stack: TypeAlias = "tuple[tuple[str, int, str], ...]"
"""Frames as (file, line, function)."""

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
        self._timer: _Kill | None = None

    def begin(self) -> None:
        """Calls are about to run. In the hub's thread."""
        if not self._parked:
            return
        self._parked = False
        self._rose = monotonic()
        if not self._started:
            self._started = True
            self._async.start(self._answer)
            if self._limit is not None:
                with contextlib.suppress(OSError, AttributeError):
                    self._timer = _Kill()
            self._ended.acquire()
            _start(self._run, ())
        else:
            self._bell.release()

    def end(self) -> None:
        """End the thread, and wait for it."""
        self._closing = True
        if self._started:
            with contextlib.suppress(RuntimeError):
                self._bell.release()
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
            if self._timer is not None:
                self._timer.close()
            self._ended.release()

    def _park(self) -> None:
        if self._timer is not None:
            self._timer.arm(0.0)
        self._parked = True
        if self._busy():  # it began in between, and may have seen us not parked
            self._parked = False
        elif not self._closing:
            self._bell.acquire()
            self._awake(self._rose)

    def _awake(self, due: float) -> None:
        """C code that keeps the GIL lets nobody ask: it is seen by how late this thread is, and by the CPU it took."""
        late = monotonic() - due
        spent, self._spent = self._spent, clock_gettime(pthread_getcpuclockid(self._main))
        if late > STUCK and self._spent - spent > late / 2:
            stack, hand = self._look()
            if hand is not None:
                self._missed = Held(late, stack)

    def _ask(self) -> None:
        self._asked = asked = monotonic()
        self._async.send()
        while True:
            if self._timer is not None and self._limit is not None:
                self._timer.arm(self._limit + 2 * MERCY)
            if self._sign.acquire(True, STUCK) or self._closing:  # closing: the hub's thread waits for this one
                return
            stack, hand = self._look()
            if self._asked is None or (hand is None and _idle(stack)):
                continue  # it answered as we looked, or has its turn at last
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
    """Is it the hub itself, or one of us, that has to wait for a CPU or for the lane to read?"""
    return not stack or stack[-1][0].startswith((_OURS, _GEVENT))


class _Kill:
    """A timer of the kernel's that kills this process: it strikes whoever has the GIL. OSError where there is none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        event = (ctypes.c_int * 16)()  # struct sigevent: value (8 bytes), signo, notify (0: a signal)
        event[2] = signal.SIGKILL
        self._timer = ctypes.c_void_p()
        if self._libc.timer_create(1, event, ctypes.byref(self._timer)):  # CLOCK_MONOTONIC
            raise OSError(ctypes.get_errno(), "no timer")

    def arm(self, seconds: float) -> None:
        """Strike in so many seconds; 0 for never."""
        whole = int(seconds)
        spec = (ctypes.c_long * 4)(0, 0, whole, int((seconds - whole) * 1e9))
        self._libc.timer_settime(self._timer, 0, spec, None)

    def close(self) -> None:
        """Give it back."""
        self._libc.timer_delete(self._timer)
