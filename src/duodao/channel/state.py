"""duodao.Shared: a mapping in memory that processes share.

Values are pickled into a log (facts.py) and come back frozen (frozen.py). Each thread, or task, remembers the version
it last read of a key (board.py): a write that follows from a read which is out of date is refused.
"""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from duodao import pickling
from duodao.channel.board import ABSENT, Board, board_of
from duodao.channel.facts import FIRST as _FIRST
from duodao.channel.facts import HALF, HOLDER, Facts, Write
from duodao.channel.frozen import ATOMS, freeze
from duodao.channel.segment import Segment, give_back
from duodao.errors import Closed, UsageError

K = TypeVar("K")
V = TypeVar("V")

SIZE = 64 << 20
"""Bytes of keys and values that a Shared holds at most, when nothing is said; memory is what is used."""
_KIND = 0x53
_MISSING: Any = object()
_numbers = itertools.count(1)


class Shared(MutableMapping[K, V]):
    """A mapping of picklable keys and values that all processes of the program share.

    initial: what is in it at first. name: for messages. size: bytes that keys and values may take.

    Single reads and writes are atomic. Values come back read-only. A write after a read that is out of date raises
    LostUpdate. `with state:` has the lock: what is assigned in the block counts all at once at its end, or not at all
    when it raises; others read what was there before. Pickled, it is the same mapping in other processes, also running
    ones. MemoryError: it is full. TypeError: a value can't be made read-only. NotPicklable. Closed. Source: M12.
    """

    _duodao_handle = True  # frozen.py

    def __init__(self, initial: Mapping[K, V] | None = None, /, *, name: str | None = None, size: int = SIZE) -> None:
        if not isinstance(size, int) or size < 4096:
            raise UsageError(f"size={size!r}: it is a number of bytes, at least 4096")
        size = -(-size // 4096) * 4096
        segment = Segment.make(_KIND, Facts.bytes_for(size))
        segment.words[HALF] = size
        segment.words[_FIRST] = ABSENT
        self._name = name or f"Shared-{next(_numbers)}"
        self._open(segment)
        self._table.facts.mutex.init()
        segment.join(f"Shared {self._name!r}")
        if initial is not None:
            self.update(initial)

    def _open(self, segment: Segment) -> None:
        self._shared: Board | None = board_of(segment, self._name)
        self._held: Board | None = None

    @property
    def _table(self) -> Board:
        table = self._shared
        if table is None:
            raise Closed(f"Shared {self._name!r} was closed here")
        return table

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    # -------------------------------------------------------------------------------------------------------- reading

    def __getitem__(self, key: K) -> V:
        table = self._table
        if table.pending and table.holder == threading.get_ident() and key in table.pending:
            write = table.pending[key]
            if write.value is None:
                raise KeyError(key)
            return write.frozen  # type: ignore[no-any-return]
        fact = table.facts.find(key)
        if fact is None:
            table.marks()[key] = ABSENT
            raise KeyError(key)
        table.marks()[key] = fact.version
        return fact.value  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        table = self._table
        pending = self._pending(table)
        if key in pending:
            return pending[key].value is not None
        table.facts.catch_up()
        if key in table.facts.known:
            return True
        table.marks()[key] = ABSENT
        return False

    def _pending(self, table: Board) -> dict[Any, Write]:
        return table.pending if table.pending and table.holder == threading.get_ident() else {}

    def snapshot(self) -> dict[K, V]:
        """All of it as it was at one instant; the values are read-only."""
        table = self._table
        found = table.facts.all()
        marks = table.marks()
        for key, fact in found.items():
            marks[key] = fact.version
        values = {key: fact.value for key, fact in found.items()}
        for key, write in self._pending(table).items():
            if write.value is None:
                values.pop(key, None)
            else:
                values[key] = write.frozen
        return values

    def __iter__(self) -> Iterator[K]:
        table = self._table
        table.facts.catch_up()
        keys = dict.fromkeys(list(table.facts.known))
        for key, write in self._pending(table).items():
            if write.value is None:
                keys.pop(key, None)
            else:
                keys[key] = None
        return iter(list(keys))

    def __len__(self) -> int:
        table = self._table
        if self._pending(table):
            return len(list(iter(self)))
        table.facts.catch_up()
        return len(table.facts.known)

    def keys(self) -> Any:
        """Of one instant, as those of a dict."""
        return self.snapshot().keys()

    def values(self) -> Any:
        """Of one instant, as those of a dict."""
        return self.snapshot().values()

    def items(self) -> Any:
        """Of one instant, as those of a dict."""
        return self.snapshot().items()

    def __repr__(self) -> str:
        if self._shared is None:
            return f"<Shared {self._name!r}, closed>"
        return f"Shared({self.snapshot()!r})"

    # -------------------------------------------------------------------------------------------------------- writing

    def __setitem__(self, key: K, value: V) -> None:
        table = self._table
        write = _write(key, value, self._name)
        keep = False
        try:
            table.acquire()
            table.check(key)
            table.pending[key] = write
            keep = True
        finally:
            table.release(keep=keep)

    def __delitem__(self, key: K) -> None:
        self._remove(key, check=True)

    def _remove(self, key: K, *, check: bool) -> V:
        table = self._table
        packed = _packed(key, "key")
        keep = False
        try:
            table.acquire()
            if check:
                table.check(key)
            value = self[key]
            table.pending[key] = Write(key, packed, None)
            keep = True
        finally:
            table.release(keep=keep)
        return value

    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Take a key out and return its value, in one step; `default` when it is not there, else KeyError."""
        try:
            return self._remove(key, check=False)
        except KeyError:
            if default is _MISSING:
                raise
            return default

    def popitem(self) -> tuple[K, V]:
        """Take out the key that came last, in one step. KeyError: there is none."""
        with self:
            keys = list(self)
            if not keys:
                raise KeyError("popitem(): the Shared is empty")
            return keys[-1], self.pop(keys[-1])

    def clear(self) -> None:
        """Take out all keys, in one step."""
        with self:
            for key in self:
                self.pop(key)

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value of the key; `default`, which it then has, when it had none. One step."""
        with self:
            try:
                return self[key]
            except KeyError:
                self[key] = default
                return self[key]

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Assign all of it, in one step."""
        pairs = other.items() if isinstance(other, Mapping) else other
        values = {**dict(pairs), **more}
        with self:
            for key, value in values.items():
                self[key] = value

    def update_key(self, key: K, function: Callable[[V], V], default: Any = _MISSING) -> V:
        """Let the key have `function(its value)`, in one step, and return that.

        The function gets the value read-only, and runs while others wait. What it raises is passed on, and the value
        stays. default: what it gets when there is no such key; without, that is a KeyError.
        """
        with self:
            try:
                before = self[key]
            except KeyError:
                if default is _MISSING:
                    raise
                before = default
            self[key] = function(before)
            return self[key]

    def __enter__(self) -> Shared[K, V]:
        table = self._table
        table.acquire()
        if table.depth == 1:
            table.facts.words[HOLDER] = os.getpid()
            self._held = table  # also when it is closed inside
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        table = self._held
        if table is not None:
            if table.depth == 1:
                self._held = None
            table.release(keep=kind is None)

    # ------------------------------------------------------------------------------------------------------ its ends

    def close(self) -> None:
        """Give back what this object holds; using it later raises Closed. The values stay for other handles."""
        table, self._shared = self._shared, None
        if table is not None:
            table.segment.life.closed = True
            del table
            give_back()

    def __reduce__(self) -> Any:
        segment = self._table.segment
        segment.life.pickled = True
        return _attach, (segment.offset, segment.stamp, self._name)


def _write(key: Any, value: Any, name: str) -> Write:
    packed_key = _packed(key, "key")
    packed = _packed(value, "value")
    if type(value) in ATOMS:
        return Write(key, packed_key, packed, value)
    try:
        return Write(key, packed_key, packed, freeze(pickle.loads(packed)))
    except TypeError as error:
        raise TypeError(f"Shared {name!r} can't have this value for {key!r}: {error}") from None


def _packed(value: Any, what: str) -> bytes:
    if what == "key":
        hash(value)
    try:
        return pickling.dumps(value)
    except pickling.Raised as error:
        raise pickling.not_picklable(value, what, error) from error


def _attach(offset: int, stamp: int, name: str) -> Shared[Any, Any]:
    segment = Segment.attach(_KIND, offset, stamp, f"Shared {name!r}")
    segment.join(f"Shared {name!r}")
    segment.life.pickled = True
    found: Shared[Any, Any] = object.__new__(Shared)
    found._name = name
    found._open(segment)
    return found
