"""What every queue does, whatever carries its items: the methods, exceptions and edges of queue.Queue, and ours."""

from __future__ import annotations

import asyncio
import itertools
import math
import queue as standard
import threading
from collections import Counter

import pytest
from queue_cases import CASES, PATIENCE, Call

import duodao
from duodao.errors import Closed, ShutDown, UsageError

LOWEST_FIRST = {"fifo": [3, 1, 2], "lifo": [2, 1, 3], "priority": [1, 2, 3]}


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def make(case, tmp_path):
    """Makes queues of the transport, and closes them and their second handles at the end."""
    made = []
    numbers = itertools.count()

    def new(maxsize=10, *, second=False, **options):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        queue = case.make(folder, maxsize, **options)
        made.append(queue)
        if not second:
            return queue
        made.append(case.second(queue))
        return queue, made[-1]

    yield new
    for queue in reversed(made):
        queue.close()


@pytest.fixture
def queue(make):
    return make(3, name="jobs")


# What it is


def test_it_is_a_queue(make, case):
    """It is a duodao.Queue that knows its options and shows its name."""
    queue = make(7, name="jobs")
    assert isinstance(queue, duodao.Queue)
    assert (queue.maxsize, queue.order, queue.name) == (7, "fifo", "jobs")
    assert "'jobs'" in repr(queue)
    assert not queue.is_shutdown


def test_names_differ(make):
    """Queues that were given no name have different ones."""
    assert make().name != make().name


@pytest.mark.parametrize("maxsize", [0, -1])
def test_bounds(make, case, maxsize):
    """Without a bound there are queues in memory only; elsewhere the error says that one is needed."""
    if case.unbounded:
        queue = make(maxsize)
        assert queue.put_many(range(50)) == 50
        assert not queue.full()
    else:
        with pytest.raises(UsageError, match="needs a bound"):
            make(maxsize)


def test_wrong_options(make):
    """A wrong maxsize or order is refused, and the valid ones are named."""
    with pytest.raises(UsageError, match="number of items"):
        make("many")
    with pytest.raises(UsageError, match="'fifo', 'lifo' or 'priority'"):
        make(order="random")


# Order


def test_order(make, case):
    """Items come first in first out, last in first out, or lowest first."""
    for order in case.orders:
        one, other = make(order=order, second=True)
        for item in (3, 1, 2):
            one.put(item)
        assert [other.get(timeout=PATIENCE) for _ in range(3)] == LOWEST_FIRST[order]


def test_order_of_many(make, case):
    """put_many and get_many keep to the order too."""
    for order in case.orders:
        one, other = make(order=order, second=True)
        assert one.put_many([3, 1, 2]) == 3
        found = []
        while len(found) < 3:
            found += other.get_many(10, timeout=PATIENCE)
        assert found == LOWEST_FIRST[order]


def test_ties_come_by_arrival(make, case):
    """Of pairs only the first half counts: those with the same come by arrival, whatever the second halves are."""
    if "priority" not in case.orders:
        pytest.skip(f"{case.name} has no priorities")
    one, other = make(order="priority", second=True)
    items = [(2, "b"), (2, {"not": "comparable"}), (1, None), (2, "a"), (1, 5)]
    one.put_many(items)
    assert [other.get(timeout=PATIENCE) for _ in items] == [items[n] for n in (2, 4, 0, 1, 3)]


def test_longer_tuples_are_compared_whole(make, case):
    """A tuple of three is a priority as it is, as in queue.PriorityQueue."""
    if "priority" not in case.orders:
        pytest.skip(f"{case.name} has no priorities")
    queue = make(order="priority")
    queue.put_many([(1, 9, "late"), (1, 3, "soon"), (0, 99, "first")])
    assert [queue.get(timeout=PATIENCE)[2] for _ in range(3)] == ["first", "soon", "late"]


@pytest.mark.parametrize("item", [None, False, 0, "", (), [1, [2]], {"a": b"\0" * 10}, "多道", b"x" * 1_000_000])
def test_items_arrive_as_they_are(make, item):
    """Any item comes out equal to what was put, empty and large ones too."""
    one, other = make(second=True)
    one.put(item)
    assert other.get(timeout=PATIENCE) == item


# Waiting and not waiting


