"""What comes next in a queue: first, last or lowest."""

from __future__ import annotations

import functools
import random

import pytest

from duodao.channel.order import Heap, ends, make, rank


def drain(heap):
    return [heap.pop() for _ in range(len(heap))]


def test_ends():
    """A store of each order hands out in its order."""
    for order, wanted in (("fifo", [3, 1, 2]), ("lifo", [2, 1, 3]), ("priority", [1, 2, 3])):
        store = make(order)
        push, pop = ends(store)
        for item in (3, 1, 2):
            push(item)
        assert len(store) == 3
        assert [pop() for _ in range(3)] == wanted
        with pytest.raises(IndexError):
            pop()


def test_pairs_count_by_their_first_half():
    """Pairs come by their first half; those with the same by arrival, and their second halves are never compared."""
    heap = Heap()
    items = [(random.Random(5).randrange(4), object()) for _ in range(40)] + [(1, None), (1, {}), (0.5, "x")]
    for item in items:
        heap.push(item)
    assert drain(heap) == sorted(items, key=lambda item: item[0])  # sorted() is stable


def test_anything_else_counts_as_it_is():
    """What is no pair is compared as a whole, with `<` alone; equal ones come by arrival."""

    @functools.total_ordering
    class Job:
        def __init__(self, level, name):
            self.level, self.name = level, name

        def __lt__(self, other):
            return self.level < other.level

    heap = Heap()
    jobs = [Job(n % 3, n) for n in range(12)]
    for job in jobs:
        heap.push(job)
    assert [job.name for job in drain(heap)] == [job.name for job in sorted(jobs, key=lambda job: job.level)]


def test_priorities_of_several_kinds():
    """Numbers, and types of one's own that compare with numbers, stand in one queue."""

    class Level:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            return self.value < getattr(other, "value", other)

        def __gt__(self, other):
            return self.value > getattr(other, "value", other)

    heap = Heap()
    items = [(3, "c"), (Level(2), "b"), (1.5, "a"), (Level(3), "d")]
    for item in items:
        heap.push(item)
    assert [name for _, name in drain(heap)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("size", range(20))
def test_what_can_not_be_compared_leaves_the_heap_as_it_was(size):
    """An item that can't be compared with the others is refused, and nothing is changed by it."""
    heap, shuffled = Heap(), random.Random(size)
    for _ in range(size):
        heap.push((shuffled.randrange(10), "x"))
    before = list(heap.entries)
    if size:
        with pytest.raises(TypeError):
            heap.push(("text", "y"))
    assert heap.entries == before


def test_an_item_that_fails_half_way_up_is_taken_back():
    """One that is compared some times before it fails moves nothing for good."""

    class Brittle:
        def __init__(self, left):
            self.left = left

        def __lt__(self, other):
            self.left -= 1
            if self.left < 0:
                raise ZeroDivisionError
            return True

        def __gt__(self, other):
            return False

    for left in range(8):
        heap = Heap()
        for n in range(40):
            heap.push(n)
        before = list(heap.entries)
        with pytest.raises(ZeroDivisionError):
            heap.push(Brittle(left))
        assert heap.entries == before
    assert drain(heap) == list(range(40))


def test_a_heap_reads_like_a_list():
    """Its first item is the next one; it has a length, and can be looked through and cleared."""
    heap = Heap()
    for item in (3, 1, 2):
        heap.push(item)
    assert heap[0] == 1
    assert sorted(heap) == [1, 2, 3]
    assert repr(heap) == "Heap([1, 3, 2])"
    heap.clear()
    assert not heap


def test_rank():
    """Of a pair the first half, else the item; numbers and texts as they are."""
    assert rank((2, "x")) == 2
    assert rank(7) == 7
    assert rank((1, 2, 3)).value == (1, 2, 3)
    assert rank(((1, 2), "x")).value == (1, 2)
