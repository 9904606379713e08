"""kill -9 of a reader or writer of a shared queue, at any store: the others go on, one item at most is lost and said.

Source: M13.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
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
    for name in ("words", "places", "heads", "whole", "order", "infos", "keys", "turns", "cells"):
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


def worker(act, queue, ready):
    """A forked process that does something with the queue for ever; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            random.seed()
            signal.alarm(120)  # should the test itself be killed
            os.write(ready, b"x")
            while True:
                act(queue)
        finally:
            os._exit(1)
    return pid


def end(pid):
    """Kill it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def put_any(queue):
    """Marked with the writer, small, large, one or several."""
    items = [(random.randrange(9), b"s" * random.choice((1, 100, 40_000)))]
    if random.random() < 0.3:
        items = [(random.randrange(9), number) for number in range(5)]
    try:
        queue.put_many(items)
    except OSError:
        os._exit(1)


def get_any(queue):
    """One or several."""
    random.choice((queue.get, lambda: queue.get_many(3)))()


def kill_at_random(times, order):
    """Kill a reader or a writer, in turn, `times` times; after each the others go on at once."""
    random_ = random.Random(times)
    lost = 0
    with Queue(20, order=order, via="shared") as queue, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        readable, ready = os.pipe()
        acts = [put_any, get_any, put_any, get_any]
        pids = [worker(act, queue, ready) for act in acts]
        try:
            for turn in range(times):
                os.read(readable, 1)
                threading.Event().wait(random_.random() * 0.01)
                victim = turn % len(acts)
                end(pids.pop(victim))
                queue.put((0, "alive"), timeout=10)
                queue.get(timeout=10)
                pids.insert(victim, worker(acts[victim], queue, ready))
        finally:
            for pid in pids:
                end(pid)
            os.close(ready)
            os.close(readable)
        rest = []
        while queue.qsize():
            rest += queue.get_many(50, timeout=10)
        queue.put((9, "last"), timeout=10)
        assert queue.get_many(50, timeout=10) == [(9, "last")]
        assert all(len(item) == 2 for item in rest)
        lost = queue.statistics().lost
        index = queue._index
        index.blocks.free(index.blocks.allocate(1, index.join()))
        assert not any(index.blocks.table.tolist())
        assert not any(bytes(index.blocks.map))
        for _ in range(index.unfinished()):
            queue.task_done()
        assert queue.join(timeout=10)
    assert lost <= times * 5


@pytest.mark.parametrize("order", ORDERS)
def test_kills_at_random_instants(order):
    """As the long form, 40 times per order."""
    kill_at_random(40, order)


@pytest.mark.soak
@pytest.mark.parametrize("order", ORDERS)
def test_kills_at_a_thousand_instants(order):
    """Two writers and two readers, one of them killed 1,000 times: the others go on, no memory is lost."""
    kill_at_random(1000, order)


def test_who_waits_goes_on_after_a_kill():
    """A reader that waits gets what a killed writer had put, and what the next one puts, within its slices."""
    with Queue(5, via="shared") as queue:

        def die():
            queue.put("before")
            queue._index.putting.trylock()
            os.kill(os.getpid(), signal.SIGKILL)

        found = []
        reader = threading.Thread(target=lambda: found.extend((queue.get(timeout=20), queue.get(timeout=20))))
        reader.start()
        assert not in_child(die)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            queue.put("after", timeout=10)
        reader.join(20)
        assert found == ["before", "after"]


def test_join_ends_without_the_dead():
    """What a killed reader had taken and not finished counts as done, and is said: join doesn't wait for it."""
    with Queue(5, via="shared") as queue:
        queue.put_many([1, 2, 3])

        def die():
            queue.get()
            queue.get()
            os.kill(os.getpid(), signal.SIGKILL)

        assert not in_child(die)
        assert queue.get(timeout=10) == 3
        queue.task_done()
        with pytest.warns(RuntimeWarning, match="lost 2 that it had not said to be done"):
            assert queue.join(timeout=10)


def test_ctrl_c_in_a_wait():
    """A signal that comes while get waits is served, and nothing is left published."""
    from duodao.sync import graph

    class Woken(Exception):
        pass

    def handler(*_):
        raise Woken

    before = signal.signal(signal.SIGUSR1, handler)
    waits = threading.Event()
    graph.watch(threading.get_ident(), lambda wait: wait and waits.set())
    main = threading.get_ident()

    def interrupt():
        assert waits.wait(10)
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with Queue(5, via="shared") as queue:
            with pytest.raises(Woken):
                queue.get(timeout=20)
            assert queue.statistics().getters == ()
    finally:
        graph.unwatch(main)
        thread.join(10)
        signal.signal(signal.SIGUSR1, before)
