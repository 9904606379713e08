"""The memory queue where it is more than the contract: hooks, conditions, signals, loops, growth."""

from __future__ import annotations

import asyncio
import gc
import os
import queue as standard
import signal
import threading
import warnings
import weakref
from collections import deque
from contextlib import suppress

import pytest
from tests.contract.queues.queue_cases import PATIENCE, Call

import duodao
from duodao.channel.buffer import GROWN
from duodao.channel.memory import MemoryQueue
from duodao.errors import ShutDown
from duodao.sync import graph


class Counting(MemoryQueue):
    """A queue with hooks of its own."""

    def _init(self, maxsize):
        super()._init(maxsize)
        self.calls = []

    def _put(self, item):
        self.calls.append(("put", item))
        if item == "bad":
            raise ZeroDivisionError
        super()._put(item)

    def _get(self):
        self.calls.append("get")
        return super()._get()


def test_hooks_are_called_for_each_item():
    """A subclass's _put and _get see every item, put_many's and get_many's too."""
    queue = Counting()
    queue.put(1)
    queue.put_many([2, 3])
    assert queue.get_many(2) == [1, 2]
    assert queue.get() == 3
    assert queue.calls == [("put", 1), ("put", 2), ("put", 3), "get", "get", "get"]


def test_a_hook_that_fails_leaves_the_queue_whole():
    """What _put raises is passed on; the item isn't in, the ones before it are, and are counted."""
    queue = Counting()
    with pytest.raises(ZeroDivisionError):
        queue.put("bad")
    with pytest.raises(ZeroDivisionError) as caught:
        queue.put_many([1, 2, "bad", 3])
    assert caught.value.put_count == 2
    assert (queue.qsize(), queue.unfinished_tasks) == (2, 2)


def test_an_item_that_can_not_be_compared():
    """A priority that can't be compared is a TypeError of put, and the queue goes on without it."""
    queue = duodao.Queue(order="priority")
    queue.put_many([(2, "b"), (1, "a")])
    for put in (queue.put, lambda item: queue.put(item, timeout=1)):
        with pytest.raises(TypeError):
            put(("text", "x"))
    with pytest.raises(TypeError) as caught:
        queue.put_many([(0, "first"), ("text", "x")])
    assert caught.value.put_count == 1
    assert [queue.get()[1] for _ in range(queue.qsize())] == ["first", "a", "b"]
    assert queue.unfinished_tasks == 3


def test_its_inside_is_that_of_the_standard_queue():
    """Programs that hold `mutex` and change `queue` and `unfinished_tasks` find them, and nobody comes in between."""
    queue = duodao.Queue()
    queue.put_many([1, 2, 3])
    with queue.mutex:
        call = threading.Thread(target=queue.put, args=(4,))
        call.start()
        assert list(queue.queue) == [1, 2, 3]
        queue.queue.clear()
        queue.unfinished_tasks = 0
    call.join(PATIENCE)
    assert (queue.get(), queue.unfinished_tasks) == (4, 1)
    with queue.mutex:
        queue.queue = deque([7])
    assert queue.get() == 7
    assert [type(duodao.Queue(order=order).queue).__name__ for order in ("fifo", "lifo", "priority")] == [
        "deque",
        "list",
        "Heap",
    ]


def test_its_conditions_are_notified():
    """Who waits on not_empty, not_full or all_tasks_done is notified, whatever the queue's own calls do."""
    queue = duodao.Queue(1)

    def wait(side, begun):
        with side:
            begun.set()
            return side.wait(PATIENCE)

    calls = []
    for side in (queue.not_empty, queue.not_full, queue.all_tasks_done):
        begun = threading.Event()
        calls.append(Call(wait, side, begun))
        assert begun.wait(PATIENCE)
    queue.put(1)  # needs the mutex, which each of them holds up to its wait
    assert calls[0].result()
    assert queue.get() == 1
    assert calls[1].result()
    queue.task_done()
    assert calls[2].result()


