"""Large buffers beside the pipe: copied once into the arena, mapped by the reader.

A buffer of at least LARGE bytes leaves the pickle (protocol 5, out of band) and is copied into a piece of the arena;
the frame carries its offset. A worker reads arrays in place, read-only; `bytes` and `bytearray` are copied out, as
their types demand. Results go the other way through the worker's outbox, a piece of the arena that its lane gave it.

    inputs   lane allocates, copies in -> worker reads in place -> "kept" or not -> lane frees
    results  worker fills a slot of its outbox -> lane copies out, clears the slot's flag -> the worker uses it again

Invariants:
  1. An input's piece is freed only when the worker could release every view of it (memoryview.release raises
     BufferError while an array still looks at it), or is dead. A function may keep what it got.
  2. A slot of an outbox has one writer at a time: its flag is set by the worker before the frame that names it, and
     cleared by the lane after it copied. No message returns it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from duodao import arena
from duodao.lanes.wire import dumps

if TYPE_CHECKING:
    from duodao.arena import Arena

LARGE = 65536
"""Bytes. A copy into the arena beats a copy through the pipe from here on."""
OUTBOX = 256 << 20
"""Bytes of address space for the large results of one worker; memory is what is used of it, lowest slots first."""
SPAN = 8 << 20
"""Bytes. More than this doesn't travel at once, unless one item is larger: what is in flight stays in the caches."""
FLAGS = 4096
"""Bytes at the start of an outbox: one flag per slot."""
SCANNED = 64
"""Batches of at most so many items are looked through for large `bytes`; longer ones hold no large items, since a batch
is some 20 ms of work, and are looked through only when their pickle is large."""

_ALIGN = 64
_BYTES, _BYTEARRAY, _OTHER, _ITEM, _ITEM_ARRAY = range(5)

Place = tuple[int, int, int]
"""Offset in the arena, size in bytes, type: what a frame says of one buffer."""


class Buffers:
    """pickle's buffer_callback: keeps the large ones, leaves the small in the pickle."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []
        self.kinds: list[int] = []
        self.size = 0
        self.items: dict[int, pickle.PickleBuffer] = {}  # by id: those that `expose` made of whole items

    def reset(self) -> None:
        """Forget them: the pickle is made again."""
        self.views.clear()
        self.kinds.clear()
        self.size = 0

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < LARGE:
            return True
        owner = type(view.obj)
        kind = _BYTES if owner is bytes else _BYTEARRAY if owner is bytearray else _OTHER
        if kind != _OTHER and id(buffer) in self.items:
            kind = _ITEM if kind == _BYTES else _ITEM_ARRAY
        self.add(view, kind)
        return False

    def add(self, view: memoryview, kind: int = _OTHER) -> None:
        """One more, whatever its size."""
        self.views.append(view)
        self.kinds.append(kind)
        self.size += -(-view.nbytes // _ALIGN) * _ALIGN

    def copy_to(self, memory: Arena, offset: int) -> list[Place]:
        """Copy all to `offset`, where `size` bytes are ours."""
        places = []
        for view, kind in zip(self.views, self.kinds, strict=True):
            size = view.nbytes
            memory.view(offset, size)[:] = view
            places.append((offset, size, kind))
            offset += -(-size // _ALIGN) * _ALIGN
        return places


def pack(values: list[Any]) -> tuple[bytes, Buffers | None]:
    """A list pickled, and its large buffers when it has some. Raises what pickling raises."""
    buffers = Buffers()
    if len(values) > SCANNED:
        body = dumps(values, buffers)
        if len(body) < LARGE:
            return body, buffers if buffers.size else None
        exposed = expose(values, buffers)
        if exposed is values:
            return body, buffers if buffers.size else None
        buffers.reset()
    else:
        exposed = expose(values, buffers)
    body = dumps(exposed, buffers)
    return body, buffers if buffers.size else None


def expose(values: list[Any], buffers: Buffers) -> list[Any]:
    """The same list, or a copy whose large `bytes` and `bytearray` offer their buffer, which alone they don't."""
    large = [
        position
        for position, value in enumerate(values)
        if (type(value) is bytes or type(value) is bytearray) and len(value) >= LARGE
    ]
    if not large:
        return values
    copy = list(values)
    for position in large:
        copy[position] = buffer = pickle.PickleBuffer(values[position])
        buffers.items[id(buffer)] = buffer
    return copy


