"""A piece of the arena that several processes use together: who has it, who of them died, and when it is given back.

    | stamp, kind, size | the user's words, mutexes | hands: one cache line per process |  the user's memory  |
    0                   USER                        HANDS_AT                            BODY                 size

Invariants:
  1. A handle travels as (offset, stamp). The stamp is random and is cleared before the memory is given back, so who
     attaches to what is gone, or serves something else by now, is told.
  2. A hand belongs to the process whose number and birth (its start, in ticks) are in it. Numbers are used again by the
     kernel, the pair is not. It is claimed and given up under the mutex of the hands; its pid is stored last and
     cleared last. What a dead process left in its hand stays there until `bury` has been told of it.
  3. Only its maker frees a segment: when all handles there are gone, none was pickled or one was closed, and no other
     living process has a hand in it. Until then it waits and is looked at when the next segment is made.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from duodao import arena
from duodao.errors import Closed, TableFull
from duodao.sync import robust

STAMP, KIND, SIZE, MAKER, HIGH = range(5)
"""Words of the first cache line. HIGH: hands that were ever used, from the first on."""
USER = 128
"""Bytes. From here to HANDS_AT a user of segments has words and mutexes of its own."""
HANDS_AT = 4096
HANDS = 256
HAND_WORDS = 8
PID, BIRTH, FIRST = range(3)
"""Words of a hand; from FIRST on they are the user's, and stay as they are from one owner to the next."""
BODY = HANDS_AT + HANDS * HAND_WORDS * 8
_MUTEX_AT = 64
_EXITING = 4  # PF_EXITING of the kernel's include/linux/sched.h: a killed one gives its locks up before it is a zombie
_HAND_0 = HANDS_AT // 8


def birth(pid: int) -> int:
    """When the process began, in ticks since the machine did; 0 when there is none, or it is ending or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") or int(fields[6]) & _EXITING else int(fields[19])


class _Life:
    """What is to be done when the last handle in this process is gone."""

    __slots__ = ("closed", "hand", "offset", "pickled", "pid", "stamp", "words")

    def __init__(self, offset: int, stamp: int, words: Any) -> None:
        self.offset = offset
        self.stamp = stamp
        self.words = words
        self.pid = os.getpid()
        self.hand = 0
        self.pickled = False
        self.closed = False


class Segment:
    """One process's look at a segment. `make` and `attach` give it; all handles in a process share one.

    words: 8-byte words up to BODY. hand: the word at which this process's hand begins, 0 before `join`.
    """

    def __init__(self, offset: int, size: int, stamp: int) -> None:
        self.offset = offset
        self.size = size
        self.stamp = stamp
        self.memory = arena.get().view(offset, size)
        self.words: Any = self.memory[:BODY].cast("Q")
        self.life = _Life(offset, stamp, self.words)
        self.hand = 0
        self.mutex = robust.Mutex(offset + _MUTEX_AT)
        self.lock = threading.Lock()
        weakref.finalize(self, _end, self.life).atexit = False

    @classmethod
    def make(cls, kind: int, size: int) -> Segment:
        """A new one of `size` bytes; what is in front of BODY is zero. MemoryError, UsageError: as arena, as robust."""
        robust.native()
        give_back()
        offset = arena.get().allocate(size)
        arena.get().view(offset, BODY)[:] = bytes(BODY)
        made = cls(offset, size, secrets.randbits(63) | 1)
        made.mutex.init()
        words = made.words
        words[KIND], words[SIZE], words[MAKER] = kind, size, os.getpid()
        words[STAMP] = made.stamp
        _known[offset] = made
        return made

    @classmethod
    def attach(cls, kind: int, offset: int, stamp: int, what: str) -> Segment:
        """The one that a handle names. Closed: it is gone, or of another program."""
        with _lock:
            found = _known.get(offset)
            if found is not None and found.stamp == stamp and found.words[STAMP] == stamp:
                return found
            memory = arena.get()
            try:
                memory.pin(offset)
                words = memory.view(offset, BODY).cast("Q")
            except ValueError:
                raise _gone(what) from None
            if words[STAMP] != stamp or words[KIND] != kind:
                raise _gone(what)
            found = cls(offset, words[SIZE], stamp)
            _known[offset] = found
            return found

    def join(self, what: str) -> int:
        """Take a hand for this process; where it begins. Closed: it is gone. TableFull: all hands are taken."""
        with self.lock:
            if self.hand:
                return self.hand
            pid, words = os.getpid(), self.words
            if words[MAKER] != pid:
                arena.get().pin(self.offset)
            if words[STAMP] != self.stamp:
                raise _gone(what)
            with self.mutex.held():
                for at in self._all():
                    if words[at + PID] == 0:
                        break
                else:
                    if words[HIGH] == HANDS:
                        self.mutex.done()
                        raise TableFull(f"{what} is used by {HANDS} processes already; close it in those that are done")
                    at = _HAND_0 + words[HIGH] * HAND_WORDS
                    words[HIGH] += 1
                words[at + BIRTH] = birth(pid)
                words[at + PID] = pid
                self.mutex.done()
            self.hand = self.life.hand = at
            return at

    def _all(self) -> range:
        return range(_HAND_0, _HAND_0 + self.words[HIGH] * HAND_WORDS, HAND_WORDS)

    def hands(self) -> range:
        """Where each hand begins that was ever used."""
        return self._all()

    def dead(self) -> list[int]:
        """Where the hands of processes begin that have ended without giving them up."""
        words, own = self.words, self.hand
        return [at for at in self._all() if at != own and words[at + PID] and not _lives(words, at)]

    def bury(self, hand: int) -> None:
        """Nothing is left to be told of this hand's dead owner."""
        self.words[hand + PID] = 0

    def others(self) -> Iterator[int]:
        """The numbers of the other living processes that have a hand in it."""
        words = self.words
        for at in self._all():
            if at != self.hand and words[at + PID] and _lives(words, at):
                yield words[at + PID]


def _lives(words: Any, at: int) -> bool:
    return birth(words[at + PID]) == int(words[at + BIRTH])


def _gone(what: str) -> Closed:
    return Closed(f"{what} is gone: it was closed, its maker has ended, or it is of another program")


_known: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_waiting: list[_Life] = []


def _end(life: _Life) -> None:
    """The last handle of this process is gone. It may run in the collector, so it takes no lock and frees nothing."""
    words = life.words
    if life.pid != os.getpid() or words[STAMP] != life.stamp:
        return
    if life.hand:
        words[life.hand + PID] = 0
    if words[MAKER] == life.pid and (life.closed or not life.pickled):
        _waiting.append(life)


def give_back() -> None:
    """Free those whose handles here are gone, and in which no other living process has a hand any more."""
    for _ in range(len(_waiting)):
        try:
            life = _waiting.pop(0)
        except IndexError:  # another thread did it
            return
        words = life.words
        hands = range(_HAND_0, _HAND_0 + words[HIGH] * HAND_WORDS, HAND_WORDS)
        if any(words[at + PID] and _lives(words, at) for at in hands):
            _waiting.append(life)
            continue
        words[STAMP] = 0
        arena.get().free(life.offset)


def _after_fork() -> None:
    """The hands are the original's. A copy takes its own when it uses the segment."""
    global _lock  # noqa: PLW0603  # a thread that exists no more may have held it
    _lock = threading.RLock()
    for segment in list(_known.values()):
        segment.lock = threading.Lock()
        segment.hand = 0
        segment.life.hand = 0
        segment.life.pid = os.getpid()
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork)
