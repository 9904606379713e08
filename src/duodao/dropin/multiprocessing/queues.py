"""`multiprocessing.Queue`, `JoinableQueue` and `SimpleQueue` in shared memory: no feeder thread, no lock that dies.

What is put is in the queue when `put` returns, so a process may end with its queue full and be joined before the queue
is drained. A reader or writer that is killed costs the others nothing. Source: M10, M11, M13.
"""

from __future__ import annotations

from queue import Empty, Full
from typing import Any

from duodao.channel.base import Queue as _Queue

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "SimpleQueue"]

UNBOUNDED = 1 << 16
"""Items. The bound of a queue without one: the standard library's, too, is the memory of a pipe and of a thread."""


class Closed(ValueError, OSError):
    """This process has closed its handle. Some standard queues raise the one for it, some the other."""


class SimpleQueue:
    """As `multiprocessing.SimpleQueue`."""

    _duodao_handle = True

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:
        del ctx
        self._maxsize = maxsize
        self._queue: _Queue[Any] = _Queue(maxsize if maxsize > 0 else UNBOUNDED, via="shared")
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_closed": False}

    def put(self, obj: Any) -> None:
        """Put, waiting for room."""
        self._open().put(obj)

    def get(self) -> Any:
        """Take, waiting for an item."""
        return self._open().get()

    def empty(self) -> bool:
        """Is nothing in it now?"""
        return self._open().empty()

    def close(self) -> None:
        """This process uses it no more; others go on."""
        self._closed = True

    def _open(self) -> _Queue[Any]:
        if self._closed:
            raise Closed(f"Queue {self!r} is closed")
        return self._queue


class Queue(SimpleQueue):
    """As `multiprocessing.Queue`."""

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item. Full when there is no room at once, or within `timeout` seconds; ValueError after close."""
        self._open().put(obj, block, timeout if timeout is None else max(timeout, 0.0))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item. Empty when there is none at once, or within `timeout` seconds; ValueError after close."""
        return self._open().get(block, timeout if timeout is None else max(timeout, 0.0))

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        self.put(obj, block=False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(block=False)

    def qsize(self) -> int:
        """How many are in it now."""
        return self._open().qsize()

    def full(self) -> bool:
        """Is there no room now?"""
        return self._open().full()

    def join_thread(self) -> None:
        """Nothing to wait for: what was put is in the queue."""

    def cancel_join_thread(self) -> None:
        """Nothing to cancel: see `join_thread`."""


class JoinableQueue(Queue):
    """As `multiprocessing.JoinableQueue`."""

    def task_done(self) -> None:
        """Say that an item that was taken has been worked on. ValueError when that was said too often."""
        self._queue.task_done()

    def join(self) -> None:
        """Wait until all that was put has been worked on."""
        self._queue.join()