def test_notifying_a_condition_wakes_the_queues_own_waiters():
    """A program that changes `queue` by hand and notifies not_empty or all_tasks_done wakes get() and join()."""
    queue = duodao.Queue()
    call = Call(queue.get).blocked()
    with queue.not_empty:
        queue.queue.append("by hand")
        queue.not_empty.notify()
    assert call.result() == "by hand"
    queue.put(1)
    call = Call(queue.join).blocked()
    with queue.all_tasks_done:
        queue.unfinished_tasks = 0
        queue.all_tasks_done.notify_all()
    assert call.result()


def test_maxsize_can_be_changed():
    """A new maxsize counts from the next put on, as in queue.Queue."""
    queue = duodao.Queue(1)
    queue.put(1)
    queue.maxsize = 2
    queue.put_nowait(2)
    with pytest.raises(standard.Full):
        queue.put_nowait(3)
    queue.maxsize = 0
    queue.put_many(range(100))
    assert queue.qsize() == 102


def test_growth_is_said_once():
    """A queue without a bound says once, by name and to the line that puts, that it has grown past 100,000 items."""
    queue = duodao.Queue(name="jobs")
    queue.put_many(list(range(GROWN)))
    with pytest.warns(RuntimeWarning, match="'jobs' has grown past 100,000 items") as caught:
        queue.put(1)
    assert caught[0].filename == __file__
    assert queue.qsize() == GROWN + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.put(2)
        queue.put_many([3, 4])
    queue = duodao.Queue(name="others")
    queue.put_many(list(range(GROWN)))
    with pytest.warns(RuntimeWarning, match="'others'"):
        queue.put_many(iter([1]))
    bounded = duodao.Queue(2 * GROWN)
    bounded.put_many(list(range(GROWN + 1)))


def test_references():
    """The queue has no reference to an item that has left it."""

    class Item:
        pass

    queue = duodao.Queue()
    for get in (queue.get, lambda: queue.get(timeout=1), lambda: queue.get_many(1)[0]):
        queue.put(Item())
        reference = weakref.ref(get())
        gc.collect()
        assert reference() is None


# Interrupted


def in_signal(handler):
    """Run `handler` as a signal handler of this thread."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


class Interrupting(MemoryQueue):
    """A queue whose put is interrupted, with the mutex held, by a signal handler."""

    handler = None

    def _put(self, item):
        if self.handler is not None:
            handler, self.handler = self.handler, None
            in_signal(handler)
        super()._put(item)


def test_put_inside_put():
    """A put() in a signal handler that interrupts a put() goes through: queue.Queue hangs there."""
    queue = Interrupting()
    queue.handler = lambda: queue.put("by the handler")
    queue.put("interrupted")
    assert (queue.get(), queue.get(), queue.unfinished_tasks) == ("by the handler", "interrupted", 2)


def test_waiting_inside_put_is_refused():
    """What would wait for ever, because this thread holds the queue's mutex, is an error that says so."""
    queue = Interrupting(5)
    errors = []

    def handler():
        try:
            queue.get()
        except RuntimeError as error:
            errors.append(str(error))

    queue.handler = handler
    queue.put(1)
    assert "block=False" in errors[0]
    with queue.mutex, pytest.raises(RuntimeError, match="holds its mutex"):
        queue.join()


def test_an_interrupt_while_waiting_leaves_the_queue_whole():
    """A KeyboardInterrupt ends a wait at once; whoever comes next gets the item, and the wake-up isn't lost."""
    queue = duodao.Queue()
    main = threading.get_ident()
    interrupted = threading.Event()

    def note(wait):
        if wait is not None and not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)

    graph.watch(main, note)
    try:
        with pytest.raises(KeyboardInterrupt):
            queue.get()
    finally:
        graph.unwatch(main)
    assert queue.statistics().getters == ()
    call = Call(queue.get).blocked()
    queue.put(1)
    assert call.result() == 1


