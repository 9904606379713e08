"""The future of a pool: `concurrent.futures`' own, but whoever waits for it is seen, and may run the call itself.

    result() ── not done ──► its pool's crew: run it here (help first), or lend the waiting thread's place
                     └─────► sync.lot: the wait is published, so a circle through it raises Deadlock

Invariants:
  1. `take()` gives the call to one who asks, once: that one runs it. (`dict.pop` is atomic.)
  2. Everything that ends the future wakes `parked` afterwards; a waiter parks before it looks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from duodao.lanes.foreign import set_traceback
from duodao.sync import lot

if TYPE_CHECKING:
    from duodao.sync.graph import Unit

_LOG = logging.getLogger("concurrent.futures")  # where users of executors look

UNSEEN = 0.020
"""Seconds that a wait lasts before it is published."""

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Home(Protocol):
    """What a future asks of the pool that made it. made_in: None, or in a forked copy the process it was made in."""

    made_in: int | None

    def orphaned(self) -> BaseException:
        """The error of whoever waits in a forked copy."""
        ...

    def attend(self, future: Future, timeout: float | None) -> None:
        """Let the calling thread wait until the future is done, or `timeout` seconds."""
        ...

    def resolvers(self, future: Future) -> Sequence[Unit] | None:
        """The units any one of which could bring the future on; None when anyone could."""
        ...

    def later(self, function: Callable[[Any], object], future: Future) -> bool:
        """Take over a callback that must not run in the present thread; False: it may."""
        ...

    def awaited(self, future: Future) -> None:
        """It has got a callback: perhaps the running task is about to await it."""
        ...

    def installed(self, waiter: object, future: Future) -> None:
        """The calling thread is about to wait by `concurrent.futures.wait` or `as_completed`."""
        ...

    def removed(self, waiter: object) -> None:
        """It waits no longer."""
        ...


class Future(concurrent.futures.Future[Any]):
    """What became of a call, or will. All of `concurrent.futures.Future`, of which it is one.

    `result()` and `exception()` raise Deadlock where they would wait in a circle: the call, or the worker it needs,
    waits for something that the waiting thread holds. With a time-out they never do. Source: M30, M31.
    """

    parked: lot.Parked | None = None
    ended = False  # as `done()`, without its lock; a moment later
    _value: Any = None
    _plain = False  # it ended with `_value`

    home: Home | None = None
    call: Call | None = None  # until it is taken
    by: Unit | None = None  # who runs it

    def __init__(self, home: Home | None = None, call: Call | None = None) -> None:
        super().__init__()
        if home is not None:
            self.home = home
            self.call = call

    def take(self) -> Call | None:
        """The call, for whoever asks first; None for all others."""
        call: Call | None = self.__dict__.pop("call", None)
        return call

    @property  # type: ignore[override]  # as much of a list as is used
    def _waiters(self) -> Waiters:
        """Where the standard library's `wait` and `as_completed` enter themselves: made when looked at, for most
        futures never have any."""
        return Waiters(self)

    @_waiters.setter
    def _waiters(self, empty: list[Any]) -> None:
        del empty

    # -- waiting ------------------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """The call's value. timeout: seconds, None for as long as it takes.

        Raises what the call raised; CancelledError; TimeoutError after `timeout` seconds; Deadlock in a circle.
        """
        try:
            if not self.ended:
                self._attend(timeout)
            return self._value if self._plain else super().result(0)
        finally:
            del self  # the error's traceback holds this frame: without this they would be a cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The call's error, None when it succeeded. As `result` otherwise."""
        if not self.ended:
            self._attend(timeout)
        return None if self._plain else super().exception(0)

    def _attend(self, timeout: float | None) -> None:
        if self.done():  # its callbacks run before `ended` is set
            return
        if self.home is None:
            self.park(timeout)
        elif self.home.made_in is not None:
            raise self.home.orphaned()
        else:
            self.home.attend(self, timeout)

    def park(self, timeout: float | None) -> None:
        """Block the calling thread until it is done, or for `timeout` seconds. Raises Deadlock in a circle.

        The first moment is waited out unseen, by the standard library's means: publishing a wait costs as much as a
        short call takes.
        """
        unseen = UNSEEN if timeout is None else min(timeout, UNSEEN)
        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            super().exception(unseen)
            return
        if timeout is not None:
            timeout -= unseen
        parked = self.__dict__.setdefault("parked", deque())  # atomic: two that come at once get the same
        lot.wait(Ending(self), parked, self._over, timeout)

    def _over(self) -> bool:
        return self.ended or self.done()

    # -- ending -------------------------------------------------------------------------------------------------------

    def run(self, by: Unit) -> None:
        """Run the call here, unless it was taken, or cancelled, before."""
        call = self.take()
        if call is None:
            return
        function, args, kwargs = call
        del call
        if not self.set_running_or_notify_cancel():
            return
        self.by = by
        try:
            value = function(*args, **kwargs)
        except BaseException as error:
            trace = error.__traceback__
            set_traceback(error, None if trace is None else trace.tb_next)  # without this frame, which holds the future
            del function, args, kwargs, trace
            self.set_exception(error)
        else:
            del function, args, kwargs
            self.set_result(value)
        finally:
            del self

    def set_result(self, result: Any) -> None:
        """For executors and tests, as the standard library's."""
        super().set_result(result)
        self._value, self._plain = result, True
        self._wake()

    def set_exception(self, exception: BaseException | None) -> None:
        """For executors and tests, as the standard library's."""
        super().set_exception(exception)
        self._wake()

    def _wake(self) -> None:
        self.ended = True
        if self.parked:
            lot.wake_all(self.parked)

    def cancel(self) -> bool:
        """Don't run the call. False when it runs already, or is done."""
        done = super().cancel()
        if done:
            self._wake()
        return done

    def withdraw(self, error: BaseException | None = None) -> None:
        """It is out of the queue and will not run: it ends with this error, or cancelled."""
        if self.take() is None:  # somebody runs it
            return
        if error is None:
            self.cancel()
        if self.set_running_or_notify_cancel() and error is not None:
            self.set_exception(error)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call `fn(future)` when it is done, at once if it is; in the process that submitted the call.

        A callback that raises is logged, the others are called all the same.
        """
        if self.home is None:
            super().add_done_callback(fn)
            return
        super().add_done_callback(_Callback(fn, self.home))
        self.home.awaited(self)


class _Callback:
    """A callback that keeps off the threads a pool needs for itself."""

    __slots__ = ("_function", "_home")

    def __init__(self, function: Callable[[Any], object], home: Home) -> None:
        self._function = function
        self._home = home

    def __call__(self, future: Any) -> None:
        if not self._home.later(self._function, future):
            self._function(future)


def call_back(function: Callable[[Any], object], future: Future) -> None:
    """Call it as `concurrent.futures` does: what it raises is logged."""
    try:
        function(future)
    except Exception:
        _LOG.exception("exception calling callback for %r", future)


class Waiters:
    """The waiters of `concurrent.futures.wait` and `as_completed`: the pool is told of them."""

    __slots__ = ("_future",)

    def __init__(self, future: Future) -> None:
        self._future = future

    def __iter__(self) -> Iterator[Any]:
        return iter(self._future.__dict__.get("waiters", ()))

    def append(self, waiter: Any) -> None:
        future = self._future
        if future.home is not None:
            future.home.installed(waiter, future)
        future.__dict__.setdefault("waiters", []).append(waiter)

    def remove(self, waiter: Any) -> None:
        future = self._future
        future.__dict__.get("waiters", []).remove(waiter)
        if future.home is not None:
            future.home.removed(waiter)


class Ending:
    """A future's end, as something that is waited for."""

    unsettled = True
    __slots__ = ("_future",)

    def __init__(self, future: Future) -> None:
        self._future = future

    def resolvers(self) -> Sequence[Unit] | None:
        future = self._future
        if future.by is not None:
            return (future.by,)
        return None if future.home is None else future.home.resolvers(future)

    def describe(self) -> str:
        return f"the result of {self._future!r}"
