"""The programs that the command lane has started: what they are given, what they say, and how each of them ends.

A program is idle (a worker without calls), busy, mute (it reads or says no more), leaving (its stdin was closed), asked
(SIGTERM was sent) or killed; the guard's word that it has ended takes it out of any of these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import threading
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Any, Protocol

from duodao.children.child import Lost
from duodao.errors import Broken, CommandFailed, DuodaoError, NotPicklable, UsageError
from duodao.lanes.base import Batch, Failure
from duodao.lanes.dialogue import Dialogue
from duodao.lanes.program import Command, Words, missing
from duodao.lanes.running import Call, Fault, Once, Outcome, Running

BARREN = 3
"""So many JSON-lines workers in a row may end before they read anything, until the run ends."""
LATE = 0.25
"""Seconds after its time at which a time-out is no longer believed."""
LEAVE = 1.0
"""Seconds that a worker has to end after the end of its stdin, and again after SIGTERM; or after that of its stdout."""
UNKILLABLE = 5.0
"""Seconds after its kill at which a program is given up: another user's (sudo), or one that the kernel holds."""
_SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Host(Protocol):
    """What the lane does with outcomes, with the end of the run, and with news from other threads (`tell`)."""

    def settle(self, outcomes: list[Outcome]) -> None: ...
    def end(self, error: BaseException, calls: Sequence[Call] = ()) -> None: ...
    def tell(self, *event: Any) -> None: ...


