"""Shared: a mapping between processes in which no update is lost in silence. Source: M12."""

from __future__ import annotations

import asyncio
import collections
import gc
import os
import pickle
import sys
import threading

import pytest

import duodao
from duodao.channel.state import Shared
from duodao.errors import Closed, Deadlock, LostUpdate, NotPicklable, UsageError
from duodao.sync import Lock

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="robust mutexes are Linux's")


@pytest.fixture
def state():
    """One with two keys."""
    made = Shared({"x": 1, "words": ["a", "b"]}, name="plate")
    yield made
    made.close()


def in_thread(call):
    """Run it in a thread of its own, to its end; what it returned."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(20)
    return found[0]


def test_it_is_a_mapping(state):
    """The methods of a dict, on what is in it now."""
    assert dict(state) == {"x": 1, "words": ["a", "b"]} == state
    assert len(state) == 2
    assert "x" in state
    assert "y" not in state
    assert state.get("y", 5) == 5
    assert list(state) == list(state.keys()) == ["x", "words"]
    assert list(state.values()) == [1, ["a", "b"]]
    assert repr(state) == "Shared({'x': 1, 'words': ['a', 'b']})"
    assert state.pop("x") == 1
    assert state.pop("x", None) is None
    with pytest.raises(KeyError):
        state.pop("x")
    with pytest.raises(KeyError):
        del state["x"]
    assert state.setdefault("x", 7) == 7
    assert state.setdefault("x", 8) == 7
    state.update({"a": 1}, b=2)
    assert state.popitem() == ("b", 2)
    state.clear()
    assert len(state) == 0
    with pytest.raises(KeyError):
        state.popitem()
    state[1, 2] = "tuple"
    assert state[1.0, 2] == "tuple"


def test_other_handles_see_it_at_once(state):
    """A handle that was pickled is the same mapping, in this and in other processes."""
    other = pickle.loads(pickle.dumps(state))
    other["x"] = 5
    assert state["x"] == 5
    numbers = duodao.map(lambda number: state.update_key("x", lambda x: x + number), range(10), lane="process")
    assert len(set(numbers)) >= 9
    assert state["x"] == 5 + sum(range(10))
    other.close()


def test_values_are_read_only(state):
    """Changing what was read raises; a copy that was changed can be assigned."""
    with pytest.raises(TypeError, match="thaw"):
        state["words"].append("c")
    words = state["words"].thaw()
    words.append("c")
    state["words"] = words
    assert state["words"] == ["a", "b", "c"]
    words.append("later")
    assert state["words"] == ["a", "b", "c"]


def test_what_is_refused(state):
    """What can't be pickled or made read-only, and keys without a hash: nothing is assigned, the reason is told."""
    with pytest.raises(TypeError, match=r"can't have this value for 'q': a collections.deque can't be made read-only"):
        state["q"] = collections.deque()
    with pytest.raises(NotPicklable):
        state["q"] = threading.Lock()
    with pytest.raises(TypeError, match="unhashable"):
        state[[]] = 1
    assert "q" not in state
    with pytest.raises(UsageError, match="size="):
        Shared(size=10)


def test_a_lost_update(state):
    """A write after a read that is out of date raises, names the key and both writers; then one starts afresh."""
    before = state["x"]
    in_thread(lambda: state.update({"x": 10}))
    with pytest.raises(LostUpdate, match="'x'") as caught:
        state["x"] = before + 1
    assert caught.value.key == "x"
    assert "MainThread" in caught.value.writers[0]
    assert "Thread-" in caught.value.writers[1]
    assert state["x"] == 10
    state["x"] += 1
    state["x"] += 1
    assert state["x"] == 12


def test_a_lost_update_of_what_was_not_there(state):
    """A key that was read as missing and was made meanwhile, and one that was deleted meanwhile, count too."""
    assert state.get("new") is None
    in_thread(lambda: state.update(new=1))
    with pytest.raises(LostUpdate):
        state["new"] = 2
    assert state["new"] == 1
    in_thread(lambda: state.pop("new"))
    with pytest.raises(LostUpdate, match="deleted"):
        state["new"] = 3


def test_writes_without_a_read_are_free(state):
    """Who hasn't read a key may assign to it, whoever wrote to it before."""
    state["y"] = 1
    in_thread(lambda: state.update(y=2))
    state["y"] = 3
    assert state["y"] == 3


