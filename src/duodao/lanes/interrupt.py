"""Ending what a thread waits for: how a task that can't be killed is asked to end.

A thread can be stopped only where it lets itself be stopped: in the waits of our own primitives. The one it is in, or
the next that it begins, raises Cancelled. One request is raised once, so that what the thread does while it unwinds (a
`finally` that takes a lock, a Condition that takes its lock back) works; after `insist` every wait raises.

Several may listen to one unit: a thread that is a task of one group may own another. The graph has room for one
listener per unit, so `attach` keeps the list.
Rejected: PyThreadState_SetAsyncExc, which strikes between any two instructions, also inside a lock's release.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeAlias

from duodao.sync import graph

Listener: TypeAlias = "Callable[[graph.Wait | None], object]"

_lock = threading.RLock()  # re-entrant: a signal handler may start a task while its own thread holds it
_listeners: dict[graph.Unit, tuple[Listener, ...]] = {}


class Cancelled(BaseException):
    """Raised inside a task that is asked to end, by the wait that it is in or the next one it begins.

    A BaseException, as asyncio's: a task that catches every Exception ends all the same. by: who asked for it.
    """

    def __init__(self, why: str, by: Interrupt | None = None) -> None:
        super().__init__(why)
        self.by = by


def attach(unit: graph.Unit, listener: Listener) -> None:
    """Call `listener(wait)` in the unit's own thread as it begins a wait, and with None as it ends one."""
    with _lock:
        others = _listeners.get(unit, ())
        _listeners[unit] = (*others, listener)
        if not others:
            graph.watch(unit, lambda wait: _tell(unit, wait))


def detach(unit: graph.Unit, listener: Listener) -> None:
    """Undo `attach`. Nothing happens when it was undone before."""
    with _lock:
        others = tuple(each for each in _listeners.get(unit, ()) if each != listener)
        if others:
            _listeners[unit] = others
        elif _listeners.pop(unit, None) is not None:
            graph.unwatch(unit)


def _tell(unit: graph.Unit, wait: graph.Wait | None) -> None:
    for listener in _listeners.get(unit, ()):
        listener(wait)


class Interrupt:
    """The requests to end of one thread. `listen` is to be attached to it; `why` stands in the error."""

    __slots__ = ("_always", "_error", "_unit", "why")

    def __init__(self, unit: graph.Unit, why: str) -> None:
        self.why = why
        self._unit = unit
        self._error: Cancelled | None = None
        self._always = False

    def strike(self) -> None:
        """Ask the thread to end: once, however often this is called before it was heard. From any thread."""
        with _lock:
            if self._error is None:
                self._error = Cancelled(self.why, self)
        self.listen(graph.waiting(self._unit))

    def insist(self) -> None:
        """From now on every wait of the thread raises."""
        self._always = True
        self.strike()

    def caused(self, error: BaseException | None) -> bool:
        """Is it this request that was raised?"""
        return type(error) is Cancelled and error.by is self

    def listen(self, wait: graph.Wait | None) -> None:
        """The unit begins a wait, or is in one: end it if that is asked for and has not happened.

        An error that has no traceback was never raised: its wait ended well before it looked.
        """
        error = self._error
        if wait is None or error is None:
            return
        if error.__traceback__ is None:
            graph.doom(wait, error)
        elif self._always:
            graph.doom(wait, Cancelled(self.why, self))


def _forget() -> None:
    global _lock  # noqa: PLW0603  # a thread that exists no more may have held it
    _lock = threading.RLock()
    _listeners.clear()


os.register_at_fork(after_in_child=_forget)
