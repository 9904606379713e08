"""One sparse piece of memory that every process of a program maps: the arena.

It is a memfd, made on first need, inherited by the guard and by every worker, so an offset in it means the same bytes
in all of them: offsets travel as plain numbers and reach workers that already run. Unlike named shared memory there is
nothing to unlink: it goes when its last process goes (https://github.com/python/cpython/issues/82300).

    0                COMMON_AT            COMMON_AT + COMMON           size
    | progress slots | tables known to all | payload, regions of 1 GiB |

Invariants:
  1. A region (and a page of progress slots) belongs to the process that holds the kernel's record lock on its number,
     for as long as that process lives. A worker that is itself a supervisor allocates beside its own supervisor without
     asking it, and what a killed process owned is free at once.
     A process that uses what another allocated pins its region: it then outlives its owner, until the last user ends.
  2. Only the process that allocated an offset frees it. Its bytes are zero or what their last owner left there.
  3. Pages cost memory from their first use until they are punched out. At most WARM bytes of freed ones are kept, since
     faulting a page in costs more than copying into it.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import mmap
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT = 64
"""Bytes of one worker's progress slot: a cache line, so that no two workers write to the same one."""
SLOTS = 4096
COMMON_AT = SLOT * SLOTS
COMMON = 4 << 20
"""Bytes at COMMON_AT that all processes know without being told: the table of who waits for whom."""
REGION = 1 << 30
WARM = 256 << 20
WARM_EACH = 64 << 20
"""Bytes. A freed extent larger than this goes back to the kernel at once."""
_LARGEST = 64 << 30
_SMALLEST = 64 << 20
_PAGE = mmap.PAGESIZE
_SLOTS_PER_PAGE = _PAGE // SLOT
# The numbers of record locks: regions begin at 0, then
_SLOT_LOCKS = 1 << 20  # the pages of progress slots
_PIN_LOCKS = 2 << 20  # the users of regions
_ONCE_LOCK = 3 << 20
_FIRST_FD = 10  # lower numbers are the ones programs expect for themselves, and those a guard gives to what it is sent


