"""Sources: who reads, how far ahead, and who wakes whom."""

import threading

import pytest

from duodao.pipeline.source import Contained, Threaded, open_source


def test_a_parked_source_is_woken_by_hunger():
    """The engine that is hungry wakes a source that was let on while it slept with a full buffer."""
    read, woken = threading.Semaphore(0), threading.Event()

    def inputs():
        for x in range(100):
            read.release()
            yield x

    source = Threaded(inputs(), woken.set)
    try:
        source.allow(8)
        for _ in range(8):
            assert read.acquire(timeout=10)
        source.allow(10)  # more than half of it is in the buffer: the thread is left asleep
        taken = []
        while len(taken) < 8:
            taken += source.take(8)
        woken.clear()
        if source.hungry():
            assert woken.wait(10)
        assert source.take(1) == [8]
    finally:
        source.stop()


def test_reading_stops_where_it_is_allowed_to():
    """No more than `allow` items are read ahead of what was taken (and the one in the iterator's hand)."""
    read = []

    def inputs():
        for x in range(1000):
            read.append(x)
            yield x

    full = threading.Event()
    source = Threaded(inputs(), full.set)
    source.allow(10)
    got = []
    while len(got) < 50:
        if not (items := source.take(7)):
            source.allow(10)
            full.clear()
            if source.hungry():
                assert full.wait(10)
        got += items
        assert len(read) <= len(got) + 11
    source.stop()
    assert got == list(range(len(got)))


def test_a_list_that_grows_is_read_to_its_new_end():
    """As under the builtin map, items appended while the run goes on are read too."""
    items = [1]
    source = Contained(items)
    assert source.take(10) == [1] and source.ended
    items.append(2)
    assert not source.ended and source.take(10) == [2]


def test_a_length_that_raises_is_no_length():
    """An iterable whose len() raises is read all the same; its total is unknown."""

    class Odd:
        def __len__(self):
            raise ValueError("not yet")

        def __iter__(self):
            return iter([1, 2])

    woken = threading.Event()
    source = open_source(Odd(), woken.set, None)
    assert source.total is None
    source.allow(5)
    got = []
    while not source.ended:
        woken.clear()
        if source.hungry():
            assert woken.wait(10)
        got += source.take(5)
    source.stop()
    assert got == [1, 2]


def test_a_set_that_changes_ends_the_run_with_its_error():
    """A container that changes its size under the run is an error, as in a plain loop."""
    items = {1, 2, 3}
    source = Contained(items)
    source.take(1)
    items.add(4)
    assert source.take(1) == [] and source.ended
    with pytest.raises(RuntimeError):
        raise source.error
