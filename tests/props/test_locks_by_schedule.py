"""Locks under schedules that hypothesis makes: what each step gives is what a small model says."""

from __future__ import annotations

import queue
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sync.meeting import PATIENCE, Runner

from duodao.errors import Deadlock
from duodao.sync import Lock, RLock, graph

pytestmark = pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")
SETTINGS = settings(max_examples=60, deadline=None)


class Actor:
    """A thread that does one step at a time, when told."""

    def __init__(self, name):
        self.steps, self.results = queue.SimpleQueue(), queue.SimpleQueue()
        self.thread = Runner(self._play, name=name)

    def _play(self):
        while (step := self.steps.get()) is not None:
            try:
                self.results.put(step())
            except (RuntimeError, Deadlock) as error:
                self.results.put(type(error))

    def do(self, step):
        self.steps.put(step)
        return self.results.get(timeout=PATIENCE)

    def end(self):
        self.steps.put(None)
        self.thread.result()


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from(["try", "brief", "release", "wait"])), max_size=30
)


@SETTINGS
@given(again=st.booleans(), steps=STEPS)
def test_one_step_at_a_time(again, steps):
    """Three threads try, release and wait in any order: each step gives what the model of a mutex gives."""
    locks = [(RLock if again else Lock)(name=f"L{number}") for number in range(2)]
    actors = [Actor(f"T{number}") for number in range(3)]
    holder, count = [None, None], [0, 0]
    try:
        for who, which, step in steps:
            lock, mine = locks[which], holder[which] == who
            can = holder[which] is None or (mine and again)
            if step == "release":
                assert actors[who].do(lock.release) is (None if mine else RuntimeError)
                if mine:
                    count[which] -= 1
                    holder[which] = who if count[which] else None
                continue
            if step == "wait" and not can and not mine:
                continue  # it would rightly block
            wanted = {
                "try": lambda lock=lock: lock.acquire(False),
                "brief": lambda lock=lock: lock.acquire(timeout=0.001),
            }
            got = actors[who].do(wanted.get(step, lock.acquire))
            assert got is (True if can else Deadlock if step == "wait" else False)
            if can:
                holder[which], count[which] = who, count[which] + 1
            assert lock.locked() == (holder[which] is not None)
    finally:
        for actor in actors:
            actor.end()
    for which, lock in enumerate(locks):
        assert lock.locked() == (holder[which] is not None)


PROGRAMS = st.lists(  # per thread: what it takes, one inside the other, several times
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), min_size=1, max_size=6),
    min_size=2,
    max_size=4,
)


@SETTINGS
@given(programs=PROGRAMS)
def test_any_program_ends(programs):
    """Threads that nest locks in any order all end, try again when they give way, exclude each other, leave nothing."""
    locks = [Lock(name=f"L{number}") for number in range(4)]
    inside, start = [None] * 4, threading.Barrier(len(programs))

    def nest(me, wanted):
        if not wanted:
            return
        with locks[wanted[0]]:
            assert inside[wanted[0]] is None
            inside[wanted[0]] = me
            try:
                nest(me, wanted[1:])
                assert inside[wanted[0]] == me
            finally:
                inside[wanted[0]] = None

    def play(me, program):
        start.wait(PATIENCE)
        for wanted in program:
            while True:
                try:
                    nest(me, wanted)
                    break
                except Deadlock as error:
                    assert len(error.cycle) >= 2

    for runner in [Runner(play, me, program) for me, program in enumerate(programs)]:
        runner.result()
    assert not any(lock.locked() or lock._parked for lock in locks)
    assert not graph._waits
