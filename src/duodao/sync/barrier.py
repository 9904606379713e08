"""Barrier: a number of threads or tasks wait for each other, and then all go on; again and again.

Each round is an object of its own: whoever is quick may stand in the next one while the others still leave the last.
"""

from __future__ import annotations

import _thread
import operator
import sys
from collections import deque
from collections.abc import Callable
from threading import BrokenBarrierError
from typing import Any

from duodao.errors import UsageError
from duodao.sync import lot
from duodao.sync.named import Named, checked, site

_FILLING, _ACTING, _PASSED, _BROKEN = range(4)


class _Round:
    """Those that meet once. state: filling, in the action of the last one, passed or broken."""

    __slots__ = ("count", "parked", "state")

    def __init__(self) -> None:
        self.count = 0
        self.state = _FILLING
        self.parked: lot.Parked = deque()

    def over(self) -> bool:
        return self.state >= _PASSED


class Barrier(Named):
    """A meeting point for `parties`, as `threading.Barrier`.

    action: called by the last to come, before all go on. timeout: default of `wait`, in seconds. name: for messages.
    shared: between processes. ValueError for parties < 1. Source: M14.
    """

    def __new__(
        cls,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
        shared: bool = False,
    ) -> Any:
        """A barrier of this process, or the shared kind."""
        if shared:
            from duodao.sync import shared_signal as between

            return between.Barrier(parties, action, timeout, name=name)
        return super().__new__(cls)

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
        shared: bool = False,
    ) -> None:
        del shared
        if operator.index(parties) < 1:
            raise ValueError("parties must be >= 1")
        if action is not None and not callable(action):
            raise UsageError(f"action={action!r}: a function without arguments is needed")
        self._site = site(sys._getframe(1))
        self._name = checked(name)
        self._action = action
        self._timeout = timeout
        self._parties = parties
        self._guard = _thread.allocate_lock()
        self._round = _Round()

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<sync.{type(self).__qualname__} at {id(self):#x} {self.name!r}: {state}>"

    @property
    def parties(self) -> int:
        """How many must come."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        meeting = self._round
        return meeting.count if meeting.state == _FILLING else 0

    @property
    def broken(self) -> bool:
        """Was it broken, by a time-out, an error in the action or `abort`, and not reset since?"""
        return self._round.state == _BROKEN

    def statistics(self) -> lot.Statistics:
        """Who waits, now. value: how many."""
        return lot.Statistics(self.name, self.broken, None, lot.names(self._round.parked), self.n_waiting)

    def resolvers(self) -> None:
        """Anybody may come."""
        return

    def wait(self, timeout: float | None = None) -> int:
        """Wait until `parties` have come; the caller's number, 0 to parties - 1, other for each.

        BrokenBarrierError after `timeout` seconds (then for all that wait), or when it is or gets broken or reset.
        """
        timeout = self._timeout if timeout is None else timeout
        meeting, index = self._come()
        while index < 0:
            lot.wait(self, meeting.parked, meeting.over)
            meeting, index = self._come()
        if index + 1 == self._parties:
            return self._pass(meeting, index)
        try:
            came = lot.wait(self, meeting.parked, meeting.over, timeout) or self._late(meeting)
            if not came:  # the last one has come, and is in the action
                lot.wait(self, meeting.parked, meeting.over)
        except BaseException:
            self._withdraw(meeting)
            raise
        return _result(meeting, index)

    async def await_(self, timeout: float | None = None) -> int:
        """`wait` for the running task."""
        timeout = self._timeout if timeout is None else timeout
        meeting, index = self._come()
        while index < 0:
            await lot.await_(self, meeting.parked, meeting.over)
            meeting, index = self._come()
        if index + 1 == self._parties:
            return self._pass(meeting, index)
        try:
            came = await lot.await_(self, meeting.parked, meeting.over, timeout) or self._late(meeting)
            if not came:
                await lot.await_(self, meeting.parked, meeting.over)
        except BaseException:
            self._withdraw(meeting)
            raise
        return _result(meeting, index)

    def reset(self) -> None:
        """Begin anew; those that wait now get BrokenBarrierError."""
        with self._guard:
            old, self._round = self._round, _Round()
            if old.state != _PASSED:
                old.state = _BROKEN
        lot.wake_all(old.parked)

    def abort(self) -> None:
        """Break it: those that wait, and those that come, get BrokenBarrierError until `reset`."""
        self._break(self._round)

    def _come(self) -> tuple[_Round, int]:
        """A place in this round; -1 while its action runs: the next one has not begun."""
        with self._guard:
            meeting = self._round
            if meeting.state == _BROKEN:
                raise BrokenBarrierError
            if meeting.state == _ACTING:
                return meeting, -1
            index = meeting.count
            meeting.count += 1
            if meeting.count == self._parties:
                meeting.state = _ACTING
            return meeting, index

    def _pass(self, meeting: _Round, index: int) -> int:
        """The last one has come."""
        try:
            if self._action is not None:
                self._action()
            with self._guard:
                if meeting.state == _ACTING:
                    meeting.state = _PASSED
                    self._round = _Round()
        except BaseException:
            self._break(meeting)
            raise
        lot.wake_all(meeting.parked)
        return _result(meeting, index)

    def _late(self, meeting: _Round) -> bool:
        """The time is over: break it, unless the last one has come meanwhile. False: its action runs."""
        with self._guard:
            if meeting.state == _FILLING:
                meeting.state = _BROKEN
        if meeting.state == _BROKEN:
            lot.wake_all(meeting.parked)
        return meeting.over()

    def _break(self, meeting: _Round) -> None:
        with self._guard:
            if meeting.state != _PASSED:
                meeting.state = _BROKEN
        lot.wake_all(meeting.parked)

    def _withdraw(self, meeting: _Round) -> None:
        """One that waited was interrupted: the others go on waiting for as many as before."""
        with self._guard:
            if meeting.state == _FILLING:
                meeting.count -= 1


def _result(meeting: _Round, index: int) -> int:
    if meeting.state == _BROKEN:
        raise BrokenBarrierError
    return index
