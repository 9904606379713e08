"""Where inputs come from: lazily, in order, and never further ahead than the engine allows.

Containers are read by the caller's thread, everything else by one source thread, so that an input that takes long (a
generator over a socket, a pipe) never delays a result that is finished. The race that is closed here: the engine says
that it is hungry, then looks once more; the source appends, then looks whether anybody is hungry. One of the two sees
the other.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

_PLAIN = (list, tuple, range)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (set, frozenset, dict, str, bytes, bytearray, collections.deque, *_VIEWS)


class Rejected:
    """An input that its reader could not make: it takes the place of the item and becomes that input's failure."""

    __slots__ = ("error", "input")

    def __init__(self, input: Any, error: BaseException) -> None:
        self.input = input
        self.error = error

    def __repr__(self) -> str:
        return f"Rejected({self.input!r}, {self.error!r})"


class Source(Protocol):
    """total: inputs in all, None while unknown. error: what the iterator raised."""

    total: int | None
    error: BaseException | None

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        ...

    def take(self, count: int) -> list[Any]:
        """Up to `count` further items that are there now."""
        ...

    def allow(self, ahead: int) -> None:
        """Items that may be read ahead of what was taken."""
        ...

    def hungry(self) -> bool:
        """Ask to be woken at the next item; False when one is there already."""
        ...

    def stop(self) -> None:
        """Read nothing more."""
        ...


class Contained:
    """A container: the caller slices it. Nothing here can block."""

    def __init__(self, inputs: Any) -> None:
        self.total: int | None = len(inputs)
        self.error: BaseException | None = None
        self._ended = False
        self._at = 0
        self._sequence = inputs if isinstance(inputs, _PLAIN) else None
        self._iterator = None if self._sequence is not None else iter(inputs)

    @property
    def ended(self) -> bool:
        """Everything has been taken. A list that grows while it is read goes on, as under the builtin map."""
        return self._ended or (self._sequence is not None and self._at >= len(self._sequence))

    def take(self, count: int) -> list[Any]:
        """The next `count` items, fewer at the end."""
        if self._ended:
            return []
        if self._sequence is not None:
            part = self._sequence[self._at : self._at + count]
            items = part if type(part) is list else list(part)
            self._at += len(items)
            return items
        try:
            items = list(itertools.islice(self._iterator, count))  # type: ignore[arg-type]
        except RuntimeError as error:  # a set or dict that changed under us
            self.error, self._ended = error, True
            return []
        self._ended = len(items) < count
        return items

    def allow(self, ahead: int) -> None:
        """Containers are never read ahead."""

    def hungry(self) -> bool:
        """A container always has its next item, or is at its end."""
        return False

    def stop(self) -> None:
        """Read nothing more."""
        self._ended = True


