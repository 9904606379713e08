"""Queues in shared memory: what the contract suite doesn't ask of all queues. Source: M10, M13, M25."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading

import pytest

from duodao import arena
from duodao.channel.base import ORDERS, Queue
from duodao.channel.blocks import AREA, GRANULE, Blocks
from duodao.channel.ring import INLINE
from duodao.channel.segment import HANDS
from duodao.errors import Closed, NotPicklable, TableFull, UsageError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="robust mutexes are Linux's")


@pytest.fixture(params=ORDERS)
def queue(request):
    """A queue of each order."""
    with Queue(8, order=request.param, via="shared", name="jobs") as made:
        yield made


class Unloadable:
    """Pickles, and can't be unpickled."""

    def __reduce__(self):
        return int, ("no number",)

    def __lt__(self, other):
        return False


def test_an_item_that_cannot_be_pickled(queue):
    """It is refused at put, and nothing of it is in the queue."""
    with pytest.raises(NotPicklable):
        queue.put((1, threading.Lock()))
    assert queue.qsize() == 0
    queue.put((1, "next"))
    assert queue.get() == (1, "next")


def test_an_item_that_cannot_be_unpickled(queue):
    """Its error comes out of get with a note; that item is gone, the others are there."""
    for item in ((1, "before"), (2, Unloadable()), (3, "after")):
        queue.put(item)
    found, errors = [], []
    for _ in range(3):
        try:
            found.append(queue.get(timeout=10))
        except ValueError as error:
            errors.append(error)
    assert sorted(found) == [(1, "before"), (3, "after")]
    assert "Queue 'jobs'" in errors[0].__notes__[0]
    assert queue.qsize() == 0


def test_many_of_which_one_cannot_be_unpickled():
    """get_many gives those before it, then its error, then the rest."""
    with Queue(8, via="shared") as queue:
        for item in ("a", Unloadable(), "b"):
            queue.put(item)
        assert queue.get_many(3) == ["a"]
        with pytest.raises(ValueError, match="no number"):
            queue.get_many(3)
        assert queue.get_many(3) == ["b"]


def test_an_item_larger_than_the_memory(queue):
    """It is refused with both sizes, and the queue goes on."""
    with pytest.raises(UsageError, match=f"larger than all of the queue's memory, {AREA} bytes"):
        queue.put((1, bytes(AREA)))
    queue.put((1, "next"))
    assert queue.get() == (1, "next")


def test_large_items_wait_for_memory():
    """Items that don't fit together wait for one another, below the number of items too."""
    with Queue(8, via="shared") as queue:
        size = AREA // 2 - GRANULE
        queue.put(bytes(size))
        queue.put(bytes(size))
        thread = threading.Thread(target=lambda: queue.put(bytes(size)))
        thread.start()
        assert [len(queue.get(timeout=30)) for _ in range(3)] == [size] * 3
        thread.join(10)
        assert not any(queue._index.blocks.table.tolist())


@pytest.mark.parametrize("size", [INLINE - 200, INLINE, INLINE + 1, 5 * GRANULE])
def test_sizes_around_the_limits(queue, size):
    """An item comes out as it went in, whether it is in a record or in a block."""
    items = [(number, bytes([number]) * size) for number in range(8)]
    assert queue.put_many(items) == 8
    assert sorted(queue.get_many(8)) == items


def test_arrays_arrive_writable():
    """A numpy array is copied out of the queue's memory: it is the reader's own."""
    numpy = pytest.importorskip("numpy")
    with Queue(8, via="shared") as queue:
        for order in "CF":
            array = numpy.array(numpy.arange(40_000.0).reshape(200, 200), order=order)
            queue.put(("a", array))
            queue.put(("a", array))
            got, again = queue.get()[1], queue.get()[1]
            got += 1
            assert (again == array).all()
            assert (got == array + 1).all()


def test_the_bytes_are_bounded_not_the_ring():
    """As many items as maxsize says fit, though together they are larger than the ring of records."""
    with Queue(200, via="shared") as queue:
        items = [bytes([number]) * 20_000 for number in range(200)]
        for item in items:
            queue.put(item, timeout=10)
        assert [queue.get() for _ in items] == items


def test_plain_items_are_packed_and_taken_apart():
    """Items put together are taken one by one by several handles, each once and in order."""
    with Queue(500, via="shared") as queue, pickle.loads(pickle.dumps(queue)) as other:
        queue.put_many((number, str(number)) for number in range(400))
        found = [(queue if number % 3 else other).get() for number in range(100)]
        found += other.get_many(7)
        found += queue.get_many(500)
        assert found == [(number, str(number)) for number in range(400)]