def test_empty(queue):
    """An empty queue raises Empty: at once with block=False or no time, after a time-out otherwise."""
    for get in (
        queue.get_nowait,
        lambda: queue.get(block=False),
        lambda: queue.get(False, timeout=-1),  # without blocking, the time-out is ignored
        lambda: queue.get(timeout=0),
        lambda: queue.get(True, 0.01),
        lambda: queue.get_many(5, timeout=0),
        lambda: queue.get_many(5, timeout=0.01),
    ):
        with pytest.raises(standard.Empty):
            get()


def test_full(queue):
    """A full queue raises Full: at once with block=False or no time, after a time-out otherwise."""
    queue.put_many([1, 2, 3])
    assert queue.full()
    for put in (
        lambda: queue.put_nowait(4),
        lambda: queue.put(4, block=False),
        lambda: queue.put(4, False, timeout=-1),
        lambda: queue.put(4, timeout=0),
        lambda: queue.put(4, True, 0.01),
        lambda: queue.put_many([4], timeout=0),
        lambda: queue.put_many([4], timeout=0.01),
    ):
        with pytest.raises(standard.Full):
            put()
    assert [queue.get() for _ in range(3)] == [1, 2, 3]


def test_negative_timeouts(queue):
    """A negative time-out is a ValueError, as in queue.Queue."""
    for call in (
        lambda: queue.put(1, timeout=-1),
        lambda: queue.get(timeout=-1),
        lambda: queue.put_many([1], timeout=-1),
        lambda: queue.get_many(1, timeout=-1),
    ):
        with pytest.raises(ValueError, match="non-negative"):
            call()
    assert queue.empty()


def test_a_timeout_that_is_no_number(queue):
    """A time-out of nan, which would never be over, is a ValueError, as in queue.Queue, wherever one would wait."""
    for call in (
        lambda: queue.get(timeout=math.nan),
        lambda: queue.get_many(1, timeout=math.nan),
        lambda: queue.put_many(range(queue.maxsize + 1), timeout=math.nan),
    ):
        with pytest.raises(ValueError, match=r"non-negative|NaN|nan"):
            call()


def test_time_is_not_needed_for_what_is_there(queue):
    """With no time at all an item that is there is got, and one that fits is put."""
    queue.put("a", timeout=0)
    assert queue.put_many(["b", "c"], timeout=0) == 2
    assert queue.get(timeout=0) == "a"
    assert queue.get_many(9, timeout=0)[0] == "b"


def test_get_waits_for_a_put(make, case):
    """Who waits for an item gets the one that is put then."""
    one, other = make(second=True)
    call = Call(other.get)
    if case.publishes:
        call.blocked()
    one.put("here")
    assert call.result() == "here"


def test_put_waits_for_a_get(make, case):
    """Who waits for room goes on when an item is taken."""
    one, other = make(2, second=True)
    one.put_many([1, 2])
    call = Call(one.put, 3)
    if case.publishes:
        call.blocked()
    assert [other.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]
    call.result()


def test_a_wait_is_seen(make, case):
    """Who waits shows it: in the graph, by the queue's name, as a wait that is part of no circle; and in statistics."""
    if not case.publishes:
        pytest.skip(f"{case.name} waits elsewhere")
    queue = make(1, name="jobs")
    call = Call(queue.get).blocked()
    assert "'jobs'" in call.wait.on.describe()
    assert call.wait.on.resolvers() is None
    assert len(queue.statistics().getters) == 1
    queue.put(1)
    assert call.result() == 1
    queue.put(1)
    call = Call(queue.put, 2).blocked()
    assert "'jobs'" in call.wait.on.describe()
    assert len(queue.statistics().putters) == 1
    queue.get()
    call.result()


def test_sizes(queue):
    """qsize, empty and full say how many items there are."""
    assert (queue.qsize(), queue.empty(), queue.full()) == (0, True, False)
    queue.put(1)
    assert (queue.qsize(), queue.empty(), queue.full()) == (1, False, False)
    queue.put_many([2, 3])
    assert (queue.qsize(), queue.empty(), queue.full()) == (3, False, True)


def test_statistics(queue, case):
    """statistics() has the name, the options, the size and what is unfinished."""
    queue.put_many([1, 2])
    queue.get()
    found = queue.statistics()
    assert (found.name, found.order, found.size, found.maxsize, found.is_shutdown) == ("jobs", "fifo", 1, 3, False)
    assert found.unfinished == (2 if case.joins else None)
    assert found.getters == found.putters == ()


# Many at once


