"""What a Pool's calls return: results that are waited for, and iterators of them."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from multiprocessing import TimeoutError  # the name that callers catch
from time import monotonic
from typing import Any

__all__ = ["ApplyResult", "AsyncResult", "Feed", "IMapIterator", "IMapUnorderedIterator", "MapResult"]

AHEAD = 1000
"""Calls that `imap` has out or finished before they are asked for; all the rest once the pool is closed."""


class ApplyResult:
    """What `apply_async` and `map_async` return. With a callback, it has ended once that has been called."""

    def __init__(
        self,
        futures: list[Future[Any]],
        join: Callable[[list[Any]], Any],
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._futures = futures
        self._join = join
        self._callback = callback
        self._error_callback = error_callback
        self._left = len(futures)
        self._lock = threading.Lock()
        self._told: Future[None] | None = None if callback is None and error_callback is None else Future()
        if self._told is None:
            return
        for future in futures:
            future.add_done_callback(self._one_done)
        if not futures:
            self._tell(self._told)

    def _one_done(self, _: Future[Any]) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last and self._told is not None:
            self._tell(self._told)

    def _tell(self, told: Future[None]) -> None:
        """The callback comes first: who has waited finds its work done. One that raises is reported by the future."""
        try:
            try:
                value = self._value()
            except (Exception, CancelledError) as error:
                if self._error_callback is not None:
                    self._error_callback(error)
            else:
                if self._callback is not None:
                    self._callback(value)
        finally:
            told.set_result(None)

    def _value(self) -> Any:
        return self._join([future.result() for future in self._futures])

    def ready(self) -> bool:
        """Has it ended?"""
        return all(future.done() for future in self._futures) if self._told is None else self._told.done()

    def successful(self) -> bool:
        """Did it end without an error? ValueError before its end."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not any(future.cancelled() or future.exception() for future in self._futures)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most."""
        until = None if timeout is None else monotonic() + timeout
        for future in self._futures:
            try:
                future.exception(_left(until))
            except CancelledError:
                continue
            except FutureTimeout:
                return
        if self._told is not None:
            wait([self._told], _left(until))

    def get(self, timeout: float | None = None) -> Any:
        """Its value, or its error. TimeoutError of multiprocessing after `timeout` seconds."""
        if not self.ready():
            self.wait(timeout)
            if not self.ready():
                raise TimeoutError
        return self._value()


def _left(until: float | None) -> float | None:
    return None if until is None else max(until - monotonic(), 0.0)


class MapResult(ApplyResult):
    """What `map_async` returns."""


AsyncResult = ApplyResult


class Feed:
    """Submits chunks in a thread of its own, AHEAD of what is asked for."""

    def __init__(self, submit: Callable[[Any], Future[Any]], items: Iterator[Any], size: int) -> None:
        self._submit = submit
        self._items = items
        self._size = size
        self._room = threading.Semaphore(max(AHEAD // size, 2))
        self._changed = threading.Condition()
        self._out: deque[Future[Any]] = deque()
        self._ready: deque[Any] = deque()
        self._wide = False
        self._stopped = False
        self._ended = False
        self._failed: BaseException | None = None
        self.thread = threading.Thread(target=self._main, name="duodao-imap", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            while not self._stopped and (chunk := list(itertools.islice(self._items, self._size))):
                if not self._wide:
                    self._room.acquire()
                if self._stopped:
                    break
                future = self._submit(chunk)
                with self._changed:
                    self._out.append(future)
                    self._changed.notify_all()
        except BaseException as error:
            self._failed = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def open_wide(self) -> None:
        """Read the rest now: the pool is closed, and whoever joins it waits for all."""
        self._wide = True
        self._room.release()

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        self._room.release()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; its error when its call failed. TimeoutError of multiprocessing after `timeout` seconds."""
        if not self._ready:
            with self._changed:
                if not self._changed.wait_for(lambda: self._out or self._ended, timeout):
                    raise TimeoutError
                if not self._out:
                    failed, self._failed = self._failed, None
                    if failed is not None:
                        raise failed
                    raise StopIteration
                out = list(self._out)
            future = self._choose(out, timeout)
            if future is None:
                raise TimeoutError
            self._out.remove(future)
            self._room.release()
            self._ready.extend(future.result())
        return self._ready.popleft()

    def _choose(self, out: list[Future[Any]], timeout: float | None) -> Future[Any] | None:
        raise NotImplementedError


class IMapIterator(Feed):
    """What `imap` returns."""

    def _choose(self, out: list[Future[Any]], timeout: float | None) -> Future[Any] | None:
        return out[0] if wait(out[:1], timeout).done else None


class IMapUnorderedIterator(Feed):
    """What `imap_unordered` returns."""

    def _choose(self, out: list[Future[Any]], timeout: float | None) -> Future[Any] | None:
        return next(iter(wait(out, timeout, FIRST_COMPLETED).done), None)