def test_tasks_have_read_for_themselves(state):
    """Two coroutines of one thread: the one that writes from an old value is refused."""

    async def add(read, written):
        before = state["x"]
        read.set()
        await written.wait()
        state["x"] = before + 1

    async def main():
        read, written = asyncio.Event(), asyncio.Event()
        slow = asyncio.create_task(add(read, written))
        await read.wait()
        state["x"] += 1
        written.set()
        with pytest.raises(LostUpdate):
            await slow

    asyncio.run(main())
    assert state["x"] == 2


def test_several_at_once(state):
    """What is assigned in a block is there for others at its end, all at once; the block itself sees it before."""
    with state:
        state["x"] = 2
        state["y"] = state["x"] + 1
        with state:
            del state["words"]
        assert dict(state) == {"x": 2, "y": 3}
        assert len(state) == 2
        assert in_thread(lambda: dict(state)) == {"x": 1, "words": ["a", "b"]}
    assert in_thread(lambda: dict(state)) == {"x": 2, "y": 3}


def test_a_block_that_raises(state):
    """Nothing of it was done, and the lock is free."""
    with pytest.raises(ZeroDivisionError), state:
        state["x"] = 2
        raise ZeroDivisionError
    assert state["x"] == 1
    assert in_thread(lambda: state.update_key("x", lambda x: x + 1)) == 2


def test_update_key(state):
    """One step: what the function raises leaves the value; a missing key has the default or is a KeyError."""
    assert state.update_key("words", lambda words: [*words, "c"]) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        state.update_key("x", lambda x: x / 0)
    assert state["x"] == 1
    with pytest.raises(KeyError):
        state.update_key("y", lambda y: y)
    assert state.update_key("y", lambda y: y + 1, 0) == 1


def test_threads_add_without_loss(state):
    """8 threads, update_key: every step counts."""

    def add():
        for _ in range(50):
            state.update_key("x", lambda x: x + 1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert state["x"] == 401


def test_it_is_bounded():
    """Full, it raises MemoryError with the sizes, and what was there stays; overwriting and deleting go on."""
    state = Shared(size=8192)
    with pytest.raises(MemoryError, match="of 8192 bytes"):
        for number in range(100):
            state[number] = b"x" * 1000
    number = len(state)
    assert number > 4
    for turn in range(100):
        state[0] = bytes([turn]) * 1000
    assert state[0] == bytes([99]) * 1000
    assert len(state) == number
    del state[0]
    state["new"] = b"y" * 900
    assert state["new"] == b"y" * 900
    state.close()


def test_versions_outlive_the_other_half():
    """What was read before the log was begun anew is still known to be out of date, or not."""
    state = Shared({"x": 0, "y": 0}, size=8192)
    x, y = state["x"], state["y"]
    in_thread(lambda: [state.update(y=number) for number in range(1, 300)])
    state["x"] = x + 1
    with pytest.raises(LostUpdate):
        state["y"] = y + 1
    assert dict(state) == {"x": 1, "y": 299}
    state.close()


def test_a_circle_with_another_lock(state):
    """Two threads, the state's lock and a Lock in opposite order: one of them gets Deadlock, the other goes on."""
    lock, has_lock, has_state = Lock(name="chopsticks"), threading.Event(), threading.Event()
    outcomes = []

    def first():
        try:
            with lock:
                has_lock.set()
                has_state.wait(10)
                with state:
                    outcomes.append("done")
        except Deadlock as error:
            outcomes.append(str(error))

    def second():
        try:
            with state:
                has_state.set()
                has_lock.wait(10)
                with lock:
                    outcomes.append("done")
        except Deadlock as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert "done" in outcomes
    assert any("chopsticks" in outcome and "plate" in outcome for outcome in outcomes)


def test_closed():
    """Used after close it raises Closed; other handles go on; what was pickled before all were closed is gone."""
    state = Shared({"x": 1}, name="gone")
    packed = pickle.dumps(state)
    other = pickle.loads(packed)
    state.close()
    state.close()
    with pytest.raises(Closed, match="'gone' was closed"):
        state["x"]
    assert other["x"] == 1
    other.close()
    gc.collect()
    with pytest.raises(Closed, match="'gone' is gone"):
        pickle.loads(packed)
    assert os.getpid()