class Threaded:
    """Any other iterable, read by one daemon thread that stops when `allow` says so.

    The thread looks at one number per item, `_goal`: where it has to pause, 0 when the engine is hungry. Both threads
    write it, so whoever sets it forward looks once more whether hunger came in between.
    """

    def __init__(self, inputs: Iterable[Any], wake: Callable[[], None], total: int | None = None) -> None:
        self.total = total
        self.error: BaseException | None = None
        self._wake = wake
        self._buffer: list[Any] = []  # appended to by one thread, cut at the front by the other: each step is atomic
        self._hungry = False
        self._finished = False
        self._stopped = False
        self._parked = False
        self._taken = 0
        self._allowed = 1
        self._goal = 1
        self._gate: SimpleQueue[None] = SimpleQueue()
        self._iterator = iter(inputs)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._read,), name="duodao-source", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """True when everything that was read has been taken and nothing more comes."""
        return (self._finished or self._stopped) and not self._buffer

    def _read(self) -> None:
        iterator, append = self._iterator, self._buffer.append
        try:
            for count, item in enumerate(iterator, 1):
                append(item)
                if count >= self._goal:
                    self._pause(count)
                    if self._stopped:
                        break
        except BaseException as error:
            self.error = error
        finally:
            self._close(iterator)
            self._iterator = iter(())
            self._finished = True
            self._wake()

    def _pause(self, count: int) -> None:
        """Wake the engine if it is hungry; wait where nothing more may be read."""
        while True:
            if self._hungry:
                self._hungry = False
                self._wake()
            self._goal = self._allowed
            if self._hungry:
                self._goal = 0
            if count < self._allowed or self._stopped:
                return
            self._parked = True
            if count < self._allowed or self._stopped or self._hungry:
                self._parked = False
                continue
            self._gate.get()

    def _close(self, iterator: Iterator[Any]) -> None:
        close = getattr(iterator, "close", None)
        if self._stopped and callable(close) and hasattr(iterator, "gi_frame"):
            try:
                close()
            except BaseException as error:
                self.error = self.error or error

    def take(self, count: int) -> list[Any]:
        """Up to `count` items that have been read."""
        items = self._buffer[:count]
        del self._buffer[: len(items)]
        self._taken += len(items)
        return items

    def allow(self, ahead: int) -> None:
        """Let the thread read up to `ahead` items more than were taken; wakes it when half of that is free."""
        self._allowed = max(self._allowed, self._taken + ahead)
        if not self._hungry:
            self._goal = self._allowed
        if len(self._buffer) <= ahead // 2:
            self._unpark()

    def _unpark(self) -> None:
        if self._parked and self._taken + len(self._buffer) < self._allowed:
            self._parked = False
            self._gate.put(None)

    def hungry(self) -> bool:
        """Ask for a wake-up at the next item; False when there is one, or when there will be none.

        The thread may be parked although it may read on: `allow` lets it sleep until half of its room is free.
        """
        self._hungry = True
        self._goal = 0
        self._unpark()
        if self._buffer or self._finished:
            self._hungry = False
            return False
        return True

    def stop(self) -> None:
        """Read nothing more. A thread that is inside the user's iterator ends when that returns; it is a daemon."""
        self._stopped = True
        self._goal = 0
        self._buffer.clear()
        self._gate.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(0.05)


class Awaited:
    """An async iterable, read by one task on the caller's loop."""

    def __init__(self, inputs: AsyncIterable[Any], wake: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        self.total: int | None = None
        self.error: BaseException | None = None
        self._wake = wake
        self._buffer: collections.deque[Any] = collections.deque()
        self._hungry = False
        self._finished = False
        self._taken = 0
        self._allowed = 1
        self._room = asyncio.Event()
        self._task = loop.create_task(self._read(inputs))

    @property
    def ended(self) -> bool:
        """True when everything that was read has been taken and nothing more comes."""
        return self._finished and not self._buffer

    async def _read(self, inputs: AsyncIterable[Any]) -> None:
        import asyncio

        count = 0
        try:
            async for item in inputs:
                self._buffer.append(item)
                count += 1
                if self._hungry:
                    self._hungry = False
                    self._wake()
                while count >= self._allowed:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            pass  # stop(): nobody waits for this task any more
        except BaseException as error:
            self.error = error
        finally:
            self._finished = True
            self._wake()

    def take(self, count: int) -> list[Any]:
        """Up to `count` items that have been read."""
        count = min(count, len(self._buffer))
        self._taken += count
        return [self._buffer.popleft() for _ in range(count)]

    def allow(self, ahead: int) -> None:
        """Let the task read up to `ahead` items more than were taken."""
        if self._taken + ahead > self._allowed:
            self._allowed = self._taken + ahead
            self._room.set()

    def hungry(self) -> bool:
        """Ask for a wake-up at the next item; False when there is one, or when there will be none."""
        self._hungry = True
        if self._buffer or self._finished:
            self._hungry = False
            return False
        return True

    def stop(self) -> None:
        """Read nothing more; the async generator is closed by its loop."""
        self._buffer.clear()
        self._finished = True
        self._task.cancel()


def open_source(inputs: Any, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None) -> Source:
    """The source for what the user gave as `inputs` (checked before: an iterable, async only with a loop)."""
    if isinstance(inputs, (*_PLAIN, *_CONTAINERS)) or type(inputs).__module__ == "numpy":
        return Contained(inputs)
    if hasattr(inputs, "__aiter__") and loop is not None:
        return Awaited(inputs, wake, loop)
    try:
        total = len(inputs)
    except Exception:  # it has none, or none it can tell
        total = None
    return Threaded(inputs, wake, total)
