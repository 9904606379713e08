"""The end of a Group's block: who is waited for, what happens when that is disturbed, and what is raised.

Whatever disturbs the wait (Ctrl-C, an outer cancellation, a deadlock) cancels the tasks the first time, kills or gives
up what it can the second time, and gives up the rest the third time: the block always ends, and leaves nothing behind
that can be ended.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from duodao.lanes.foreign import add_note, is_a
from duodao.lanes.interrupt import Cancelled, Interrupt
from duodao.sync import graph, lot

if TYPE_CHECKING:
    from duodao.pipeline.group import Group
    from duodao.pipeline.timers import Timers

_GONE = 1.0
"""Seconds for a thread whose call has ended to be gone."""
_ALONE = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends programs arrives as it is, as from asyncio.TaskGroup."""


class GroupEnd:
    """The end of all tasks, as something that the owner waits for.

    It needs all of them, so one that is in a circle with the owner is enough: the graph is told of that one.
    """

    unsettled = True

    def __init__(self, group: Group) -> None:
        self._group = group
        self._walking = False
        self.cancelled_owner = False
        self.quiet = threading.Event()  # for the owner whose waits all raise

    def describe(self) -> str:
        return f"the end of group {self._group.name!r}"

    def resolvers(self) -> tuple[graph.Unit, ...] | None:
        """The task that waits for the owner, if one does; else any."""
        group = self._group
        units = [task.unit for task in list(group.live) if not task.daemon or group.cancelled]
        known = [unit for unit in units if unit is not None]
        if not known:
            return None
        if not self._walking:
            self._walking = True
            try:
                for unit in known:
                    if self._leads_back(unit):
                        return (unit,)
            finally:
                self._walking = False
        return (known[0],)

    def _leads_back(self, unit: graph.Unit) -> bool:
        seen: set[graph.Unit] = set()
        step: graph.Unit | None = unit
        while step is not None and step not in seen:
            seen.add(step)
            resolvers = _resolvers(step)
            if resolvers is not None and self._group.owner in resolvers:
                return True
            step = resolvers[0] if resolvers else None
        return False


def _resolvers(unit: graph.Unit) -> Any:
    if isinstance(unit, graph.Far):
        wait: Any = None if graph.FAR is None else graph.FAR.waits_of(unit)
        return None if wait is None or wait.timed else wait.on.resolvers()
    own = graph.waiting(unit)
    return None if own is None or own.timed or own.doom is not None else own.on.resolvers()


class Closing:
    """One block's end."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._times = 0
        self._late = False
        self._alone: BaseException | None = None
        self._outer: BaseException | None = None

    def is_own(self, error: BaseException | None, interrupt: Interrupt | None) -> bool:
        """Is this how the group's own cancellation reached its body? Called once, as the body has ended."""
        group = self._group
        if interrupt is not None:
            return interrupt.caused(error)
        owner = group.owner
        if not group.end.cancelled_owner or not isinstance(owner, asyncio.Task):
            return is_a(error, Cancelled) and group.cancelled
        heard = is_a(error, asyncio.CancelledError)
        self._late = not heard
        alone = owner.uncancel() == 0
        return heard and alone

    def disturbed(self, error: BaseException) -> None:
        """The body raised, or the wait for the tasks did."""
        group = self._group
        self._times += 1
        if is_a(error, _ALONE):
            self._alone = self._alone or error
        elif is_a(error, (Cancelled, asyncio.CancelledError)):
            self._outer = self._outer or error
        else:
            group.fail(error)
        group.cancel()
        if self._times > 1:
            for task in group.tasks:
                task.insist()
        if self._times > 2:
            for task in group.tasks:
                if task.lane != "process":
                    task.give_up()

    # The wait

    def wait(self, body_ended: Callable[[], object]) -> None:
        """Until all tasks have ended. body_ended: what to do first; here, so that no Ctrl-C falls in between."""
        group = self._group
        pending: list[BaseException] = []
        while True:
            try:
                body_ended()
                while pending:
                    self.disturbed(pending[0])
                    pending.pop(0)
                if self._times > 2:  # our own waits raise, or Ctrl-C is held down: only killed processes are left
                    while not self._over():
                        group.end.quiet.clear()
                        if not self._over():
                            group.end.quiet.wait()
                    return
                group.stall.look_soon()
                if lot.wait(group.end, group.parked, self._look) == "over":
                    return
                group.cancel()  # only daemons are left
            except BaseException as error:
                pending.append(error)

    async def await_(self, body_ended: Callable[[], object]) -> None:
        """`wait` on the running loop."""
        group = self._group
        owner = group.owner
        assert isinstance(owner, asyncio.Task)
        pending: list[BaseException] = []
        while True:
            try:
                body_ended()
                while pending:
                    self.disturbed(pending[0])
                    pending.pop(0)
                group.stall.look_soon()
                if await lot.await_(group.end, group.parked, self._look) == "over":
                    return
                group.cancel()
            except asyncio.CancelledError as error:
                if self._late and not owner.cancelling():  # the group's own, which came only now
                    self._late = False
                else:
                    pending.append(error)
            except BaseException as error:
                pending.append(error)

    def _look(self) -> str:
        group = self._group
        with group.lock:
            if not group.live:
                group.phase = "over"
                return "over"
            if not group.cancelled and all(task.daemon for task in group.live):
                return "daemons"
            return ""

    def _over(self) -> bool:
        return self._look() == "over"

    # What is left

    def release(self, timers: Timers | None) -> None:
        """End the threads that served the tasks."""
        group = self._group
        closers: list[Callable[[], object]] = []
        if group.loop_thread is not None:
            closers.append(partial(group.loop_thread.close, _GONE / 10 if group.notices else group.grace))
        if not group.notices:
            closers += [partial(single.join, _GONE) for single in group.threads]
        closers += [each.close for each in (group.exchange, timers) if each is not None]
        for close in closers:
            try:
                close()
            except KeyboardInterrupt as error:
                self._alone = self._alone or error
                close()

    def end(self, error: BaseException | None) -> bool:
        """Raise what the block raises, but the body's own exception; True when that was the group's cancellation."""
        group = self._group
        failures, group.failures = group.failures, []
        outcome = self._alone
        if outcome is None and failures:
            outcome = BaseExceptionGroup(f"group {group.name!r}: {len(failures)} failed", failures)
        outcome = outcome or self._outer
        try:
            for notice in group.notices:
                if outcome is not None:
                    add_note(outcome, notice)
                warnings.warn(notice, RuntimeWarning, stacklevel=3)
        finally:
            if outcome is not None and outcome is not error:
                try:
                    raise outcome
                finally:
                    del outcome, failures, error, self  # its traceback has this frame, and would be a circle with it
        return outcome is not error
