"""A memory queue and the standard library's, given the same calls, do the same."""

from __future__ import annotations

import queue as standard
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import duodao

PEERS = {"fifo": standard.Queue, "lifo": standard.LifoQueue, "priority": standard.PriorityQueue}

CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(-3, 3), st.booleans(), st.sampled_from([None, 0, -1])),
        st.tuples(st.just("put"), st.integers(-3, 3), st.just(False)),
        st.tuples(st.just("put_nowait"), st.integers(-3, 3)),
        st.tuples(st.just("get"), st.booleans(), st.sampled_from([0, -1])),
        st.tuples(st.just("get"), st.just(False)),
        st.tuples(st.just("get_nowait")),
        st.tuples(st.just("task_done")),
        st.tuples(st.just("qsize")),
        st.tuples(st.just("empty")),
        st.tuples(st.just("full")),
        st.tuples(st.just("shutdown"), st.booleans()),
    ),
    max_size=40,
)


def told(queue: Any, name: str, args: tuple[Any, ...]) -> object:
    """What a call gives: its value, or the kind of its exception."""
    try:
        return getattr(queue, name)(*args)
    except Exception as error:
        kinds = (standard.Empty, standard.Full, getattr(standard, "ShutDown", ()), ValueError)
        found = [kind for kind in kinds if kind != () and isinstance(error, kind)]
        return found or type(error)


@pytest.mark.parametrize("order", PEERS)
@given(maxsize=st.integers(-1, 4), calls=CALLS)
def test_as_the_standard_queue(order, maxsize, calls):
    """Every sequence of calls that don't wait has the same values, exceptions and counts, in each order."""
    ours, peer = duodao.Queue(maxsize, order=order), PEERS[order](maxsize)
    for name, *args in calls:
        if name == "shutdown" and not hasattr(peer, "shutdown"):
            continue
        if name == "put" and len(args) == 3 and args[1:] == [True, None] and peer.full():
            continue  # it would wait
        assert told(ours, name, tuple(args)) == told(peer, name, tuple(args)), (name, args)
        assert ours.unfinished_tasks == peer.unfinished_tasks
    assert list(ours.queue) == list(peer.queue) or order == "priority"


@given(items=st.lists(st.tuples(st.integers(0, 3), st.integers()), max_size=60), order=st.sampled_from(list(PEERS)),
       maxsize=st.sampled_from([0, 60]), shape=st.sampled_from([list, tuple, iter]), n=st.integers(1, 70))  # fmt: skip
def test_many_is_as_one_by_one(items, order, maxsize, shape, n):
    """put_many and get_many give what put and get give one by one."""
    single, many = duodao.Queue(maxsize, order=order), duodao.Queue(maxsize, order=order)
    for item in items:
        single.put(item)
    assert many.put_many(shape(items)) == len(items)
    assert many.unfinished_tasks == single.unfinished_tasks
    found: list[Any] = []
    while not many.empty():
        found += many.get_many(n)
    assert found == [single.get() for _ in items]
    if order == "priority":
        assert found == sorted(items, key=lambda item: item[0])
