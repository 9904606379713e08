"""kill -9 of a process that writes to a Shared, at any store: the old value or the new one is there. Source: M12."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import warnings

import pytest

from duodao.channel import facts
from duodao.channel.state import Shared
from duodao.errors import LostUpdate
from faults.killing_stores import Stores, in_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="robust mutexes are Linux's")

OLD = {"x": 1, "big": b"o" * 5000, "gone": [1]}


def assign(state):
    state["x"] = 2


def assign_large(state):
    state["big"] = b"n" * 9000


def delete(state):
    del state["gone"]


def several(state):
    with state:
        state["x"] = 2
        state["big"] = b"n"
        del state["gone"]


def begin_anew(state):
    """So much that the other half is begun."""
    state["x"] = b"m" * 1000


ACTS = {
    assign: {"x": 2}, assign_large: {"big": b"n" * 9000}, delete: {"gone": None},
    several: {"x": 2, "big": b"n", "gone": None}, begin_anew: {"x": b"m" * 1000},
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_kill_at_every_store(act):
    """Whatever store a writer dies before, all of its write is there or nothing, and the others write on."""
    new = {key: value for key, value in {**OLD, **ACTS[act]}.items() if value is not None}
    at = 0
    while True:
        at += 1
        state = Shared(OLD, size=16384)
        if act is begin_anew:
            while state._table.facts.end < 16384 - 900:
                state["filler"] = b"f" * 100

        def die(at=at, state=state):
            stores = Stores(at)
            board = state._table
            stores.watch(board.facts, "words")
            board.facts.halves = list(board.facts.halves)
            for half in (0, 1):
                board.facts.halves[half] = watched(stores, board.facts.halves[half])
            act(state)

        ended = in_child(die)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            state["after"] = at
            found = dict(state)
        found.pop("filler", None)
        assert found.pop("after") == at
        assert found in (OLD, new), f"store {at}: {found}"
        assert not ended or found == new
        state.close()
        if ended:
            break
    assert at > 2


def watched(stores, view):
    """A view whose stores count."""

    class Holder:
        pass

    holder = Holder()
    holder.view = view
    stores.watch(holder, "view")
    return holder.view


def test_a_holder_that_dies_in_its_block_is_told():
    """The next one to take the lock is warned, and nothing of the block was done."""
    with_block = Shared({"x": 1}, name="plate")

    def die():
        with with_block:
            with_block["x"] = 2
            os.kill(os.getpid(), signal.SIGKILL)

    assert not in_child(die)
    with pytest.warns(RuntimeWarning, match="'plate': process .* ended inside its `with` block"):
        with_block["y"] = 1
    assert dict(with_block) == {"x": 1, "y": 1}
    with_block.close()


def test_no_update_is_lost_in_silence():
    """4 processes x 500 `state["x"] += 1`: each was done, or raised LostUpdate with the key and both writers."""
    state = Shared({"x": 0})
    counts = Shared()

    def add(number):
        done = refused = 0
        for _ in range(500):
            try:
                state["x"] += 1
                done += 1
            except LostUpdate as error:
                refused += 1
                assert error.key == "x"
                assert f"process {os.getpid()}" in error.writers[0]
                assert f"process {os.getpid()}" not in error.writers[1]
        counts[number] = done, refused

    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                add(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    done = sum(each[0] for each in counts.values())
    assert state["x"] == done
    assert done + sum(each[1] for each in counts.values()) == 2000
    state.close()
    counts.close()


def kill_writers(times):
    """Kill a process that writes pairs, at a random instant each time; pairs are whole and others write on."""
    random_ = random.Random(times)
    state = Shared({"a": 0, "b": 0, "text": "0" * 100}, size=65536)
    for turn in range(times):
        ready, begun = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(begun, b"x")
                number = 0
                while True:
                    number += 1
                    with state:
                        state["a"] = state["b"] = number
                        state["text"] = str(number % 10) * 100
            finally:
                os._exit(1)
        os.read(ready, 1)
        os.close(ready)
        os.close(begun)
        threading.Event().wait(random_.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = time.monotonic()
            state["own"] = turn
            assert time.monotonic() - before < 10
        found = dict(state)
        assert found["a"] == found["b"]
        assert found["text"] == str(found["a"] % 10) * 100
        assert found["own"] == turn
    state.close()


def test_kills_at_random_instants():
    """As the long form, 60 times."""
    kill_writers(60)


@pytest.mark.soak
def test_kills_at_a_thousand_instants():
    """A writer of several keys is killed 1,000 times: what it assigned together is there together."""
    kill_writers(1000)


def test_a_forked_copy_holds_nothing():
    """A fork inside a `with` block: the copy waits for the original's lock, and reads what was there before."""
    state = Shared({"x": 1})
    with state:
        state["x"] = 2

        def look():
            assert state["x"] == 1
            assert state._table.depth == 0

        assert in_child(look)
    assert state["x"] == 2
    assert facts.HEAD.size == 32
    state.close()
