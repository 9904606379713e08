"""The arena: what is allocated is one's own, what is freed is reused or returned, and processes never collide."""

from __future__ import annotations

import os
import random
import threading

import pytest

from duodao import arena
from duodao.arena import SLOT, SLOTS, WARM, Arena, _Extents, _rounded

MB = 1 << 20


@pytest.fixture
def memory(monkeypatch):
    """A small arena of the test's own, in the place of the process's."""
    fd = os.memfd_create("test-arena")
    os.ftruncate(fd, 1 << 30)
    made = Arena(fd, 1 << 30)
    monkeypatch.setattr(arena._home, "arena", made)
    yield made
    made._bytes.release()
    made._map.close()
    os.close(fd)


def resident(memory):
    """Bytes of the arena that cost memory."""
    return os.fstat(memory.fd).st_blocks * 512


def in_a_fork(function):
    """What `function()` returns, an int, in a forked copy of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    text = os.read(reader, 100)
    os.close(reader)
    return int(text)


def test_one_arena_per_process():
    """`get` returns the same arena every time, and its descriptor leaves the low numbers to programs."""
    assert arena.get() is arena.get()
    assert arena.get().fd >= 10
    assert not os.get_inheritable(arena.get().fd)


def test_making_it_costs_no_memory():
    """64 GiB of address space (less under a limit) are no memory until they are written to."""
    made = arena._make()
    assert made.size >= 64 * MB
    assert resident(made) == 0
    made._bytes.release()
    made._map.close()
    os.close(made.fd)


def test_offsets_are_page_aligned_and_apart(memory):
    """Pieces are page-aligned, never overlap, never touch the progress slots, and keep what is written to them."""
    rng = random.Random(1)
    live = {}
    for turn in range(600):
        if live and rng.random() < 0.45:
            offset = rng.choice(sorted(live))
            size, byte = live.pop(offset)
            assert bytes(memory.view(offset, size)) == bytes([byte]) * size
            memory.free(offset)
        else:
            size = rng.choice([0, 1, 100, 4096, 5000, 70_000, 300_000])
            offset = memory.allocate(size)
            assert offset % 4096 == 0
            assert offset >= SLOT * SLOTS
            assert all(offset + size <= other or other + have[0] <= offset for other, have in live.items())
            memory.view(offset, size)[:] = bytes([turn % 256]) * size
            live[offset] = (size, turn % 256)


def test_freed_extents_are_reused_warm(memory):
    """The extent freed last serves the next allocation of about its size, with its pages still there."""
    offset = memory.allocate(8 * MB)
    memory.view(offset, 8 * MB)[:] = b"x" * (8 * MB)
    memory.free(offset)
    assert resident(memory) >= 8 * MB
    assert memory.allocate(8 * MB - 5000) == offset


def test_what_stays_warm_is_bounded(memory):
    """Freed memory above the bound, and any large piece, goes back to the kernel; `trim` returns all of it."""
    offsets = [memory.allocate(16 * MB) for _ in range(20)]
    for offset in offsets:
        memory.view(offset, 16 * MB)[::4096] = b"x" * (16 * MB // 4096)
    for offset in offsets:
        memory.free(offset)
    assert resident(memory) <= WARM
    memory.trim()
    assert resident(memory) == 0
    large = memory.allocate(100 * MB)
    memory.view(large, 100 * MB)[::4096] = b"x" * (100 * MB // 4096)
    memory.free(large)
    assert resident(memory) == 0


def test_warm_extents_give_way(memory):
    """An allocation that only fits where freed extents lie gets that room."""
    offsets = [memory.allocate(32 * MB) for _ in range(7)]
    held = []
    with pytest.raises(MemoryError):
        while True:
            held.append(memory.allocate(32 * MB))
    for offset in offsets:
        memory.free(offset)
    assert memory.allocate(60 * MB) in offsets


def test_wrong_frees_are_refused(memory):
    """A double free, and a free of what was never allocated, is a ValueError: it would hand out memory twice."""
    offset = memory.allocate(10)
    memory.free(offset)
    with pytest.raises(ValueError, match="not allocated"):
        memory.free(offset)
    slot = memory.slot()
    memory.release(slot)
    with pytest.raises(ValueError, match="not allocated"):
        memory.release(slot)
    with pytest.raises(ValueError, match="negative"):
        memory.allocate(-1)


def test_views_stay_inside(memory):
    """A view that leaves the arena is a ValueError, not a crash."""
    assert len(memory.view(memory.size - 1, 1)) == 1
    for offset, size in ((-1, 1), (0, -1), (memory.size, 1), (0, memory.size + 1)):
        with pytest.raises(ValueError, match="not inside"):
            memory.view(offset, size)


def test_full_says_so(memory):
    """No room is a MemoryError that says how much was wanted, and what is there stays usable."""
    with pytest.raises(MemoryError, match="bytes in one piece"):
        memory.allocate(memory.size * 2)
    assert memory.allocate(1) > 0


def test_progress_slots(memory):
    """4096 slots of 64 zero bytes, each handed out once; one more is a MemoryError; a released one is zeroed."""
    slots = [memory.slot() for _ in range(SLOTS)]
    assert sorted(slots) == [number * SLOT for number in range(SLOTS)]
    with pytest.raises(MemoryError, match="slots"):
        memory.slot()
    memory.view(slots[7], SLOT)[:] = b"x" * SLOT
    memory.release(slots[7])
    assert memory.slot() == slots[7]
    assert bytes(memory.view(slots[7], SLOT)) == bytes(SLOT)


def test_processes_never_collide(memory):
    """A forked process that allocates gets regions and slots of its own, without asking, and those of a dead one."""
    ours, slot = memory.allocate(1000), memory.slot()

    def elsewhere():
        memory.view(ours, 1)[0] = 7
        return memory.allocate(1000) * SLOTS * SLOT + memory.slot()

    first = in_a_fork(elsewhere)
    theirs, their_slot = divmod(first, SLOTS * SLOT)
    assert theirs // memory._region != ours // memory._region
    assert their_slot // 4096 != slot // 4096
    assert memory.view(ours, 1)[0] == 7, "both see the same bytes"
    assert in_a_fork(elsewhere) == first, "what a dead process owned is free again"


def test_a_forked_copy_gives_nothing_of_the_originals_back(memory):
    """Cleaning up in a forked copy what the original allocated does nothing: the copy would else hand it out."""
    offset, slot = memory.allocate(1000), memory.slot()

    def clean():
        memory.free(offset)
        memory.release(slot)
        return int(memory.allocate(1000) == offset) + int(memory.slot() == slot)

    assert in_a_fork(clean) == 0


def test_a_dead_owners_pages_are_returned(memory):
    """Claiming a region of a process that was killed returns the pages it had filled."""
    memory.allocate(1)

    def fill():
        offset = memory.allocate(4 * MB)
        memory.view(offset, 4 * MB)[:] = b"x" * (4 * MB)
        return offset

    in_a_fork(fill)
    assert resident(memory) >= 4 * MB
    in_a_fork(lambda: memory.allocate(1))
    assert resident(memory) == 0


def test_threads_share_it(memory):
    """Eight threads that allocate and free at once never get the same bytes."""
    clashes = []

    def work(mark):
        for _ in range(300):
            offset = memory.allocate(5000)
            view = memory.view(offset, 5000)
            view[:] = bytes([mark]) * 5000
            if bytes(view) != bytes([mark]) * 5000:
                clashes.append(offset)
            memory.free(offset)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_inherited_maps_the_same_bytes():
    """A process that is given the descriptor sees what the others wrote, through `get`."""
    offset = arena.get().allocate(100)
    arena.get().view(offset, 5)[:] = b"hello"

    def elsewhere():
        mapped = arena.inherited(os.dup(arena.get().fd))
        assert arena.get() is mapped
        return int(bytes(mapped.view(offset, 5)) == b"hello")

    assert in_a_fork(elsewhere) == 1
    arena.get().free(offset)


def test_limits_make_it_smaller(monkeypatch):
    """Where 64 GiB can't be had it is halved until it can, and an error when nothing useful is left."""
    monkeypatch.setattr(arena, "_LARGEST", 256 * MB)
    real = os.ftruncate

    def limited(fd, size):
        if size > limit:
            raise OSError(27, "File too large")
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", limited)
    limit = 128 * MB
    made = arena._make()
    assert made.size == 128 * MB
    assert made.allocate(10) > 0
    made._bytes.release()
    made._map.close()
    os.close(made.fd)
    limit = 0
    with pytest.raises(OSError, match="too large"):
        arena._make()


def test_free_extents_are_joined():
    """Neighbours become one extent whatever the order they are freed in, so the room is not cut to pieces."""
    rng = random.Random(3)
    for _ in range(50):
        extents = _Extents()
        pieces = list(range(0, 100, 10))
        rng.shuffle(pieces)
        for start in pieces:
            extents.add(start, 10)
        assert extents.take(100) == 0
        assert extents.take(1) is None


def test_rounding_wastes_an_eighth_at_most():
    """Sizes are rounded up to whole pages, and above some pages by at most an eighth."""
    for size in (*range(1, 70_000, 997), 8 * MB, 8 * MB + 1, 100 * MB + 5):
        assert _rounded(size) % 4096 == 0
        assert size <= _rounded(size) <= max(size * 1.125 + 4096, 4096)