def test_functions_of_main_travel_by_value():
    """What another process couldn't import is pickled by value, as on the lanes."""
    with Queue(3, via="shared") as queue:
        queue.put(lambda x: x + 1)
        assert queue.get()(1) == 2


def test_a_handle_of_a_closed_queue():
    """What was pickled before the queue was closed can't be used: Closed says that it is gone."""
    queue = Queue(3, via="shared", name="plates")
    packed = pickle.dumps(queue)
    queue.close()
    gc.collect()
    with pytest.raises(Closed, match="'plates' is gone"):
        pickle.loads(packed)


def test_memory_is_given_back():
    """Closed or dropped, a queue's memory is there for the next one; a pickled one's stays until it is closed."""
    offsets = set()
    for _ in range(5):
        with Queue(3, via="shared") as queue:
            offsets.add(queue._index.segment.offset)
    for _ in range(5):
        queue = Queue(3, via="shared")
        offsets.add(queue._index.segment.offset)
        del queue
    assert len(offsets) <= 2
    kept = Queue(3, via="shared")
    offset = kept._index.segment.offset
    packed = pickle.dumps(kept)
    del kept
    with Queue(3, via="shared") as another:
        assert another._index.segment.offset != offset
    with pickle.loads(packed) as again:
        again.put(1)


def test_too_many_processes():
    """The process for which no hand is left gets TableFull; those of ended processes are used again."""
    with Queue(3, via="shared") as queue:
        segment = queue._index.segment
        at = segment.hand
        taken = [at + 8 * number for number in range(1, HANDS)]
        for each in taken:
            segment.words[each] = os.getppid()
            segment.words[each + 1] = 1
        segment.words[4] = HANDS
        segment.hand = 0
        with pytest.raises(TableFull, match=f"{HANDS} processes"):
            queue.put(1)
        segment.hand = at
        assert len(segment.dead()) == len(taken)
        queue._index.mourn()
        assert segment.dead() == []


def test_blocks_are_mended_from_their_table():
    """Granules that were marked without a block are free again when the mutex tells of a holder that stopped."""
    memory = arena.get()
    offset = memory.allocate(Blocks(memory.allocate(1 << 28)).area.nbytes + (1 << 20))
    blocks = Blocks(offset)
    blocks.init()
    first = blocks.allocate(GRANULE * 3, 7)
    blocks.map[first + 3 : first + 9] = b"\1" * 6
    with blocks.mutex.held():
        pass  # without done()
    assert blocks.allocate(1, 7) == first + 3
    assert blocks.of(7) == [(first, 1), (first + 3, 1)]
    blocks.free(first)
    assert blocks.allocate(GRANULE * 4, 7) == first + 4
    del blocks
    memory.free(offset)


@pytest.mark.parametrize(
    "ranks", [[3, 1.5, 2, 1, 10**30, -1], ["b", "a", "c", "ab"], [(1, 2, 3), (1, 1, 9), (0, 5, 5)]]
)
def test_ranks_of_one_kind(ranks):
    """Numbers, texts and longer tuples are taken lowest first, equal ones by arrival."""
    with Queue(20, order="priority", via="shared") as queue:
        for turn in range(2):
            for rank in ranks:
                queue.put((rank, turn))
        expected = [(rank, turn) for rank in sorted(ranks) for turn in range(2)]
        assert queue.get_many(20) == expected


def test_ranks_that_cannot_be_compared():
    """The put raises what comparing raised, and the queue is as it was."""
    with Queue(20, order="priority", via="shared") as queue:
        queue.put((1, "number"))
        queue.put((2, "number"))
        with pytest.raises(TypeError):
            queue.put(("text", "text"))
        assert queue.get_many(5) == [(1, "number"), (2, "number")]
        queue.put(("text", "text"))
        assert queue.get() == ("text", "text")


def test_too_many_items_are_refused():
    """maxsize has a limit, which the error names."""
    with pytest.raises(UsageError, match="1,000,000"):
        Queue(1_000_001, via="shared")


def test_statistics_name_the_processes():
    """Which processes have the queue, and what was lost with some, is told."""
    with Queue(5, via="shared") as queue:
        queue.put(1)
        found = queue.statistics()
        assert (found.size, found.unfinished, found.lost, found.lost_by) == (1, 1, 0, ())
        assert found.processes == (os.getpid(),)


def test_a_signal_handler_in_the_middle_of_a_call(queue):
    """What uses the queue while its own thread has the queue's lock gets RuntimeError, and the lock stays taken."""
    index = queue._index
    assert index.putting.trylock() == 0
    try:
        with pytest.raises(RuntimeError, match="signal handler"):
            queue.put((1, "x"))
        assert index.putting.owner() == threading.get_native_id()
    finally:
        index.putting.unlock()
    queue.put((1, "x"))
    assert queue.get() == (1, "x")