def export(buffers: Buffers) -> tuple[int, list[Place]] | None:
    """The lane's side: a fresh piece of the arena that holds the buffers; None when the arena has no room."""
    memory = arena.get()
    try:
        offset = memory.allocate(buffers.size)
    except (MemoryError, OSError):
        return None
    return offset, buffers.copy_to(memory, offset)


def copies(places: Sequence[Place]) -> list[Any]:
    """Buffers of the reader's own, of their original types; arrays get a writable one."""
    memory = arena.get()
    return [
        bytes(memory.view(offset, size)) if kind in (_BYTES, _ITEM) else bytearray(memory.view(offset, size))
        for offset, size, kind in places
    ]


class Views:
    """What a worker was given of one piece of the arena, in place and read-only.

    Each buffer is lent through a view of its own. A memoryview of a memoryview, which is what numpy makes of one,
    counts only with the first in the row: without an owner in between, releasing ours would never say that it is still
    in use.
    """

    def __init__(self, piece: int, places: Sequence[Place]) -> None:
        memory = arena.get()
        self.piece = piece
        self.buffers: list[Any] = []
        self._owners: list[memoryview] = []
        for offset, size, kind in places:
            if kind in (_BYTES, _BYTEARRAY):
                self.buffers.extend(copies([(offset, size, kind)]))
                continue
            owner = memory.view(offset, size)
            if kind != _ITEM_ARRAY:
                owner = owner.toreadonly()
            self._owners.append(owner)
            between = pickle.PickleBuffer(owner)
            self.buffers.append(memoryview(between))
            between.release()

    def release(self) -> bool:
        """True when nothing looks at it any more."""
        self.buffers.clear()
        while self._owners:
            try:
                self._owners[-1].release()
            except BufferError:
                return False
            self._owners.pop()
        return True


class Thawed:
    """The items of a batch, large `bytes` and `bytearray` copied out as their calls begin.

    All at once they would be fresh memory each time: faulting that in costs more than the copy.
    """

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        items = self._items
        for at, item in enumerate(items):
            if type(item) is memoryview:
                items[at] = None
                yield bytes(item) if item.readonly else bytearray(item)
            else:
                yield item


class Outbox:
    """A worker's piece of the arena for its large results: flags, then slots that grow as they are needed."""

    def __init__(self, offset: int, size: int) -> None:
        self._memory = arena.get()
        self._flags = self._memory.view(offset, FLAGS)
        self._next = offset + FLAGS
        self._end = offset + size
        self._slots: list[tuple[int, int]] = []
        self.offset = offset

    def put(self, buffers: Buffers) -> tuple[int, list[Place]] | None:
        """The address of the flag to clear and the places; None when there is no room now."""
        number = self._take(buffers.size)
        if number is None:
            return None
        self._flags[number] = 1
        return self.offset + number, buffers.copy_to(self._memory, self._slots[number][0])

    def _take(self, size: int) -> int | None:
        flags = self._flags
        for number, (_, have) in enumerate(self._slots):
            if not flags[number] and have >= size:
                return number
        step = max(4096, 1 << max(size.bit_length() - 4, 0))
        size = -(-size // step) * step
        if self._next + size > self._end or len(self._slots) == FLAGS:
            if any(flags[: len(self._slots)]):
                return None
            self._slots.clear()
            self._next = self.offset + FLAGS
            if self._next + size > self._end:
                return None
        self._slots.append((self._next, size))
        self._next += size
        return len(self._slots) - 1


def clear(flag: int) -> None:
    """The lane's side: the slot whose flag is at this address has been copied out."""
    arena.get().view(flag, 1)[0] = 0


def release_all(kept: Iterable[Views], freed: Callable[[int], None]) -> list[Views]:
    """Try again to release what functions kept; `freed` hears of each piece. Returns what is still kept."""
    still = []
    for views in kept:
        if views.release():
            freed(views.piece)
        else:
            still.append(views)
    return still
