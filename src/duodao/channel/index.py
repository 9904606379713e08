"""What the indexes of a shared queue have in common: words, locks, bells, and the account of its processes.

Invariants, with `puts` and `gets` the items ever put and taken (words TAIL and HEAD), and sums over all hands:
  1. sum(PUT) = TAIL, plus what is being put, under the putters' lock. sum(TAKEN) = HEAD, less what is being taken,
     under the getters' lock. So after a death under a lock the difference is what the dead one had in it.
  2. TAKEN - RETURNED of a hand is what its process took and has not handed to its caller yet: lost if it dies.
  3. sum(DONE) = the word DONE, less what is being counted, under the mutex of the ends.
  4. Locks are taken in the order: putters', getters', ends, blocks. None is held while anything is pickled, unpickled
     or waited for.
A signal handler that uses the queue whose lock its own thread has gets RuntimeError, and the lock stays as it is (OWN).
Between a store to a hand and the store that commits it no function is called: a signal can't come between them, only a
kill.

Waiting: a waiter sets its WANT word, reads the bell, looks, and sleeps while the bell is what it read. Who changes
something looks at WANT after he has left the lock (leaving it is a full fence), and rings. A woken one sets WANT again,
for there may be others. A kill between the change and the ring costs the others a slice.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from duodao.channel.blocks import WRITTEN, Blocks
from duodao.channel.segment import FIRST, PID, Segment
from duodao.errors import ShutDown
from duodao.sync import robust

PUT_LOCK_AT, GET_LOCK_AT, ENDS_AT = 128, 192, 256
TAIL, WRITE_END = 40, 41
HEAD = 48
SHUT, WANT_ITEM, WANT_ROOM, WANT_DONE, DONE, COUNT, COUNTED, MOVING = 56, 57, 58, 59, 60, 61, 62, 63
BELL_ITEM, BELL_ROOM, BELL_DONE = 64, 72, 80
MAXSIZE, ORDER, SPACE = 88, 89, 90
PUT_FIX, TAKE_FIX, PUT_UNSAID, TAKE_UNSAID, LOST, LOSSES = 96, 97, 98, 99, 100, 101
KEPT_LOSSES = 8
H_PUT, H_TAKEN, H_RETURNED, H_DONE = FIRST, FIRST + 1, FIRST + 2, FIRST + 3
_TRIES = 20
"""Times that a lock is tried before its waiter sleeps: it is held for some microseconds."""


class Loss(NamedTuple):
    """What a process took with it. got: items it had just taken; put: items it was putting; left: taken by it, and not
    said to be done."""

    pid: int
    got: int
    put: int
    left: int

    def __str__(self) -> str:
        parts = []
        if self.got:
            parts.append(f"{self.got} that it had just taken")
        if self.put:
            parts.append(f"{self.put} that it was putting")
        if self.left:
            parts.append(f"{self.left} that it had not said to be done (they count as done now)")
        return f"process {self.pid} ended in the middle of it: lost {' and '.join(parts)}"


class Index:
    """The order of a shared queue's items. Subclasses have push, pop, pop_many, mend_put and mend_get."""

    def __init__(self, segment: Segment, blocks: Blocks, name: str, *, one_lock: bool) -> None:
        self.segment = segment
        self.blocks = blocks
        self.name = name
        self.words: Any = segment.words
        offset = segment.offset
        self.putting = robust.Mutex(offset + PUT_LOCK_AT)
        self.getting = self.putting if one_lock else robust.Mutex(offset + GET_LOCK_AT)
        self.ends = robust.Mutex(offset + ENDS_AT)
        self.bells = {want: robust.Word(offset + bell * 8) for want, bell in _BELLS.items()}
        native = robust.native()
        self.trylock, self.unlock = native.trylock, native.unlock
        self.put_pointer, self.get_pointer = self.putting.ref, self.getting.ref
        self.maxsize: int = self.words[MAXSIZE]
        self.unpacked: tuple[int, list[Any]] = (-1, [])  # the place of the LIST that was read last, and its items

    def init(self) -> None:
        """Set the locks up, before others know the segment."""
        for mutex in {id(m): m for m in (self.putting, self.getting, self.ends)}.values():
            mutex.init()

    def join(self) -> int:
        """This process's hand."""
        return self.segment.join(f"Queue {self.name!r}")

    # ------------------------------------------------------------------------------------------------ taking the locks

    def enter(self, mutex: robust.Mutex, code: int, *, tell: bool = True) -> None:
        """What is to be done when a lock was not simply free: wait, and mend what a dead holder left."""
        tries = 0
        while code:
            if code == robust.DEAD:
                self._mend(mutex)
                mutex.consistent()
                if not tell:
                    return
                mutex.unlock()
                self.mourn()  # now, while no item is in our hands: a warning may be an error
                code = mutex.trylock()
            elif code in (robust.BUSY, robust.OVER):
                tries += 1
                code = mutex.trylock() if tries < _TRIES else mutex.lock(robust.SLICE)
            else:
                raise robust._refusal(code)

    def _mend(self, mutex: robust.Mutex) -> None:
        """A second Ctrl-C within microseconds is not expected; a first one waits until all is mended."""
        mends = {id(self.putting): self.mend_put, id(self.getting): self.mend_get}
        if self.putting is self.getting:
            mends[id(mutex)] = self.mend_both
        mend = mends[id(mutex)]
        try:
            mend()
        except BaseException:
            mend()
            raise

    def mend_both(self) -> None:
        """The two are one lock."""
        self.mend_put()
        self.mend_get()

    def mend_put(self) -> None:
        """The last one that had the putters' lock died in it."""
        raise NotImplementedError

    def mend_get(self) -> None:
        """The last one that had the getters' lock died in it."""
        raise NotImplementedError

    def push(self, data: bytes, kind: int = 0, count: int = 1, item: Any = None) -> int:
        """Put a record: 1 done, 0 there is no room for more items, -1 none for so many bytes."""
        raise NotImplementedError

    def pop(self) -> Any:
        """Take the next item; None when there is none."""
        raise NotImplementedError

    def pop_many(self, n: int) -> list[Any]:
        """Take what is there, `n` items at most."""
        raise NotImplementedError

    def length(self) -> int:
        """Items in it."""
        raise NotImplementedError

    def note_put(self, freed: int) -> None:
        """Of mend_put: what the dead one had counted and not committed, or `freed` blocks of it, is lost."""
        words = self.words
        excess = self._sum(H_PUT) - words[TAIL] - words[PUT_FIX]
        words[PUT_UNSAID] += max(freed, excess)
        words[PUT_FIX] += excess

    def note_taken(self) -> None:
        """Of mend_get: what the dead one had committed and not counted is lost."""
        words = self.words
        missing = words[HEAD] - self._sum(H_TAKEN) - words[TAKE_FIX]
        words[TAKE_UNSAID] += missing
        words[TAKE_FIX] += missing

    def _sum(self, field: int) -> int:
        words = self.words
        return sum(words[at + field] for at in self.segment.hands())

    # --------------------------------------------------------------------------------------------------- what died with

    def mourn(self) -> None:
        """Look whether a process that used the queue has died: free what it held, count what is lost, and warn."""
        if not (self.segment.dead()):
            return
        found = self._settle()
        for loss in found:
            warnings.warn(f"Queue {self.name!r}: {loss}", RuntimeWarning, stacklevel=2)
        if found:
            for want in _BELLS:
                self.ring(want)

    def _settle(self) -> list[Loss]:
        words = self.words
        found = []
        held: list[robust.Mutex] = []
        try:
            for mutex in (self.putting, self.getting) if self.putting is not self.getting else (self.putting,):
                code = mutex.trylock()
                if code != robust.OWN:
                    held.append(mutex)
                self.enter(mutex, code, tell=False)
            with self.ends.held() as undone:
                if undone:
                    self._recount()
                for hand in self.segment.dead():
                    loss = self._bury(hand)
                    if loss.got or loss.put or loss.left:
                        lost = loss.got + loss.put
                        self._keep(loss.pid << 32 | lost)
                        words[LOST] += lost
                        found.append(loss)
                self.ends.done()
        finally:
            for mutex in reversed(held):
                mutex.unlock()  # EPERM where it was not taken
        return found

    def _bury(self, hand: int) -> Loss:
        words = self.words
        mine = self.blocks.of(hand)
        put, words[PUT_UNSAID] = words[PUT_UNSAID] + sum(state == WRITTEN for _, state in mine), 0
        missing, words[TAKE_UNSAID] = words[TAKE_UNSAID], 0
        for block, _ in mine:
            self.blocks.free(block)
        got = max(0, words[hand + H_TAKEN] - words[hand + H_RETURNED]) + missing
        words[hand + H_RETURNED] = words[hand + H_TAKEN]
        at_most = words[hand + H_TAKEN] + missing - words[hand + H_DONE]
        surplus = sum(max(0, words[at + H_DONE] - words[at + H_TAKEN]) for at in self.segment.hands() if at != hand)
        left = max(0, min(at_most - surplus, self.unfinished()))
        words[hand + H_DONE] += left
        words[DONE] += left
        if not words[COUNTED]:
            left = 0
        loss = Loss(words[hand + PID], got, put, max(0, left - got))
        self.segment.bury(hand)
        return loss

    def _keep(self, loss: int) -> None:
        """The oldest one goes."""
        kept = [loss, *(self.words[LOSSES + place] for place in range(KEPT_LOSSES - 1))]
        for place, each in enumerate(kept):
            self.words[LOSSES + place] = each

    def _recount(self) -> None:
        self.words[DONE] = self._sum(H_DONE)

    # ---------------------------------------------------------------------------------------------- what is done with

    def unfinished(self) -> int:
        """Items put and not said to be done."""
        words = self.words
        return int(max(0, words[TAIL] - words[DONE]))

    def finish(self, n: int, *, at_most: bool = False) -> None:
        """`n` items are done with. ValueError: so many were not put; at_most: then fewer are."""
        words = self.words
        hand = self.segment.hand or self.join()
        with self.ends.held() as undone:
            if undone:
                self._recount()
            if at_most:
                n = min(n, self.unfinished())
            else:
                words[COUNTED] = 1
            enough = words[TAIL] - words[DONE] >= n
            if enough:
                words[hand + H_DONE] += n
                words[DONE] += n
            self.ends.done()
        if not enough:
            raise ValueError("task_done() called too many times")
        if words[WANT_DONE] and not self.unfinished():
            self.ring(WANT_DONE)

    def losses(self) -> list[str]:
        """What the last processes lost."""
        kept = (self.words[LOSSES + place] for place in range(KEPT_LOSSES))
        return [f"pid {loss >> 32}: {loss & 0xFFFFFFFF}" for loss in kept if loss]

    def returned(self, n: int) -> None:
        """`n` items that were taken are in their callers' hands now."""
        # Not atomic between threads where there is no GIL: then a kill may tell of an item less or more.
        at = self.segment.hand + H_RETURNED
        self.words[at] += n

    def shut_down(self) -> ShutDown:
        """The error for a put, or a get that finds nothing."""
        return ShutDown(f"Queue {self.name!r} was shut down: no more items are put, and what was in it has been taken")

    def shut(self) -> None:
        """Nothing is put any more."""
        code = 0
        try:
            code = self.putting.trylock()
            if code:
                self.enter(self.putting, code)
            self.words[SHUT] = 1
        finally:
            if code != robust.OWN:
                self.putting.unlock()
        for want in _BELLS:
            self.ring(want)

    # --------------------------------------------------------------------------------------------------------- waiting

    def ring(self, want: int, n: int = 0x7FFFFFFF) -> None:
        """Wake `n` of those who wait for it."""
        words = self.words
        words[want] = 0
        bell = self.bells[want]
        bell.value = time.monotonic_ns() >> 6  # never what it was a moment ago, whoever rings at once with us
        bell.wake(n)

    def wait(self, want: int, ready: Callable[[], Any], seconds: float) -> Any:
        """Look whether `ready()` gives something true; if not, wait for a ring, and return None. At most a slice."""
        bell = self.bells[want]
        self.words[want] = 1
        seen = bell.value
        got = ready()
        if got or bell.wait(seen, seconds):
            return got
        self.mourn()
        return None


_BELLS = {WANT_ITEM: BELL_ITEM, WANT_ROOM: BELL_ROOM, WANT_DONE: BELL_DONE}