class Arena:
    """The shared memory of this program; `get()` returns it. Safe to use from several threads and after a fork."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self._bytes = memoryview(self._map)
        if hasattr(mmap, "MADV_DONTDUMP"):
            self._map.madvise(mmap.MADV_DONTDUMP)  # a core dump with 64 GiB of holes in it helps nobody
        self._region = min(REGION, size // 8)
        self._taken: dict[int, int] = {}
        self._slots_taken: set[int] = set()
        self._originals: set[int] = set()
        self._pinned: set[int] = set()
        self.forget()

    def forget(self) -> None:
        """Own nothing: a forked copy starts like this, for the record locks stayed with the original."""
        self._lock = threading.Lock()
        self._originals |= {*self._taken, *self._slots_taken}
        self._taken.clear()
        self._slots_taken.clear()
        self._extents = _Extents()
        self._warm: OrderedDict[int, int] = OrderedDict()  # offset -> size, the oldest first
        self._warm_by_size: dict[int, list[int]] = {}
        self._warm_total = 0
        self._locked: set[int] = set()
        self._slots: list[int] = []
        for number in self._pinned:
            fcntl.lockf(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _PIN_LOCKS + number)

    @property
    def whole(self) -> mmap.mmap:
        """All of it: a slice of a map is `bytes`, in one step where a view takes two."""
        return self._map

    def view(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`, writable, not a copy. ValueError when they are not all inside the arena."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} are not inside the arena of {self.size} bytes")
        return self._bytes[offset : offset + size]

    def allocate(self, size: int) -> int:
        """The page-aligned offset of `size` bytes. MemoryError when the arena has no such piece left."""
        size = _rounded(size)
        with self._lock:
            offset = self._reuse(size)
            if offset is None:
                offset = self._extents.take(size)
            if offset is None and self._claim(size):
                offset = self._extents.take(size)
            if offset is None:
                self._cool(0)
                offset = self._extents.take(size)
            if offset is None:
                raise MemoryError(f"no {size} bytes in one piece are left in the arena of {self.size} bytes")
            self._taken[offset] = size
            return offset

    def free(self, offset: int) -> None:
        """Give back what `allocate` returned. ValueError for anything else: a double free would hand it out twice.

        In a forked copy, what the original allocated stays the original's: giving it back there does nothing.
        """
        with self._lock:
            size = self._taken.pop(offset, None)
            if size is None:
                self._check_original(offset)
                return
            if size > WARM_EACH:
                self._chill(offset, size)
                return
            self._warm[offset] = size
            self._warm_by_size.setdefault(size, []).append(offset)
            self._warm_total += size
            self._cool(WARM)

    def pin(self, offset: int) -> None:
        """Keep the region of `offset`, which another process allocated, for as long as this process lives.

        ValueError when it is not inside the arena.
        """
        self.view(offset, 1)
        number = offset // self._region
        with self._lock:
            if number not in self._locked and number not in self._pinned:
                fcntl.lockf(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _PIN_LOCKS + number)
                self._pinned.add(number)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process, and no other thread of this one, is in here: to set up what lies in COMMON."""
        with self._lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, _ONCE_LOCK)
            try:
                yield
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, _ONCE_LOCK)

    def slot(self) -> int:
        """The offset of a free progress slot of SLOT zero bytes. MemoryError when all SLOTS of them are taken."""
        with self._lock:
            if not self._slots and not self._claim_slots():
                raise MemoryError(f"all {SLOTS} progress slots are taken")
            offset = self._slots.pop()
            self._slots_taken.add(offset)
        self._bytes[offset : offset + SLOT] = bytes(SLOT)
        return offset

    def release(self, slot: int) -> None:
        """Give back what `slot` returned. ValueError and forked copies: as with `free`."""
        with self._lock:
            if slot not in self._slots_taken:
                self._check_original(slot)
                return
            self._slots_taken.discard(slot)
            self._slots.append(slot)

    def trim(self) -> None:
        """Return the pages of all that is free to the kernel: for the end of a run."""
        with self._lock:
            self._cool(0)

    def _check_original(self, offset: int) -> None:
        if offset not in self._originals:
            raise ValueError(f"offset {offset} is not allocated, or not by this process")

    def _reuse(self, size: int) -> int | None:
        """The extent of this size that was freed last: its pages are there, and may still be in the cache."""
        offsets = self._warm_by_size.get(size)
        if not offsets:
            return None
        offset = offsets.pop()
        del self._warm[offset]
        self._warm_total -= size
        return offset

    def _cool(self, limit: int) -> None:
        """Punch out the extents freed longest ago until at most `limit` bytes are warm."""
        while self._warm_total > limit:
            offset, size = self._warm.popitem(last=False)
            self._warm_by_size[size].remove(offset)
            self._warm_total -= size
            self._chill(offset, size)

    def _chill(self, offset: int, size: int) -> None:
        self._punch(offset, size)
        self._extents.add(offset, size)

    def _punch(self, offset: int, size: int) -> None:
        if hasattr(mmap, "MADV_REMOVE"):  # Linux: the pages go from every process at once. Elsewhere they stay
            self._map.madvise(mmap.MADV_REMOVE, offset, size)

    def _claim(self, size: int) -> bool:
        """Own the first run of free regions that holds `size` bytes; False, and nothing owned, when there is none."""
        run: list[int] = []
        for number in range(self.size // self._region):
            if self._lock_number(number):
                run.append(number)
            else:
                self._unlock_numbers(run)
            if run and self._in_use(number):
                self._unlock_numbers(run)
            if run and self._end(run) - self._start(run) >= size:
                self._chill(self._start(run), self._end(run) - self._start(run))  # a killed owner may have left pages
                return True
        self._unlock_numbers(run)
        return False

    def _in_use(self, number: int) -> bool:
        """Does a process still use what a dead owner allocated in this region? A test: record locks can be tried."""
        if number in self._pinned:
            return True
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PIN_LOCKS + number)
        except OSError:
            return True
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, _PIN_LOCKS + number)
        return False

    def _start(self, run: list[int]) -> int:
        return max(run[0] * self._region, COMMON_AT + COMMON)

    def _end(self, run: list[int]) -> int:
        return (run[-1] + 1) * self._region

    def _claim_slots(self) -> bool:
        for page in range(SLOTS // _SLOTS_PER_PAGE):
            if self._lock_number(_SLOT_LOCKS + page):
                first = page * _PAGE
                self._slots = list(range(first + _PAGE - SLOT, first - 1, -SLOT))
                return True
        return False

    def _lock_number(self, number: int) -> bool:
        """Take record lock `number` for as long as this process lives; False when it is taken, also by ourselves.

        Record locks belong to the process and vanish with it; no lease and no "is that pid alive" is needed. Their
        trap, that closing any descriptor of the file drops them all, is met by never closing one.
        """
        if number in self._locked:
            return False
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        self._locked.add(number)
        return True

    def _unlock_numbers(self, run: list[int]) -> None:
        for number in run:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, number)
            self._locked.discard(number)
        run.clear()