def test_an_interrupt_while_the_mutex_is_waited_for():
    """A KeyboardInterrupt that ends the wait for the mutex is what arrives, and another's hold of it isn't ended."""
    queue = duodao.Queue()
    held, free = threading.Event(), threading.Event()

    def hold():
        with queue.mutex:
            held.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert free.wait(PATIENCE)
            assert queue.mutex._is_owned()

    thread = threading.Thread(target=hold)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        held.wait(PATIENCE)
        queue.put(1)
    free.set()
    thread.join(PATIENCE)
    queue.put(2)
    assert queue.get() == 2


def test_a_put_in_a_finalizer():
    """A __del__ that puts, run whenever the collector likes, hangs nothing and loses nothing."""
    queue = duodao.Queue()

    class Circle:
        def __init__(self):
            self.me = self

        def __del__(self):
            queue.put("collected")

    for _ in range(2000):
        Circle()
        queue.put("put")
        queue.get()
    gc.collect()
    assert queue.qsize() == 2000
    assert queue.unfinished_tasks == 4000


@pytest.mark.parametrize("order", ["fifo", "priority"])
def test_a_forked_copy_works(order):
    """In a forked child a queue is a copy that works: no thread of the parent holds it there, or takes its wake-ups."""
    queue = duodao.Queue(order=order)
    getter = Call(queue.get).blocked()
    held, free = threading.Event(), threading.Event()

    def hold():
        with queue.mutex:
            held.set()
            free.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: that threads are lost is the point here
        pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(int(PATIENCE))
            own = Call(queue.get).blocked()
            queue.put("to the child")
            code = int(own.result() != "to the child")
        finally:
            os._exit(code)
    free.set()
    thread.join(PATIENCE)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    queue.put("to the parent")
    assert getter.result() == "to the parent"


# Threads and tasks on one queue


def test_threads_and_tasks_share_a_queue():
    """Tasks put and threads get, and the reverse, on one queue object: each item once."""
    queue = duodao.Queue(3)
    back = duodao.Queue(3)

    def work():
        for item in queue:
            back.put(item * 2)
            queue.task_done()
        back.shutdown()

    async def main():
        thread = asyncio.create_task(asyncio.to_thread(work))
        feeding = asyncio.create_task(queue.aput_many(range(200)))
        found = []
        while len(found) < 200:
            found += await back.aget_many(7)
        assert await feeding == 200
        assert await queue.ajoin(timeout=PATIENCE)
        queue.shutdown()
        await thread
        return found

    assert asyncio.run(main()) == [n * 2 for n in range(200)]


def test_a_cancelled_getter_passes_its_wake_up_on():
    """When the task that was woken for an item is cancelled before it runs, another one that waits gets the item."""

    async def main():
        queue = duodao.Queue()
        first, second = asyncio.create_task(queue.aget()), asyncio.create_task(queue.aget())
        while len(queue.statistics().getters) < 2:  # noqa: ASYNC110  # what it waits for has no event
            await asyncio.sleep(0)
        queue.put("item")
        first.cancel()
        assert await asyncio.wait_for(second, PATIENCE) == "item"
        with suppress(asyncio.CancelledError):
            await first
        assert queue.empty()

    asyncio.run(main())


def test_shutdown_reaches_tasks_and_threads():
    """A shutdown ends the waits of tasks and threads in one queue."""
    queue = duodao.Queue()
    call = Call(queue.get).blocked()

    async def main():
        task = asyncio.create_task(queue.aget())
        while len(queue.statistics().getters) < 2:  # noqa: ASYNC110  # what it waits for has no event
            await asyncio.sleep(0)
        queue.shutdown()
        with pytest.raises(ShutDown):
            await task

    asyncio.run(main())
    with pytest.raises(ShutDown):
        call.result()


def test_close_reaches_those_who_join():
    """close() ends a join() with Closed: nobody will say that the items are done."""
    queue = duodao.Queue()
    queue.put(1)
    call = Call(queue.join).blocked()
    queue.close()
    with pytest.raises(duodao.errors.Closed):
        call.result()
