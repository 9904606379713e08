"""The queue between threads and tasks of one process: queue.Queue's every edge, and more.

    put ──► mutex ──► store: deque, list or Heap ──► mutex ──► get
              └─ wakes a parked getter                 └─ wakes a parked putter     (sync/lot.py)

Nobody waits while holding the mutex: who finds no item, or no room, parks and looks again under the mutex.

Races:
- *A Ctrl-C at the wrong moment*: the quick way wakes first and changes second, within the mutex. What is in between is
  an idle wake-up, never a sleeper beside an item. An interrupt while the mutex is waited for has nothing to give back:
  `_release` says so with RuntimeError. (`with` does all that too, at twice the price.)
- *A count without its item*: on the quick way nothing is called between the count and the push, so that a signal
  handler, which runs after calls, finds both or none.
- *put() in a signal handler or in __del__*, which interrupts a put() of the same thread: the mutex is an RLock.
  queue.Queue hangs there (https://github.com/getsentry/sentry-python/issues/803). Only waiting is refused there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from queue import Empty, Full
from time import sleep
from typing import Any, ClassVar, NoReturn, TypeVar

from duodao.channel.base import Awaited, at_least_one, cut_short, deadline, left
from duodao.channel.buffer import Buffer
from duodao.sync import lot

T = TypeVar("T")

_PIECE = 1000
"""Items that put_many reads ahead from an iterator at most."""
_TURNS = 2
"""How often a thread lets others run before it parks. With the GIL the other side is mostly ready and only waits for
its turn, and parking costs more than all it does then: a queue of 10 items moves 2 to 3 times as many per second."""


def _sleep() -> None:
    sleep(0)


_give_way = getattr(os, "sched_yield", _sleep)


class MemoryQueue(Buffer[T]):
    """duodao.Queue(via="memory"). A subclass may override _init, _put, _get and _qsize, as one of queue.Queue may."""

    VIA: ClassVar[str] = "memory"

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, waiting for room up to `timeout` seconds; see Queue.put."""
        if timeout is None or timeout >= 0:
            try:
                self._acquire()
                if self._getters:
                    lot.wake(self._getters)
                size = len(self._source)
                if size < self._limit:
                    self.unfinished_tasks += 1
                    try:
                        self._push(item)
                    except BaseException:  # a priority that can't be compared: it isn't in; or a handler's: it is
                        self.unfinished_tasks -= len(self._source) == size
                        raise
                    return
                if not block and 0 < self._maxsize == self._limit:
                    raise Full
            finally:
                try:  # noqa: SIM105  # a call too many
                    self._release()
                except RuntimeError:
                    pass
        self._tell_growth()
        if block and timeout is not None and timeout < 0 < self._maxsize:
            self._refuse_puts()
            deadline(timeout)
        if self._offer(item):
            return
        if not block or not self._wait(self.on_room, self._putters, partial(self._offer, item), timeout):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next item, waiting for one up to `timeout` seconds; see Queue.get."""
        if timeout is None or timeout >= 0:
            try:
                self._acquire()
                if self._putters:
                    lot.wake(self._putters)
                if self._source:
                    return self._pop()
                if not block and self._limit >= 0:
                    raise Empty
            finally:
                try:  # noqa: SIM105  # a call too many
                    self._release()
                except RuntimeError:
                    pass
        if block and timeout is not None and timeout < 0:
            self._refuse_gets()
            deadline(timeout)
        got: Any = self._take()
        if not got and block:
            got = self._wait(self.on_item, self._getters, self._take, timeout)
        if not got:
            raise Empty
        return got[0]  # type: ignore[no-any-return]

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """Put all items in their order, `timeout` seconds altogether; see Queue.put_many."""
        until, count = deadline(timeout), 0
        try:
            for piece in self._pieces(items):
                done = 0
                while done < len(piece):
                    offer = partial(self._offer_some, piece, done)
                    n = offer() or self._wait(self.on_room, self._putters, offer, left(until)) or _full()
                    done += n
                    count += n
        except Exception as error:
            cut_short(error, count)
            raise
        return count

    def get_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Wait for an item, then take what is there up to `n`; see Queue.get_many."""
        take = partial(self._take_some, at_least_one(n))
        deadline(timeout)
        found: Any = take() or self._wait(self.on_item, self._getters, take, timeout)
        if not found:
            raise Empty
        return found  # type: ignore[no-any-return]

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every item that was put is done with. True, or False after `timeout` seconds."""
        deadline(timeout)
        return self._all_done() or self._wait(self.on_done, self._joiners, self._all_done, timeout)

    def _wait(self, on: Awaited, parked: lot.Parked, ready: Callable[[], Any], timeout: float | None) -> Any:
        if self.mutex._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError(
                f"waiting for {on.describe()} while this thread holds its mutex, in a signal handler, __del__ or `with "
                "queue.mutex`, would never end: use block=False there"
            )
        for _ in range(_TURNS if timeout is None or timeout > 0 else 0):
            _give_way()
            if got := ready():
                return got
        return lot.wait(on, parked, ready, timeout)

    def _pieces(self, items: Iterable[T]) -> Iterator[Sequence[T]]:
        """The items, as many at a time as there is room for."""
        self._tell_growth()
        if isinstance(items, list | tuple):
            yield tuple(items)
            return
        iterator, failure = iter(items), None
        while failure is None:
            piece: list[T] = []
            try:
                piece.extend(islice(iterator, self._room(_PIECE)))
            except Exception as error:  # those before it are in `piece`, and put first
                failure = error
            if piece:
                yield piece
                self._tell_growth()
            elif failure is None:
                return
        raise failure

    # ------------------------------------------------------------------------------------------- for tasks of a loop

    async def aput(self, item: T, timeout: float | None = None) -> None:
        """As put; the task waits, its loop goes on."""
        self._tell_growth()
        deadline(timeout)
        await lot.await_(self.on_room, self._putters, partial(self._offer, item), timeout) or _full()

    async def aget(self, timeout: float | None = None) -> T:
        """As get; the task waits, its loop goes on."""
        deadline(timeout)
        got: Any = await lot.await_(self.on_item, self._getters, self._take, timeout)
        if not got:
            raise Empty
        return got[0]  # type: ignore[no-any-return]

    async def aput_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """As put_many; the task waits, its loop goes on."""
        until, count = deadline(timeout), 0
        try:
            for piece in self._pieces(items):
                done = 0
                while done < len(piece):
                    offer = partial(self._offer_some, piece, done)
                    n = await lot.await_(self.on_room, self._putters, offer, left(until)) or _full()
                    done += n
                    count += n
        except Exception as error:
            cut_short(error, count)
            raise
        return count

    async def aget_many(self, n: int, timeout: float | None = None) -> list[T]:
        """As get_many; the task waits, its loop goes on."""
        take = partial(self._take_some, at_least_one(n))
        deadline(timeout)
        found: Any = await lot.await_(self.on_item, self._getters, take, timeout)
        if not found:
            raise Empty
        return found  # type: ignore[no-any-return]

    async def ajoin(self, timeout: float | None = None) -> bool:
        """As join; the task waits, its loop goes on."""
        deadline(timeout)
        return await lot.await_(self.on_done, self._joiners, self._all_done, timeout)


def _full() -> NoReturn:
    raise Full