class _Extents:
    """Free extents without pages: sorted by offset, neighbours joined, taken first-fit."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []

    def take(self, size: int) -> int | None:
        """The offset of the first extent that holds `size` bytes, cut to it; None when there is none."""
        for place, have in enumerate(self._sizes):
            if have >= size:
                start = self._starts[place]
                if have == size:
                    del self._starts[place], self._sizes[place]
                else:
                    self._starts[place] = start + size
                    self._sizes[place] = have - size
                return start
        return None

    def add(self, offset: int, size: int) -> None:
        """Make `size` bytes at `offset` free, joined to free neighbours."""
        place = bisect.bisect_left(self._starts, offset)
        if place < len(self._starts) and offset + size == self._starts[place]:
            size += self._sizes[place]
            del self._starts[place], self._sizes[place]
        if place and self._starts[place - 1] + self._sizes[place - 1] == offset:
            self._sizes[place - 1] += size
            return
        self._starts.insert(place, offset)
        self._sizes.insert(place, size)


def _rounded(size: int) -> int:
    """`size` up to whole pages and, above eight of them, to one of eight steps per power of two.

    Sizes that differ a little then reuse each other's warm extents; what is rounded up is address space, not memory.
    """
    if size < 0:
        raise ValueError(f"a size of {size} bytes is negative")
    step = max(_PAGE, 1 << max(size.bit_length() - 4, 0))
    return max(-(-size // step) * step, _PAGE)


class _Home:
    """Where the one arena of this process is kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arena: Arena | None = None

    def after_fork(self) -> None:
        self.lock = threading.Lock()  # a thread that exists no more may have held it
        if self.arena is not None:
            self.arena.forget()


_home = _Home()
os.register_at_fork(after_in_child=_home.after_fork)


def get() -> Arena:
    """The arena of this program: made on first need, in a worker the one it came with. OSError without memory."""
    with _home.lock:
        if _home.arena is None:
            _home.arena = _make()
        return _home.arena


def inherited(fd: int) -> Arena:
    """Map the arena that this process was given as descriptor `fd`; from then on `get` returns it."""
    with _home.lock:
        _home.arena = Arena(fd, os.fstat(fd).st_size)
        return _home.arena


def _make() -> Arena:
    fd = _sparse_file()
    size = _LARGEST
    while True:
        try:
            os.ftruncate(fd, size)
            with _low_numbers_taken():
                return Arena(fd, size)
        except (OSError, OverflowError, ValueError):  # limits on address space or on file sizes
            size //= 2
            if size < _SMALLEST:
                os.close(fd)
                raise


@contextlib.contextmanager
def _low_numbers_taken() -> Iterator[None]:
    """mmap keeps a descriptor of its own; where stdout is closed, what a C library prints would end up in the arena."""
    taken: list[int] = []
    try:
        while not taken or taken[-1] < 2:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)


def _sparse_file() -> int:
    if hasattr(os, "memfd_create"):
        low = os.memfd_create("duodao-arena")
    else:  # macOS: an unlinked file
        import tempfile

        with tempfile.TemporaryFile(prefix="duodao-arena-") as file:
            low = os.dup(file.fileno())
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    finally:
        os.close(low)