def test_get_many_takes_what_is_there(queue):
    """get_many returns what is there, at most n, and doesn't wait for more; n under 1 is a ValueError."""
    queue.put_many([1, 2, 3])
    assert queue.get_many(2) == [1, 2]
    assert queue.get_many(100, timeout=PATIENCE) == [3]
    for n in (0, -1):
        with pytest.raises(ValueError, match="1 item or more"):
            queue.get_many(n)


def test_put_many_of_nothing(queue):
    """Nothing to put is no work: 0, also when there is no room."""
    queue.put_many([1, 2, 3])
    assert queue.put_many([]) == 0
    assert queue.put_many(iter(()), timeout=0) == 0


@pytest.mark.parametrize("shape", [list, tuple, iter, dict.fromkeys])
def test_put_many_waits_for_room(make, shape):
    """More items than fit are put as others are taken, all and in order, from any iterable."""
    one, other = make(4, second=True)
    call = Call(one.put_many, shape(range(50)))
    assert [other.get(timeout=PATIENCE) for _ in range(50)] == list(range(50))
    assert call.result() == 50


def test_put_many_says_how_far_it_came(queue):
    """When time runs out, the error's put_count is the number of items that are in the queue, the first ones."""
    with pytest.raises(standard.Full) as caught:
        queue.put_many([1, 2, 3, 4, 5], timeout=0.01)
    assert caught.value.put_count == 3
    assert [queue.get() for _ in range(3)] == [1, 2, 3]


def test_what_reading_the_items_raises(queue):
    """What the iterable raises is passed on; the items before it are in the queue, and put_count says how many."""

    def items():
        yield 1
        yield 2
        raise KeyError("the third")

    with pytest.raises(KeyError) as caught:
        queue.put_many(items())
    assert caught.value.put_count == 2
    assert [queue.get(timeout=PATIENCE) for _ in range(2)] == [1, 2]


def test_every_item_comes_once(make):
    """With several writers and readers, one by one and by the many, every item comes out once, none twice."""
    one, other = make(8, second=True)
    seen: list[list[int]] = [[], [], [], []]

    def write(start):
        if start % 2:
            one.put_many(range(start, start + 500))
        else:
            for n in range(start, start + 500):
                one.put(n)

    def read(mine, many):
        while True:
            try:
                mine += other.get_many(5) if many else [other.get()]
            except ShutDown:
                return

    writers = [Call(write, start) for start in (0, 1001, 2000, 3001)]
    readers = [Call(read, mine, n % 2) for n, mine in enumerate(seen)]
    for writer in writers:
        writer.result()
    one.shutdown()
    for reader in readers:
        reader.result()
    wanted = Counter(itertools.chain(*(range(start, start + 500) for start in (0, 1001, 2000, 3001))))
    assert Counter(itertools.chain(*seen)) == wanted


# Joining


def test_join(make, case):
    """join() waits until each item was task_done; with a time-out it says whether it was."""
    if not case.joins:
        pytest.skip(f"{case.name} doesn't count")
    queue = make()
    assert queue.join()
    queue.put_many([1, 2])
    assert not queue.join(timeout=0)
    assert not queue.join(timeout=0.01)
    call = Call(queue.join)
    for _ in range(2):
        queue.get()
        queue.task_done()
    assert call.result() is True
    with pytest.raises(ValueError, match="non-negative"):
        queue.join(timeout=-1)


def test_task_done_too_often(make, case):
    """task_done() more often than items were put is a ValueError."""
    if not case.joins:
        pytest.skip(f"{case.name} doesn't count")
    queue = make()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()
    queue.put(1)
    queue.get()
    queue.task_done()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


# Shutdown


def test_shutdown(make):
    """After shutdown() no item goes in, on either side; what is there comes out, then ShutDown."""
    one, other = make(second=True)
    one.put_many([1, 2, 3])
    one.shutdown()
    assert one.is_shutdown
    for put in (one.put, one.put_nowait, lambda item: one.put(item, timeout=0), lambda item: one.put_many([item])):
        with pytest.raises(ShutDown):
            put(4)
    assert other.get(timeout=PATIENCE) == 1
    assert other.get_many(1, timeout=PATIENCE) == [2]
    assert other.get_nowait() == 3
    for get in (other.get, other.get_nowait, lambda: other.get(timeout=1), lambda: other.get_many(3)):
        with pytest.raises(ShutDown):
            get()
    assert other.is_shutdown
    with pytest.raises(ShutDown):
        other.put(4)
    one.shutdown()


def test_shutdown_is_closed_and_the_standard_one(queue):
    """ShutDown is a Closed, and on Python 3.13 queue.ShutDown, so that either is caught."""
    queue.shutdown()
    with pytest.raises(Closed):
        queue.get()
    with pytest.raises(getattr(standard, "ShutDown", ShutDown)):
        queue.put(1)


