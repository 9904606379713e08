"""Who holds the hub: while calls run, a native thread looks where the hub's thread stands, ten times a second.

    native thread ── in the user's code? ── async ──► hub ── `_sign` released ──► it goes on
        └── no sign for STUCK, in one call: note its stack; when the sign comes, the lane tells the user
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
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import gevent
from gevent.monkey import get_original

from duodao.lanes.base import Work

STUCK = 0.200
"""Seconds that one call may hold the hub before the user is told."""
LOOK = 0.050
"""Seconds between two looks at a hub that doesn't answer."""
PERIOD = 0.100
"""Seconds between two looks otherwise."""
LONG = 2.0
"""Seconds after which it is said on stderr that a call holds the hub still."""
MERCY = 0.5
"""Seconds beyond a call's time-out until the process that it holds is ended."""
FEW = 50
"""Waits of the hub's thread in some 0.3 s, more of which show that nothing kept the GIL all the time."""
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

    def text(self, name: str, verb: str = "held") -> str:
        """One line for the user."""
        where = " < ".join(f"{function} ({file}:{line})" for file, line, function in self.stack[: -_SHOWN - 1 : -1])
        at = f", in {where}" if where else ""
        return (
            f"{name} {verb} the hub of its worker for {self.seconds:.1f} s{at}, and nothing else ran there meanwhile: "
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
        self._name = work.name
        self._limit = work.timeout
        self._said = False
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
        self._seen: tuple[float, Stack] | None = None
        self._missed: Held | None = None
        self._last = self._its = self._mine = 0.0
        self._switched = 0
        self._tid = threading.get_native_id()
        self._async = hub.loop.async_()
        self._async.ref = False

    def begin(self) -> None:
        """Calls are about to run. In the hub's thread."""
        if not self._parked:
            return
        self._parked = False
        self._last, self._its = monotonic(), sum(_sched(f"self/task/{self._tid}"))
        self._switched = _switches(self._tid)
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
        seen, self._seen = self._seen, None
        missed, self._missed = self._missed, None
        self._sign.release()
        if seen is not None:
            self._told(Held(monotonic() - seen[0], seen[1]))
        elif missed is not None:
            self._told(missed)

    # In the native thread

    def _run(self) -> None:
        try:
            self._awake(0.0)
            while not self._closing:
                if self._missed is not None or not self._look(monotonic()).is_idle:
                    self._ask()
                if self._bell.acquire(True, PERIOD):
                    continue
                self._awake(LOOK + PERIOD)
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
            self._awake(0.0)

    def _awake(self, waited: float) -> None:
        """C code that keeps the GIL lets nobody ask: this thread is late then, and the other one was busy all the time.

        Late for the GIL's sake, not for want of a CPU; and busy is also who waits for a CPU. Where many threads contend
        for the GIL all are late, but they give it up all the time.
        """
        now, last = monotonic(), self._last
        look = self._look(now)  # first: reading files lets the hub go on
        self._last = now
        mine, self._mine = self._mine, _sched("thread-self")[1]
        its, self._its = self._its, sum(_sched(f"self/task/{self._tid}"))
        late = now - last - waited - (self._mine - mine)
        switched, self._switched = self._switched, _switches(self._tid)
        kept = late > STUCK and self._its - its > 0.9 * late and self._switched - switched < FEW
        if kept and look.hand is not None and not look.is_idle and not look.is_import:
            self._missed = Held(late, look.stack)

    def _ask(self) -> None:
        """Ask, and look until the answer comes. Who is seen twice holds the hub; a thousand that each take a
        millisecond of the same turn don't."""
        self._asked = asked = monotonic()
        last, first = _Look(asked, (), None, None, self._cpu()), None
        self._async.send()
        while not self._sign.acquire(True, LOOK) and not self._closing:  # closing: the hub's thread waits for us
            look = self._look(monotonic())
            self._last = look.at
            if self._asked is None:  # it answered as we looked
                continue
            if first is None or look.is_import or not look.is_same(first):
                first = look if look.is_import else look._replace(at=last.at, cpu=last.cpu)
            last = look
            seconds = look.at - first.at
            if look.is_idle or seconds < STUCK or (look.cpu - first.cpu < STUCK / 2 and self._is_queued()):
                continue
            self._seen = first.at, look.stack
            if seconds > LONG and not self._said:
                self._said = True  # by now; `told` comes when it ends, which may be never
                print("duodao:", Held(seconds, look.stack).text(self._name, "has held"), file=sys.stderr)
            if self._limit is not None and seconds > MERCY:
                called = seconds if look.hand is None else perf_counter() - look.hand.began
                if called > self._limit + MERCY:
                    self._kill(look, called)

    def _kill(self, look: _Look, seconds: float) -> None:
        try:
            if look.hand is not None:
                self._hung(look.hand, Held(seconds, look.stack))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    def _look(self, now: float) -> _Look:
        """Where the hub's thread stands, and which worker's call that is."""
        frame: FrameType | None = sys._current_frames().get(self._main)
        stack = []
        root: Any = None
        hand = None
        while frame is not None:
            code = frame.f_code
            if code.co_name == "_labour" and code.co_filename.startswith(_OURS):
                hand = frame.f_locals.get("me")
                root = hand, frame.f_locals.get("position")
                break
            root = frame
            stack.append((code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        return _Look(now, tuple(stack[::-1]), root, hand, self._cpu())

    def _cpu(self) -> float:
        """Seconds that the hub's thread has run."""
        return 0.0 if _clock_of is None else time.clock_gettime(_clock_of(self._main))

    def _is_queued(self) -> bool:
        """Could the hub's thread run, if it had a CPU?"""
        with contextlib.suppress(OSError), open(f"/proc/self/task/{self._tid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"R"
        return False


class _Look(NamedTuple):
    """What was seen. at: when. root: equal in two looks when it is the same call. cpu: seconds the thread had run."""

    at: float
    stack: Stack
    root: Any
    hand: Any
    cpu: float

    def is_same(self, other: _Look) -> bool:
        return self.root is other.root or (self.hand is not None and self.root == other.root)

    @property
    def is_idle(self) -> bool:
        """Is it in none of the user's code, but in the hub, or in what sends outcomes?"""
        return not self.stack or self.stack[-1][0].startswith((_OURS, _GEVENT))

    @property
    def is_import(self) -> bool:
        """Modules are loaded once: no call is to be named for it."""
        return any(file.startswith("<frozen importlib") for file, _, _ in self.stack)


def _sched(thread: str) -> tuple[float, float]:
    """Seconds that a thread has run, and that it has waited for a CPU; zeros where the system doesn't say."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{thread}/schedstat", "rb") as file:
        run, queued, _ = file.read().split()
        return int(run) / 1e9, int(queued) / 1e9
    return 0.0, 0.0


def _switches(tid: int) -> int:
    """How often a thread has waited for something; 0 where the system doesn't say."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/self/task/{tid}/status", "rb") as file:
        return int(file.read().rpartition(b"\nvoluntary_ctxt_switches:")[2].split()[0])
    return 0
