"""A pipe or socket queue in the process that made it: its threads put and get here, the broker serves the others."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from duodao.channel import codec
from duodao.channel.base import left
from duodao.channel.broker import Broker, Door
from duodao.channel.held import Held
from duodao.channel.requests import look
from duodao.sync import lot

if TYPE_CHECKING:
    from duodao.channel.stream import StreamQueue


class Home:
    """The queue in the process that made it."""

    def __init__(self, held: Held, door: Door, key: bytes) -> None:
        self.place = door.place
        self.key: bytes | None = key
        self.pid = os.getpid()
        self.held = held
        self._broker = Broker(held, door, key, seal=self.place.kind == "tcp")
        self._end = weakref.finalize(self, self._broker.stop)
        self._end.atexit = False  # all of them at once, and waited for: _end_all
        _homes.add(self)

    def room(self, queue: StreamQueue[Any], most: int) -> int:
        """How many items to read ahead."""
        del queue
        return self.held._room(most)

    def put(self, queue: StreamQueue[Any], items: Sequence[Any], until: float | None) -> int:
        """As Away.put."""
        held, put = self.held, 0
        entries: list[Any] = []
        failed: Exception | None = None
        for item in items:
            try:
                entries.append(held.entry(codec.pack(item), item, known=True))
            except Exception as error:
                failed = error
                break
        try:
            while put < len(entries):
                offer = partial(self._checked, queue, partial(held._offer_some, entries, put))
                count = lot.wait(queue.on_room, held._putters, offer, left(until))
                if not count:
                    return put
                put += count
            if failed is not None:
                raise failed  # noqa: TRY301  # it gets put_count, too
        except Exception as error:
            vars(error)["put_count"] = put
            raise
        return put

    def get(self, queue: StreamQueue[Any], n: int, until: float | None) -> list[Any]:
        """As Away.get."""
        held = self.held
        most = (lambda: held._take_some(1)) if n == 1 else partial(held.take, n)
        found: Any = lot.wait(queue.on_item, held._getters, partial(self._checked, queue, most), left(until))
        items: list[Any] = []
        for at, entry in enumerate(found or ()):
            try:
                items.append(codec.unpack(held.parcel(entry)))
            except Exception as error:
                held.take_back(found[at + (not items) :])
                if items:
                    return items
                error.add_note(f"an item of Queue {queue.name!r} can't be unpickled here: it was taken out")
                raise
        return items

    def _checked(self, queue: StreamQueue[Any], step: Any) -> Any:
        queue._check_open()
        return step()

    def done(self, queue: StreamQueue[Any]) -> None:
        """As Away.done."""
        del queue
        self.held.task_done()

    def join(self, queue: StreamQueue[Any], until: float | None) -> bool:
        """As Away.join."""
        held = self.held
        return bool(lot.wait(queue.on_done, held._joiners, partial(self._checked, queue, held._all_done), left(until)))

    def shutdown(self, queue: StreamQueue[Any], immediate: bool) -> None:
        """As Away.shutdown."""
        del queue
        self.held.shutdown(immediate)

    def look(self, queue: StreamQueue[Any]) -> list[Any]:
        """As Away.look."""
        del queue
        self.held.qsize()
        return look(self.held)

    def wake(self, queue: StreamQueue[Any]) -> None:
        """As Away.wake."""
        del queue
        for parked in (self.held._getters, self.held._putters, self.held._joiners):
            lot.wake_all(parked)

    def leave(self) -> None:
        """The last handle of this process is gone. Doesn't wait: the collector may be calling."""
        self._end.detach()
        self._broker.stop()  # directly: as the program ends, finalizers do nothing any more

    def settle(self) -> None:
        """After `leave`: wait until the thread has ended."""
        self._broker.join()


_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _end_all() -> None:
    for home in list(_homes):
        home.leave()
        home.settle()


atexit.register(_end_all)