def test_shutdown_now(make, case):
    """shutdown(immediate=True) drops what is there and counts it as done, also after shutdown()."""
    queue = make()
    queue.put_many([1, 2, 3])
    assert queue.get() == 1
    queue.shutdown()
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.get()
    if case.joins:
        assert not queue.join(timeout=0)
        queue.task_done()
        assert queue.join(timeout=PATIENCE)
    queue.shutdown()


def test_shutdown_wakes_readers(make, case):
    """Everyone who waits for an item is told of the shutdown."""
    one, other = make(second=True)
    calls = [Call(other.get), Call(other.get), Call(other.get_many, 3)]
    if case.publishes:
        for call in calls:
            call.blocked()
    one.shutdown()
    for call in calls:
        with pytest.raises(ShutDown):
            call.result()


def test_shutdown_wakes_writers(make, case):
    """Everyone who waits for room is told of the shutdown; put_many says how far it came."""
    one, other = make(2, second=True)
    one.put(0)
    many = Call(one.put_many, [1, 2, 3])
    if case.publishes:
        many.blocked()
        single = Call(one.put, 9).blocked()
    else:
        single = many
    other.shutdown()
    with pytest.raises(ShutDown):
        single.result()
    with pytest.raises(ShutDown) as caught:
        many.result()
    assert caught.value.put_count == other.qsize() - 1


def test_iteration_ends(make):
    """`for item in queue` gives all items and ends after shutdown."""
    one, other = make(second=True)
    call = Call(lambda: list(other))
    one.put_many(range(30))
    one.shutdown()
    assert call.result() == list(range(30))
    assert list(other) == []


# Close


def test_close(make, case):
    """After close() each method raises Closed, and says which queue; close() itself can be repeated."""
    queue = make(name="jobs")
    queue.put(1)
    queue.close()
    queue.close()
    for call in (
        lambda: queue.put(1),
        lambda: queue.put(1, timeout=0),
        lambda: queue.put_nowait(1),
        lambda: queue.put_many([1]),
        queue.get,
        queue.get_nowait,
        lambda: queue.get_many(1),
        queue.qsize,
        queue.empty,
        queue.full,
        queue.task_done,
        queue.join,
        queue.shutdown,
        lambda: next(iter(queue)),
    ):
        with pytest.raises(Closed, match="'jobs'") as caught:
            call()
        assert not isinstance(caught.value, ShutDown)


def test_close_wakes(make, case):
    """Who waits in a queue object gets Closed when it is closed."""
    queue = make(1)
    call = Call(queue.get)
    if case.publishes:
        call.blocked()
    queue.close()
    with pytest.raises(Closed):
        call.result()


def test_with(make):
    """`with` closes the queue at its end."""
    with make() as queue:
        queue.put(1)
        assert queue.get() == 1
    with pytest.raises(Closed):
        queue.put(1)


# In an event loop


def test_async_forms_or_a_reason(make, case):
    """The async forms wait in the task, or a TypeError says what to do instead."""
    queue = make(2)

    async def use():
        if not case.waits_async:
            for name, args in (("aget", ()), ("aput", (1,)), ("aget_many", (1,)), ("aput_many", ([1],)), ("ajoin", ())):
                with pytest.raises(TypeError, match="to_thread"):
                    await getattr(queue, name)(*args)
            return
        getting = asyncio.create_task(queue.aget())
        await queue.aput("a")
        assert await getting == "a"
        putting = asyncio.create_task(queue.aput_many(range(10)))
        found = []
        while len(found) < 10:
            found += await queue.aget_many(3)
        assert (found, await putting) == (list(range(10)), 10)
        with pytest.raises(standard.Empty):
            await queue.aget(timeout=0.01)
        await queue.aput_many([1, 2])
        with pytest.raises(standard.Full):
            await queue.aput(3, timeout=0)
        queue.shutdown()
        assert [item async for item in queue] == [1, 2]
        with pytest.raises(ShutDown):
            await queue.aput(3)
        for _ in range(13):
            queue.task_done()
        assert await queue.ajoin()

    asyncio.run(asyncio.wait_for(use(), PATIENCE))


def test_no_thread_is_left(make):
    """A queue that was used and closed leaves no thread."""
    before = set(threading.enumerate())
    with make() as queue:
        queue.put(1)
        queue.get()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()
