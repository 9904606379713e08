"""Cells: 128 bytes of the arena, each of them one shared lock, semaphore, event, condition or barrier.

    0            64      72       80                    128
    | the mutex  | stamp | holder | words of its owner  |

A handle travels as (offset, stamp). The stamp is a random number that no other cell has or had: it is compared whenever
the mutex has been taken, so a handle of something that was closed meets an error, whatever its cell serves by then.

Invariants:
  1. The mutex of a cell is set up once and outlives what uses it; cells are made again only for the same kind of mutex.
  2. The stamp changes only under the mutex. Nobody closes what somebody else holds.
  3. Cells belong to the process that made them. Whoever receives one pins its region of the arena, so it works on
     among those that have it when its maker ends; after that nobody new can have it.
  4. A cell that never left its process is free with its last handle; one that was sent, or lived through a fork, when
     it is closed or its maker ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections import deque
from typing import Any

from duodao import arena
from duodao.errors import Closed
from duodao.sync import threads
from duodao.sync.robust import BUSY, DEAD, OVER, SIZE, Mutex

CELL = 128
WORDS_AT = SIZE
STAMP, HOLDER = 0, 1
"""Of a cell's 8-byte words. Those from FREE_AT bytes on are for what the cell is used for."""
FREE_AT = 80
UNTOLD = 1
"""Stamps are even: this bit says that a death was told to one that was interrupted before it could tell."""
_CHUNK = 65536
_TRIES = 1000


class _Store:
    """The free cells of this process, by whether their mutex may be taken again by its owner.

    No lock: a handle may be collected, and its cell come back, at any instruction of any thread, also in here.
    """

    def __init__(self) -> None:
        self.free: dict[bool, deque[int]] = {False: deque(), True: deque()}
        self.fresh: deque[int] = deque()
        self.forks = 0
        self.pid = os.getpid()

    def take(self, *, again: bool) -> int:
        """The offset of a cell with a free mutex. MemoryError when the arena is full."""
        with contextlib.suppress(IndexError):
            return self.free[again].pop()
        while True:
            with contextlib.suppress(IndexError):
                offset = self.fresh.pop()
                break
            start = arena.get().allocate(_CHUNK)
            self.fresh.extend(range(start + _CHUNK - CELL, start - 1, -CELL))
        Mutex(offset).init(again=again)
        return offset

    def give_back(self, offset: int, *, again: bool) -> None:
        self.free[again].append(offset)

    def forked(self) -> None:
        """In the copy: what the original made stays the original's."""
        self.__init__()  # type: ignore[misc]


_store = _Store()


def _forked_here() -> None:
    _store.forks += 1


os.register_at_fork(before=_forked_here, after_in_child=_store.forked)


class Cell:
    """One cell, as one handle of one process has it."""

    __slots__ = ("_again", "_forks", "_maker", "mutex", "offset", "sent", "stamp", "words")

    def __init__(self, offset: int, stamp: int, *, again: bool, maker: int) -> None:
        self.offset = offset
        self.stamp = stamp
        self.mutex = Mutex(offset)
        self.words = arena.get().view(offset + WORDS_AT, CELL - WORDS_AT).cast("Q")
        self.sent = False
        self._again = again
        self._maker = maker
        self._forks = _store.forks

    def __reduce__(self) -> tuple[Any, ...]:
        self.sent = True
        return attach, (self.offset, self.stamp, self._again, self._maker)

    def is_open(self) -> bool:
        """Is it still what the handle was made for?"""
        return self.words[STAMP] | UNTOLD == self.stamp | UNTOLD

    def last_holder(self) -> str:
        """Who took the mutex last, by what it wrote; "" when that can't have been the one that died."""
        word = self.words[HOLDER]
        tid = word & 0xFFFFFFFF
        if not tid or tid == threads.ME.tid or threads.is_alive(tid):
            return ""
        return threads.describe(word >> 32, tid)

    def retire(self, patience: float = 0.0) -> bool:
        """Make every handle of it invalid. False when somebody else holds the mutex, for longer than `patience` s.

        The memory is used again when this process made it.
        """
        if not self.is_open():  # done before: by now the cell may be another's, which this very thread holds
            return True
        code = self.mutex.lock(patience) if patience else self.mutex.trylock()
        if code in {BUSY, OVER}:
            return False
        if code == DEAD:
            self.mutex.consistent()
        was_open = self.is_open()
        if was_open:
            self.words[STAMP] = 0
        while self.mutex.unlock() == 0:  # as often as it was taken
            continue
        if was_open and self._maker == os.getpid() == _store.pid:
            _store.give_back(self.offset, again=self._again)
        return True

    def drop(self) -> None:
        """The handle is gone: so is the cell, if nobody else can have it. One that is held is left alone."""
        if not self.sent and self._forks == _store.forks and self._maker == os.getpid():
            self.retire()


def new(*, again: bool = False) -> Cell:
    """A cell of this process, its words zero, its mutex free. MemoryError when the arena is full.

    again: the mutex's owner may take it again. UsageError where processes can't share locks.
    """
    offset = _store.take(again=again)
    cell = Cell(offset, secrets.randbits(62) << 1 or 2, again=again, maker=os.getpid())
    cell.words[1:] = memoryview(bytes(CELL - WORDS_AT - 8)).cast("Q")
    cell.words[STAMP] = cell.stamp
    return cell


def attach(offset: int, stamp: int, again: bool, maker: int) -> Cell:
    """The cell that another process sent. Closed when it was closed, or its maker ended before it arrived."""
    memory = arena.get()
    try:
        _pin(memory, offset)
        cell = Cell(offset, stamp, again=again, maker=maker)
    except ValueError:
        raise _closed() from None
    cell.sent = True
    if not cell.is_open():
        raise _closed()
    return cell


def _pin(memory: arena.Arena, offset: int) -> None:
    for left in range(_TRIES, 0, -1):
        try:
            memory.pin(offset)
        except BlockingIOError:  # a process that looks for room tries the lock, for a few microseconds
            if left == 1:
                raise
            os.sched_yield()
        else:
            return


def _closed() -> Closed:
    return Closed("this shared lock was closed, its maker ended before it arrived here, or it is of another program")
