"""kill -9 of a reader or writer of a shared queue, at any store: the others go on, one item at most is lost and said.

Source: M13.
"""

from __future__ import annotations

import sys
import warnings

import pytest

from duodao.channel.base import Queue
from faults.killing_stores import Stores, in_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="robust mutexes are Linux's")

BIG = b"z" * 70_000
ORDERS = ("fifo", "lifo", "priority")
BEFORE = [(5, "a"), (3, BIG), (4, "c"), (1, "d")]


def expected(items, order):
    """The items as the queue gives them."""
    if order == "priority":
        return sorted(items, key=lambda item: item[0])
    return items[::-1] if order == "lifo" else items


def put_small(queue):
    queue.put((2, "new"))


def put_big(queue):
    queue.put((2, BIG))


def put_two(queue):
    queue.put_many([(2, "new"), (2, "newer")])


def get_one(queue):
    queue.get()


def get_three(queue):
    queue.get_many(3)


def task_done(queue):
    queue.task_done()


NEW = {put_small: [(2, "new")], put_big: [(2, BIG)], put_two: [(2, "new"), (2, "newer")]}
ACTS = {act.__name__: (act, NEW.get(act, [])) for act in (put_small, put_big, put_two, get_one, get_three, task_done)}
TAKES = {"get_one": 1, "get_three": 3}


def watch(queue, stores):
    """Count the stores of this process to the queue's memory."""
    index = queue._index
    index.join()
    for name in ("words", "places", "heads", "bytes", "order", "infos", "keys", "turns", "cells"):
        if hasattr(index, name):
            stores.watch(index, name)
    stores.watch(index.blocks, "map", "table", "area")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ACTS)
def test_a_kill_at_every_store(order, name):
    """Whatever store of an operation a process dies before: the rest is there in order, a lost item is counted."""
    act, new = ACTS[name]
    at = 0
    while True:
        at += 1
        with Queue(16, order=order, via="shared") as queue:
            for item in BEFORE:
                queue.put(item)

            def die(at=at, queue=queue):
                watch(queue, Stores(at))
                act(queue)

            ended = in_child(die)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                queue.put((9, "after"), timeout=10)
                queue._index.mourn()
                found = queue.get_many(16, timeout=10)
                lost = queue.statistics().lost
            check(queue, order, name, new, found, lost, ended, told, at)
            if ended:
                break
    assert at > 3


def check(queue, order, name, new, found, lost, ended, told, at):
    """What may be found after one of them died."""
    here = f"{order}, {name}, store {at}: {[(n, len(x)) for n, x in found]}, lost {lost}"
    taken = TAKES.get(name, 0)
    first = expected(BEFORE, order)
    if taken:
        gone = [item for item in first if item not in found]
        assert gone in ([], first[:taken]), here
        assert (lost == len(gone)) if not ended else (lost == 0 and len(gone) == taken), here
        assert found == expected([*[item for item in BEFORE if item not in gone], (9, "after")], order), here
    else:
        come = [item for item in new if item in found]
        assert come == new[: len(come)], here
        assert found == expected([*BEFORE, *come, (9, "after")], order), here
        assert lost <= len(new), here
        if ended:
            assert come == new, here
    assert bool(lost) == bool([w for w in told if "lost" in str(w.message)]) or name == "task_done", here
    index = queue._index
    index.blocks.free(index.blocks.allocate(1, index.join()))  # who takes the mutex next mends
    assert not any(index.blocks.table.tolist()), here
    assert not any(bytes(index.blocks.map)), here
    assert queue.qsize() == 0, here
    for _ in range(index.unfinished()):
        queue.task_done()
    assert queue.join(timeout=10), here
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
