"""What the three ways to run a pool's calls have in common: their end, theirs and the program's.

At the interpreter's exit all pools finish what was submitted, as the standard library's do, before its own atexit
functions run; nothing of a pool keeps the program any longer. A forked copy has no workers and says so.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn

from duodao.errors import SetupFailed
from duodao.pickling import said
from duodao.pipeline.future import Call, Future
from duodao.sync import graph, lot

_LOG = logging.getLogger("concurrent.futures")

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


class InitializerFailed(SetupFailed, BrokenExecutor):
    """A pool's initializer raised: no call can run, those that wait have this error. Its own is the `__cause__`."""


class Roster(ABC):
    """Who runs the calls. workers: calls at a time. closed: nothing more may be submitted."""

    def __init__(self, workers: int, name: str) -> None:
        self.workers = workers
        self.name = name
        self.closed = False
        self.open = not _exiting  # none of the things is the case that `refuse` names
        self.broken: BaseException | None = None
        self.translate: Callable[[BaseException], BaseException] = _as_it_is  # our own errors, as users know them
        self.made_in: int | None = None  # in a forked copy: the process that has the workers
        self._lock = threading.RLock()  # re-entrant: the collector may end a dropped pool anywhere
        self._parked: lot.Parked = deque()
        _rosters.add(self)

    # -- each in its own way ------------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, call: Call) -> Future:
        """Queue a call."""

    @abstractmethod
    def drop(self) -> list[Future]:
        """Take what nobody has begun out of the queue."""

    @abstractmethod
    def busy(self) -> Sequence[graph.Unit]:
        """Who is in calls."""

    @abstractmethod
    def over(self) -> bool:
        """Is nothing left to do?"""

    @abstractmethod
    def wind_down(self) -> None:
        """No more will be submitted."""

    @abstractmethod
    def dismiss(self, seconds: float) -> None:
        """End the workers; nothing runs any more."""

    def later(self, function: Callable[[Any], object], future: Future) -> bool:
        """Callbacks run where the future ends."""
        del function, future
        return False

    def awaited(self, future: Future) -> None:
        """Nothing to do where those that await are not workers."""
        del future

    def installed(self, waiter: object, future: Future) -> None:
        """Nothing to do where those that wait are not workers."""
        del waiter, future

    def removed(self, waiter: object) -> None:
        """As `installed`."""
        del waiter

    # -- the end ------------------------------------------------------------------------------------------------------

    def refuse(self) -> NoReturn:
        """Raise why nothing can be submitted. Under the lock."""
        if self.broken is not None:
            raise self.broken
        if self.made_in is not None:
            raise self.orphaned()
        raise RuntimeError(AFTER_EXIT if _exiting else AFTER_SHUTDOWN)

    def orphaned(self) -> RuntimeError:
        """The error of a forked copy."""
        return RuntimeError(
            f"{self.name} was made in process {self.made_in}; this is a copy by fork(), which has none of its "
            "workers: make another pool here"
        )

    def fail(self, error: BaseException) -> None:
        """No call can run any more: all that wait have this error, and so has every later submit."""
        if isinstance(error, SetupFailed):
            cause = error.__cause__ or error
            _LOG.critical("Exception in initializer: %s", said(cause), exc_info=cause)
            broken: BaseException = InitializerFailed(f"the initializer of {self.name} failed ({said(cause)})")
            broken.__cause__ = cause
        else:
            broken = error
        with self._lock:
            self.broken = self.broken or self.translate(broken)
            self.open = False
        for future in self.drop():
            future.withdraw(self.broken)

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """Take no more; let what was submitted end, or cancel what has not begun."""
        with self._lock:
            self.closed, self.open = True, False
        if cancel_futures:
            for future in self.drop():
                future.withdraw()
        if self.made_in is not None:
            return
        self.wind_down()
        if wait:
            lot.wait(_End(self), self._parked, self.over)
            self.dismiss(10.0)

    def kill(self) -> None:
        """Shut down without waiting; calls in processes are ended now."""
        self.shutdown(wait=False, cancel_futures=True)

    def changed(self) -> None:
        """Perhaps all is over now."""
        if self._parked:
            lot.wake_all(self._parked)

    def forget(self) -> None:
        """In a forked copy."""
        if self.made_in is None:
            self.made_in = os.getppid()
        self.open = False
        self._lock = threading.RLock()


class _End:
    """The end of all calls, as something that is waited for: each of those that run could delay it for ever."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def resolvers(self) -> Sequence[graph.Unit]:
        busy = self._roster.busy()
        stuck = [who for who in busy if (wait := graph.waiting(who)) is not None and not wait.timed]
        return stuck[:1] or busy

    def describe(self) -> str:
        return f"the end of all calls of {self._roster.name}"


def _as_it_is(error: BaseException) -> BaseException:
    return error


_rosters: weakref.WeakSet[Roster] = weakref.WeakSet()
_exiting = False


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603
    _exiting = True
    for roster in list(_rosters):
        roster.shutdown(wait=True, cancel_futures=False)


def _in_copy() -> None:
    for roster in list(_rosters):
        roster.forget()


# As concurrent.futures: before the threads that are no daemons are waited for. Where that isn't to be had, at exit:
# our threads are daemons and live until then.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
os.register_at_fork(after_in_child=_in_copy)
