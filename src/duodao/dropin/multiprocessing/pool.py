"""`multiprocessing.Pool` and `ThreadPool` on `duodao.Pool`: a worker that is killed costs its call, not the pool."""

from __future__ import annotations

import atexit
import functools
import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from duodao.cost.limits import cpus
from duodao.dropin.multiprocessing import interrupt
from duodao.dropin.multiprocessing.results import (
    ApplyResult,
    AsyncResult,
    Feed,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
)
from duodao.errors import NotPicklable, RemoteTraceback
from duodao.pipeline.pool import Pool as _Pool

__all__ = [
    "CLOSE", "RUN", "TERMINATE", "ApplyResult", "AsyncResult", "MapResult", "MaybeEncodingError", "Pool",
    "RemoteTraceback", "ThreadPool",
]  # fmt: skip

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
"""States of a pool, as the standard library writes them."""

_F = TypeVar("_F", bound="Feed")


class MaybeEncodingError(NotPicklable):
    """A result can't be pickled."""


class Pool:
    """As `multiprocessing.Pool`. processes: the usable cores by default. Source: M29, M32."""

    _lane = "process"

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        del context
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes or cpus()
        self._pool = _Pool(
            self._processes,
            lane=self._lane,
            initializer=initializer,
            initargs=tuple(initargs),
            max_calls=maxtasksperchild,
        )
        self._pool._roster.translate = _as_standard
        interrupt.listen()
        _pools.add(self)
        self._state = RUN
        self._feeds: list[Feed] = []

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> Any:
        """Call it in a worker and wait."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult:
        """Call it in a worker. The callbacks run in this process."""
        self._check_running()
        return ApplyResult([self._pool.submit(func, *args, **(kwds or {}))], _only, callback, error_callback)

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """All results in order; the first error when there is one."""
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`map` that doesn't wait."""
        return self._spread(_each, func, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Sequence[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """`map` of tuples of arguments."""
        return list(self.starmap_async(func, iterable, chunksize).get())

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Sequence[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`starmap` that doesn't wait."""
        return self._spread(_each_star, func, iterable, chunksize, callback, error_callback)

    def _spread(
        self, run: Any, func: Any, iterable: Iterable[Any], chunksize: int | None, callback: Any, error_callback: Any
    ) -> MapResult:
        self._check_running()
        items = iterable if isinstance(iterable, list | tuple | range) else list(iterable)
        size = chunksize or max(-(-len(items) // (self._processes * 4)), 1)
        futures = [self._pool.submit(run, func, items[at : at + size]) for at in range(0, len(items), size)]
        return MapResult(futures, _joined, callback, error_callback)

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Results in order, as they are ready; inputs are read AHEAD of them and no further."""
        return self._feed(IMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapUnorderedIterator:
        """Results as they are ready."""
        return self._feed(IMapUnorderedIterator, func, iterable, chunksize)

    def _feed(self, kind: type[_F], func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int) -> _F:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        feed = kind(functools.partial(self._pool.submit, _each, func), iter(iterable), chunksize)
        self._feeds = [each for each in self._feeds if each.thread.is_alive()]
        self._feeds.append(feed)
        return feed

    def close(self) -> None:
        """No new calls; those there are run to their end."""
        if self._state == RUN:
            self._state = CLOSE
            for feed in self._feeds:
                feed.open_wide()

    def terminate(self) -> None:
        """End it now: what runs in a process is killed (its result raises WorkerDied), what has not begun cancelled."""
        self._state = TERMINATE
        for feed in self._feeds:
            feed.stop()
        self._pool.kill_workers()

    def join(self) -> None:
        """Wait until all has ended. ValueError before close or terminate."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        for feed in self._feeds:
            feed.thread.join()
        self._pool.shutdown(wait=True)

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        self.join()

    def __del__(self) -> None:
        if getattr(self, "_state", CLOSE) == RUN:
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, 2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} state={self._state} pool_size={self._processes}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")


class ThreadPool(Pool):
    """As `multiprocessing.pool.ThreadPool`."""

    _lane = "thread"

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, initargs)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _at_exit() -> None:
    """What pools were given is finished before the program ends, but not after Ctrl-C."""
    if interrupt.came():
        for pool in list(_pools):
            pool.terminate()


# After the hook of `pipeline.roster`, so called before it.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)


def _as_standard(error: BaseException) -> BaseException:
    """An input that can't be pickled raises what pickling it raised, as programs expect, with our text as a note."""
    if not isinstance(error, NotPicklable):
        return error
    if error.what == "result":
        wrapped = MaybeEncodingError(*error.args)
        wrapped.__cause__ = error.__cause__
        return wrapped
    original = error.__cause__
    if original is None or original.__cause__ is not None:
        return error
    original.add_note(f"duodao.dropin.multiprocessing.Pool: {error}")
    return original


def _each(func: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [func(item) for item in items]


def _each_star(func: Callable[..., Any], items: Sequence[Sequence[Any]]) -> list[Any]:
    return [func(*item) for item in items]


def _only(parts: list[Any]) -> Any:
    return parts[0]


def _joined(parts: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))
