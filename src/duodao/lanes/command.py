"""The command lane: programs, one process per item or long-lived ones that speak JSON lines.

    start() ──► events ──► one thread ──► guard.command ──► programs, each the leader of a process group
    guard: ended, stopped ──┘    └── one selector over all their pipes; outcomes go out at the end of each turn

One thread owns all state; others leave events for it and ring a pipe, which is also all that a signal handler does. The
guard's word, not the end of a pipe, says that a program has ended: a process that left its group may hold the pipe, and
a program may close its stdout and live on. What is in the pipes by then is read first.

Races closed:
  - *A kill for a time-out that comes as the program ends*: it was killed only if its exit says so, else its result
    counts.
  - *We were stopped (Ctrl-Z without the command line's `suspend`), or starved*: a time-out that is noticed late says
    nothing about the program; it gets its whole time once more.
  - *A stop of ours*: the guard doesn't tell of it, and time stands still between `suspend` and `resume`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from duodao.children import guard
from duodao.errors import Closed
from duodao.lanes.base import Batch, Deliver, Result, Work
from duodao.lanes.dialogue import DEPTH
from duodao.lanes.program import Command
from duodao.lanes.programs import Programs
from duodao.lanes.running import Call, Outcome


class Commands:
    """Calls are runs of a program, or lines to one; up to `workers` processes. Raises nothing an item caused."""

    name = "command"
    target = 0.020
    singly = True

    def __init__(self, work: Work, workers: int, **_: Any) -> None:
        command: Command = work.function  # type: ignore[assignment]
        self.workers = workers
        self._pipelined = command.protocol == "jsonl" and work.timeout is None
        self.depth = DEPTH if self._pipelined else 2
        self._lock = threading.Lock()  # of the start of the thread
        self._thread: threading.Thread | None = None
        self._closed = False
        self._events: deque[tuple[Any, ...]] = deque()
        self._rung = False
        self._bell_r = self._bell_w = -1
        # From here on: touched by the lane's thread only.
        self._programs = Programs(command, work.timeout, workers, self)
        self._fatal: BaseException | None = None
        self._done: dict[Batch, list[Outcome]] = {}
        guard.ensure()  # it starts while this process goes on

    # -- any thread ---------------------------------------------------------------------------------------------------

    def start(self, batch: Batch, deliver: Deliver) -> None:
        """Leave it for the lane's thread."""
        if not batch.items:
            deliver(Result(batch, []))
            return
        with self._lock:
            if self._closed:
                raise Closed("the command lane is closed; it starts nothing more")
            if self._thread is None:
                self._bell_r, self._bell_w = os.pipe()
                os.set_blocking(self._bell_r, False)
                os.set_blocking(self._bell_w, False)
                self._thread = threading.Thread(target=self._main, name="duodao-command-lane", daemon=True)
                self._thread.start()
        self.tell("batch", batch, deliver)

    def cancel(self, batch: Batch) -> None:
        """Kill what runs for it, drop what waits."""
        if self._thread is not None:
            self.tell("cancel", batch)

    def close(self, grace: float) -> None:
        """End every program: a busy one is killed after `grace` seconds; an idle one sees the end of its stdin, then
        SIGTERM, then is killed. Idempotent; waits for it all."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is None or self._bell_w < 0:
            return
        self.tell("close", monotonic() + max(grace, 0.0))
        if thread is not threading.current_thread():
            thread.join()
            bell, self._bell_w = self._bell_w, -1  # first: a signal handler may ring
            if bell >= 0:
                os.close(bell)

    def suspend(self) -> None:
        """Stop the programs, and the time, until `resume`. From a signal handler, too; returns when it is done."""
        self._ask("suspend")

    def resume(self) -> None:
        """Let them go on."""
        self._ask("resume")

    def _ask(self, what: str) -> None:
        if self._thread is not None and self._thread.is_alive():
            done = threading.Event()
            self.tell(what, done)
            done.wait(1.0)  # its thread may wait for a lock that the interrupted thread holds

    def tell(self, *event: Any) -> None:
        """Leave an event for the lane's thread."""
        self._events.append(event)
        if not self._rung:  # cleared before the events are read: none is left behind
            self._rung = True
            with contextlib.suppress(OSError):
                os.write(self._bell_w, b"\0")

    # -- the lane's thread --------------------------------------------------------------------------------------------

    def _main(self) -> None:
        programs = self._programs
        programs.listen(self._bell_r)
        try:
            while programs.until is None or programs.running:
                programs.wait()
                self._rung = False
                while self._events:
                    self._hear(*self._events.popleft())
                programs.go_on()
                self._hand_on()
        except BaseException as error:  # a fault of ours: the run must end with it, not wait for ever
            self.end(error)
        finally:
            programs.close()
            os.close(self._bell_r)

    def _hear(self, event: str, *rest: Any) -> None:
        programs = self._programs
        if event == "batch":
            self._admit(*rest)
        elif event == "cancel":
            programs.cancel(*rest)
        elif event == "ended":
            programs.ended(*rest)
        elif event == "started":
            programs.started(*rest)
        elif event == "stopped":
            programs.stopped(*rest)
        elif event == "close":
            programs.wind_up(*rest)
        elif event == "suspend":
            programs.suspend(*rest)
        else:
            programs.resume()
            rest[0].set()

    def _admit(self, batch: Batch, deliver: Deliver) -> None:
        if self._fatal is not None:
            deliver(Result(batch, [], fatal=self._fatal))
            return
        alone = batch.careful or not self._pipelined
        queue = self._programs.queue
        queue.extend(Call(batch, deliver, position, alone=alone) for position in range(len(batch.items)))

    def settle(self, outcomes: list[Outcome]) -> None:
        """These go out at the end of the turn."""
        for outcome in outcomes:
            call = outcome[0]
            if not call.cancelled:
                self._done.setdefault(call.batch, []).append(outcome)

    def end(self, error: BaseException, calls: Sequence[Call] = ()) -> None:
        """The run is over: these, all that are out, and all that come, get this error."""
        self._fatal = error
        calls = [*calls, *self._programs.abandon()]
        for call in {call.batch: call for call in calls}.values():
            call.deliver(Result(call.batch, [], fatal=error))

    def _hand_on(self) -> None:
        done, self._done = self._done, {}
        now = monotonic()
        for batch, outcomes in done.items():
            errors = {at: failure for at, (_, _, failure) in enumerate(outcomes) if failure is not None}
            each = [now - call.began if call.began else 0.0 for call, _, _ in outcomes]
            for at, failure in errors.items():
                failure.seconds = each[at]
            outcomes[0][0].deliver(
                Result(
                    batch,
                    [value for _, value, _ in outcomes],
                    positions=[call.position for call, _, _ in outcomes],
                    errors=errors or None,
                    seconds=sum(each),
                    each=each,
                )
            )
