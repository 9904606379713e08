"""duodao.Queue's front: which transport it is, what is refused, and what a transport gets from it."""

from __future__ import annotations

import pickle
from collections import deque
from queue import Empty, Full

import pytest

import duodao
from duodao.channel import base
from duodao.errors import Closed, NotPicklable, ShutDown, UsageError


class Pipe(base.Queue):
    """The least a transport has: no override of what the base offers."""

    VIA = "pipe"
    ORDERS = ("fifo",)
    is_shutdown = False

    def __init__(self, maxsize=0, *, order="fifo", via="pipe", name=None):
        super().__init__(maxsize, order=order, via=via, name=name)
        self.items = deque()
        self.closed = 0

    def put(self, item, block=True, timeout=None):
        if self.is_shutdown:
            raise ShutDown
        if len(self.items) == self.maxsize:
            raise Full
        self.items.append(item)

    def get(self, block=True, timeout=None):
        if not self.items:
            raise ShutDown if self.is_shutdown else Empty
        return self.items.popleft()

    def qsize(self):
        return len(self.items)

    def close(self):
        self.closed += 1


def test_via_chooses():
    """`via` picks the class; the object is a Queue, and a class that was asked for directly gives itself."""
    queue = duodao.Queue(3)
    assert type(queue).__name__ == "MemoryQueue"
    assert isinstance(queue, duodao.Queue)
    assert type(duodao.Queue[int](3)) is type(queue)
    assert type(Pipe(3)) is Pipe


@pytest.mark.parametrize("via", ["", "memories", "tcp:", "pipe:", "memory:x", "redis", None, 5])
def test_unknown_transports(via):
    """An unknown `via` is refused and the valid ones are named."""
    with pytest.raises(UsageError, match=r"'memory', 'shared', 'pipe', 'unix:PATH', 'tcp://HOST:PORT' or 'file:PATH'"):
        duodao.Queue(via=via)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "random"}, "'fifo', 'lifo' or 'priority'"),
        ({"order": "lifo"}, "only 'fifo'"),
        ({"maxsize": 0}, "needs a bound"),
        ({"maxsize": -3}, "needs a bound"),
        ({"maxsize": 2.5}, "number of items"),
        ({"maxsize": None}, "number of items"),
        ({"name": 5}, "it is a text"),
    ],
)
def test_wrong_options(options, words):
    """A wrong option is refused before anything starts, in words that say what is valid."""
    with pytest.raises(UsageError, match=words):
        Pipe(**{"maxsize": 3, **options})


def test_unknown_options():
    """An option that there isn't is a TypeError, as everywhere."""
    with pytest.raises(TypeError):
        duodao.Queue(size=3)


def test_a_subclass_of_the_front_is_told_where_to_begin():
    """duodao.Queue itself has nothing to derive from; the error names the class that has."""
    with pytest.raises(TypeError, match=r"duodao\.dropin\.queue\.Queue"):
        type("Mine", (duodao.Queue,), {})()


def test_what_a_transport_gets():
    """Many at once, without waiting, iteration, emptiness and `with` come from put, get, qsize and close."""
    with Pipe(3) as queue:
        assert queue.empty()
        assert queue.put_many([1, 2]) == 2
        queue.put_nowait(3)
        assert queue.full()
        with pytest.raises(Full) as caught:
            queue.put_many([4, 5])
        assert caught.value.put_count == 0
        assert caught.value.__notes__ == ["the first 0 items had been put"]
        assert queue.get_many(2) == [1, 2]
        assert queue.get_nowait() == 3
        with pytest.raises(Empty):
            queue.get_many(2)
        with pytest.raises(ValueError, match="1 item or more"):
            queue.get_many(0)
        queue.put_many([6, 7])
        queue.is_shutdown = True
        assert queue.get_many(1) == [6]
        assert list(queue) == [7]
        with pytest.raises(ShutDown):
            queue.get_many(5)
    assert queue.closed == 1


def test_no_async_forms():
    """A transport without async forms says so at once, and what to do instead."""
    with pytest.raises(TypeError, match=r"via='pipe' has no aget\(\): await asyncio.to_thread\(queue.get"):
        Pipe(3).aget()


def test_a_queue_in_memory_stays_in_its_process():
    """Pickling a memory queue is refused, and the transports that travel are named."""
    with pytest.raises(NotPicklable, match="via='shared'"):
        pickle.dumps(duodao.Queue(name="jobs"))


def test_errors_have_a_place():
    """ShutDown is caught as Closed; both are of duodao.errors."""
    assert issubclass(ShutDown, Closed)
    assert issubclass(Closed, duodao.errors.DuodaoError)