class Programs:
    """Up to `limit` programs, and the calls that wait for one. All of it on the lane's thread.

    until: once the lane is closing, the time at which busy ones are killed.
    """

    def __init__(self, command: Command, timeout: float | None, limit: int, host: Host) -> None:
        self.queue: deque[Call] = deque()
        self.running: dict[Running, None] = {}
        self.until: float | None = None
        self._command = command
        self._timeout = timeout
        self._limit = limit
        self._host = host
        self._words = Words(command)
        self._jsonl = command.protocol == "jsonl"
        self._number = 0
        self._barren = 0
        self._suspended: float | None = None
        self._standing = threading.Event()
        self._dirty: dict[Running, None] = {}
        self._selector = selectors.DefaultSelector()

    def listen(self, bell: int) -> None:
        """Also wait for this descriptor, which is read when it rings."""
        self._selector.register(bell, selectors.EVENT_READ)

    def wait(self) -> None:
        """Until something happens, and attend to it."""
        for key, _ in self._selector.select(self._pause()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            elif key.data in self.running:
                self._attend(key.data, key.fd)

    def _pause(self) -> float | None:
        due = min((running.due for running in self.running), default=inf)
        if due == inf or self._suspended is not None:
            return None
        return min(max(0.0, due - monotonic()) + 0.001, 3600.0)

    def go_on(self) -> None:
        """Look at the time, give what waits to programs, write what they take."""
        if self._suspended is None:
            self._enforce(monotonic())
            if self.until is None:
                self._place()
        for dialogue in self._dirty:
            self._flush(dialogue)
        self._dirty.clear()

    def abandon(self) -> list[Call]:
        """Kill them all; the calls that were out or waited."""
        calls = [*self.queue, *(call for running in self.running for call in running.calls.values())]
        self.queue.clear()
        for running in self.running:
            running.calls.clear()
            self._kill(running)
        return calls

    def close(self) -> None:
        """Let go of all, also of what has not ended."""
        for running in list(self.running):
            running.child.kill()
            self._drop(running)
        self._selector.close()

    # -- what the lane is told ----------------------------------------------------------------------------------------

    def cancel(self, batch: Batch) -> None:
        self.queue = deque(call for call in self.queue if call.batch is not batch)
        for running in self.running:
            mine = [call for call in running.calls.values() if call.batch is batch]
            for call in mine:
                call.cancelled = True
            if mine and all(call.cancelled for call in running.calls.values()):
                self._kill(running)

    def wind_up(self, until: float) -> None:
        self.until = until if self.until is None else min(self.until, until)
        self.queue.clear()
        self.resume()
        for running in self.running:
            if running.state == "idle":
                self._dismiss(running)
            elif running.state == "busy":
                running.due = min(running.due, self.until)

    def suspend(self, done: threading.Event) -> None:
        """Stop them and the time; `done` is set when all stand, also those that were only just asked for."""
        if self._suspended is None:
            self._suspended = monotonic()
            for running in self.running:
                running.child.suspend()
        self._standing = done
        self._stand()

    def _stand(self) -> None:
        if all(running.child.pid for running in self.running):
            self._standing.set()

    def resume(self) -> None:
        if self._suspended is not None:
            stood = monotonic() - self._suspended
            self._suspended = None
            for running in self.running:
                running.due += stood
                for call in running.calls.values():
                    call.began += stood
                running.child.resume()

    def stopped(self, running: Running) -> None:
        number = running.child.stop_signal
        if running in self.running and running.state in ("busy", "idle", "mute"):
            name = signal.Signals(number).name
            tty = ", as it wanted the terminal, which it can't have" if name in ("SIGTTIN", "SIGTTOU") else ""
            self._fault(running, Fault(f"was stopped by {name}{tty}, and killed"))

    def ended(self, running: Running) -> None:
        if running not in self.running:
            return
        code = running.child.exitcode
        assert code is not None
        killed = running.doom is not None and code == -signal.SIGKILL
        try:
            outcomes = running.take(running.rest())
        except Fault as fault:
            outcomes = fault.outcomes
            if not killed:
                outcomes += running.blame(running.failed(str(fault), code=code))
        if killed:
            assert running.doom is not None
            outcomes += running.blame(running.doom.error, running.doom.kind)  # type: ignore[arg-type]
        else:
            outcomes += running.ended(code)
        barren = isinstance(running, Dialogue) and running.barren and running.state != "killed"
        self._drop(running)
        self._host.settle(outcomes)
        self._barren = self._barren + 1 if barren else 0
        if self._barren >= BARREN and self.until is None:
            self._host.end(
                running.failed(f"was started {BARREN} times, and each time ended before it read a line", code=code)
            )

    # -- programs -----------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Give what waits to programs, in its order, as far as there is room."""
        while self.queue:
            call = self.queue[0]
            running = self._choose(call)
            if running is None:
                return
            if not self.queue:  # the run has ended meanwhile
                return
            self.queue.popleft()
            if isinstance(running, Running):
                self._give(running, call)

    def _choose(self, call: Call) -> Running | Call | None:
        """The program for the call; the call itself when it is settled without one; None: it must wait."""
        if self._jsonl:
            workers = [running for running in self.running if running.state in ("idle", "busy")]
            best = min(workers, key=lambda worker: len(worker.calls), default=None)
            if best is not None and not best.calls:
                return best
            if len(self.running) >= self._limit:
                open_ = [w for w in workers if isinstance(w, Dialogue) and w.has_room(call)]
                return min(open_, key=lambda worker: len(worker.calls), default=None)
        elif len(self.running) >= self._limit:
            return None
        try:
            argv = self._words.fill(call.item)
            if self._jsonl:
                running: Running = Dialogue(self._command, argv, self._started)
            else:
                running = Once(self._command, argv, self._started, call.item)
        except (OSError, DuodaoError, ValueError) as error:
            self._not_started([call], error)
            return call
        self.running[running] = None
        self._selector.register(running.out, selectors.EVENT_READ, running)
        self._selector.register(running.err, selectors.EVENT_READ, running)
        running.child.on_exit(lambda _: self._host.tell("ended", running))
        running.child.on_stop(lambda _: self._host.tell("stopped", running))
        return running

    def _started(self, running: Running, error: Exception | None) -> None:
        """From another thread."""
        if error is not None or self._suspended is not None:
            self._host.tell("started", running, error)

    def started(self, running: Running, error: Exception | None) -> None:
        if error is None:
            if self._suspended is not None:
                running.child.suspend()
                self._stand()
        elif running in self.running:
            calls = list(running.calls.values())
            self._drop(running)
            self._not_started(calls, error)

    def _not_started(self, calls: list[Call], error: Exception) -> None:
        """Items that no program can be started for, fewer programs than asked for, or the end of the run."""
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, Lost) or (code in _SCARCE and self.running):
            if code is not None:
                self._limit = len(self.running)
            self._host.settle([(call, None, Failure(None, "lost")) for call in calls])
        elif code in _SCARCE:
            self._host.end(Broken(f"no program can be started: {os.strerror(code or 0)}"), calls)
        elif isinstance(error, OSError) and code != errno.E2BIG and not self._words.varies:
            self._host.end(missing(self._command, error), calls)
        elif isinstance(error, DuodaoError) and not isinstance(error, UsageError):
            self._host.end(error, calls)
        else:
            if code == errno.E2BIG:
                error.add_note("the item is longer than an argument may be: stdin='item' has no such limit")
            self._host.settle([(call, None, Failure(error)) for call in calls])

    def _give(self, running: Running, call: Call) -> None:
        self._number += 1
        try:
            running.begin(call, self._number)
        except NotPicklable as error:
            self._host.settle([(call, None, Failure(error))])
            return
        if running.state == "idle":
            running.state = "busy"
        if self._timeout is not None:
            running.due = call.began + self._timeout
        if isinstance(running, Dialogue):
            self._dirty[running] = None
        elif running.inp >= 0:
            self._flush(running)

    def _flush(self, running: Running) -> None:
        """Write what its stdin takes, and ask for the rest when there is room; a program per item then sees its end."""
        if running.inp < 0:
            return
        try:
            more = running.flush()
        except BrokenPipeError:
            self._listen(running.inp, running, wanted=False)
            if isinstance(running, Dialogue):
                self._mute(running)  # its pipe stays: how much of it was read will be asked
            else:
                running.end_input()
            return
        self._listen(running.inp, running, wanted=more)
        if not more and isinstance(running, Once):
            running.end_input()

    def _listen(self, fd: int, running: Running, *, wanted: bool) -> None:
        known = fd in self._selector.get_map()
        if wanted and not known:
            self._selector.register(fd, selectors.EVENT_WRITE, running)
        elif known and not wanted:
            self._selector.unregister(fd)

    def _attend(self, running: Running, fd: int) -> None:
        if fd == running.inp:
            self._flush(running)
            return
        if fd not in (running.out, running.err):
            return
        data = running.read(fd)
        if data is None:
            return
        if not data:
            self._selector.unregister(fd)
            if fd == running.out and isinstance(running, Dialogue):
                self._mute(running)
        elif fd == running.out and running.state != "killed":
            try:
                self._host.settle(running.take(data))
            except Fault as fault:
                self._host.settle(fault.outcomes)
                self._fault(running, fault)
            else:
                self._rest(running)

    def _rest(self, running: Running) -> None:
        """After answers: a worker without calls is idle."""
        if isinstance(running, Dialogue) and not running.calls and running.state == "busy":
            running.state, running.due = "idle", inf
            if self.until is not None:
                self._dismiss(running)

    def _mute(self, running: Running) -> None:
        """A worker reads or says no more. It is probably ending; if not, it is of no use."""
        if running.state in ("busy", "idle"):
            running.state, running.due = "mute", monotonic() + LEAVE

    def _dismiss(self, running: Running) -> None:
        self._listen(running.inp, running, wanted=False)
        running.end_input()
        running.state, running.due = "leaving", monotonic() + LEAVE

    def _fault(self, running: Running, fault: Fault) -> None:
        if fault.fatal:
            self._host.end(running.failed(str(fault)))
        else:
            self._kill(running, Failure(running.failed(str(fault))))

    def _kill(self, running: Running, doom: Failure | None = None) -> None:
        if running.state != "killed":
            running.doom = doom or Failure(CommandFailed("killed"))
            running.state, running.due = "killed", monotonic() + UNKILLABLE
            running.child.kill()

    def _drop(self, running: Running) -> None:
        for fd in (running.inp, running.out, running.err):
            if fd >= 0 and fd in self._selector.get_map():
                self._selector.unregister(fd)
        self.running.pop(running, None)
        self._dirty.pop(running, None)
        running.close()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _enforce(self, now: float) -> None:
        """Look at those whose time has come."""
        for running in [running for running in self.running if running.due <= now]:
            late = now - running.due > LATE
            if running.state == "busy":
                if self.until is not None and now >= self.until:
                    self._kill(running)
                elif late and self._timeout is not None:
                    running.due = now + self._timeout
                else:
                    call = next(iter(running.calls.values()), None)
                    if call is not None and self._timeout is not None:
                        self._kill(running, running.overdue(call, self._timeout))
            elif running.state == "mute":
                self._kill(running, Failure(running.failed("closed its stdin or stdout, lived on, and was killed")))
            elif running.state == "leaving":
                running.child.terminate()
                running.state, running.due = "asked", now + LEAVE
            elif running.state == "asked":
                self._kill(running)
            else:
                assert running.doom is not None
                error = running.doom.error
                assert error is not None
                error.add_note(f"process {running.child.pid} doesn't end: it is another user's, or held by the kernel")
                self._host.settle(running.blame(error, running.doom.kind))
                self._drop(running)
