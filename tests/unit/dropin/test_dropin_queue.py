"""duodao.dropin.queue: programs written for `queue` run by changing their import line alone."""

from __future__ import annotations

import queue as standard
import threading

import pytest

from duodao.dropin import queue

PATIENCE = 30.0


def test_it_has_the_standard_names():
    """Every public name of `queue` on the newest Python is here, with the same exceptions."""
    assert set(standard.__all__) | {"ShutDown"} == set(queue.__all__)
    assert queue.Empty is standard.Empty
    assert queue.Full is standard.Full
    assert issubclass(queue.ShutDown, getattr(standard, "ShutDown", Exception))
    assert issubclass(queue.LifoQueue, queue.Queue)
    assert issubclass(queue.PriorityQueue, queue.Queue)
    assert not issubclass(queue.SimpleQueue, queue.Queue)


def test_the_worker_program():
    """The example of the standard library's documentation: workers, task_done and join, here ended by shutdown."""
    tasks, done, lock = queue.Queue(maxsize=5), [], threading.Lock()

    def worker():
        while True:
            try:
                item = tasks.get()
            except queue.ShutDown:
                return
            with lock:
                done.append(item * item)
            tasks.task_done()

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for item in range(100):
        tasks.put(item)
    tasks.join()
    tasks.shutdown()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(done) == [n * n for n in range(100)]


def test_priorities_are_compared_whole():
    """PriorityQueue compares whole items, as the standard one, and its `queue` is a heap that programs may look at."""
    jobs = queue.PriorityQueue()
    for item in ((2, "code"), (1, "sleep"), (3, "rest"), (1, "eat")):
        jobs.put(item)
    assert jobs.queue[0] == (1, "eat")
    assert isinstance(jobs.queue, list)
    jobs.put_many([(0, "wake"), (1, "dress")])
    assert [jobs.get()[1] for _ in range(6)] == ["wake", "dress", "eat", "sleep", "code", "rest"]
    jobs.put((1, {}))
    with pytest.raises(TypeError):
        jobs.put((1, []))


def test_a_last_in_first_out_queue():
    """LifoQueue gives the last item first."""
    stack = queue.LifoQueue(3)
    stack.put_many([1, 2, 3])
    with pytest.raises(queue.Full):
        stack.put_nowait(4)
    assert stack.get_many(3) == [3, 2, 1]


def test_endless_sizes():
    """An infinite maxsize is unbounded, as `0 < maxsize <= qsize()` makes it in the standard library."""
    endless = queue.Queue(float("inf"))
    endless.put_many(range(100))
    assert not endless.full()


def test_a_subclass_with_a_store_of_its_own():
    """The known recipe of a queue that holds each item once: _init, _put, _get and _qsize are enough."""

    class UniqueQueue(queue.Queue):
        def _init(self, maxsize):
            self.items = {}

        def _qsize(self):
            return len(self.items)

        def _put(self, item):
            self.items[item] = None

        def _get(self):
            return self.items.popitem()[0]

    unique = UniqueQueue(2)
    unique.put(1)
    unique.put(1)
    unique.put(2)
    with pytest.raises(queue.Full):
        unique.put_nowait(3)
    assert sorted(unique.get_many(10)) == [1, 2]
    unique.shutdown()
    with pytest.raises(queue.ShutDown):
        unique.get()


def test_a_subclass_that_overrides_put():
    """put_nowait and put_many go through the put() that a subclass has, get_many through its get()."""
    seen = []

    class Logged(queue.Queue):
        def put(self, item, block=True, timeout=None):
            seen.append(item)
            super().put(item, block, timeout)

        def get(self, block=True, timeout=None):
            return -super().get(block, timeout)

    logged = Logged()
    logged.put(1)
    logged.put_nowait(2)
    logged.put_many([3, 4])
    assert (seen, logged.get_many(9)) == ([1, 2, 3, 4], [-1, -2, -3, -4])


def test_a_simple_queue():
    """SimpleQueue has the six methods of the standard one; put() ignores `block` and `timeout`."""
    simple: queue.SimpleQueue[int] = queue.SimpleQueue()
    simple.put(1, False, -1)
    simple.put_nowait(2)
    assert (simple.qsize(), simple.empty()) == (2, False)
    assert (simple.get(), simple.get_nowait()) == (1, 2)
    with pytest.raises(queue.Empty):
        simple.get(timeout=0.01)
    with pytest.raises(ValueError, match="non-negative"):
        simple.get(timeout=-1)
    public = {name for name in dir(standard.SimpleQueue) if not name.startswith("_")}
    assert public <= set(dir(simple))
