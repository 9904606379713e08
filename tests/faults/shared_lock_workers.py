"""Workers of test_shared_locks.py. Each gets its locks pickled, says lines to fds[0] and hears bytes from fds[1]."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import threading
import time
import warnings

from duodao import arena, sync
from duodao.errors import Deadlock, OwnerDied

warnings.simplefilter("ignore")


def say(fds, text):
    """A line."""
    os.write(fds[0], f"{text}\n".encode())


def cells(offset, count):
    """Numbers that all processes see."""
    return arena.get().view(offset, 8 * count).cast("Q")


def busy(arg, fds):
    """Take and give a lock for ever; what it protects is a pair of numbers that differ only inside."""
    lock, offset = pickle.loads(arg)
    pair = cells(offset, 2)
    say(fds, "begins")
    while True:
        with lock as got:
            if isinstance(got, OwnerDied):
                pair[1] = pair[0]
            assert pair[0] == pair[1]
            pair[0] += 1
            pair[1] += 1


def turns(arg, fds):
    """Wait for and wake others by all that is shared, for ever; each finished round is counted in `rounds[place]`."""
    place, condition, event, permits, offset = pickle.loads(arg)
    rounds = cells(offset, 8)
    rng = random.Random(place)
    say(fds, "begins")
    while True:
        with condition:
            if rng.random() < 0.5:
                condition.notify()
            else:
                condition.wait(0.02)
        with permits:
            if rng.random() < 0.5:
                event.set()
                event.clear()
            else:
                event.wait(0.02)
        rounds[place] += 1


def philosopher(arg, fds):
    """Take two locks, the second when the other philosopher has its first; say how it went, and how long it took."""
    first, second, gate, rounds = pickle.loads(arg)
    for _ in range(rounds):
        gate.wait(60)
        began = time.monotonic()
        try:
            with first:
                gate.wait(60)
                began = time.monotonic()
                with second:
                    text = "ate"
        except Deadlock as error:
            text = f"{(time.monotonic() - began) * 1e3:.1f} {len(error.cycle)} {len(error.stacks)}"
        say(fds, text)


def mixed(arg, fds):
    """Two threads: one has the shared lock and wants the local one, the other has that and wants `theirs`."""
    ours, theirs, gate, rounds = pickle.loads(arg)
    local = sync.Lock(name="local")
    both = threading.Barrier(2)

    def side(first, second, said):
        try:
            with first:
                both.wait(60)
                if first is ours:
                    gate.wait(60)
                both.wait(60)
                began = time.monotonic()
                with second:
                    said.append("ate")
        except Deadlock:
            said.append(f"{(time.monotonic() - began) * 1e3:.1f}")

    for _ in range(rounds):
        gate.wait(60)
        said: list[str] = []
        stranger = threading.Thread(target=side, args=(local, theirs, said))
        stranger.start()
        side(ours, local, said)
        stranger.join()
        for text in said:
            say(fds, text)


def diner(arg, fds):
    """Three random of the locks, many times, again after each Deadlock; or, in order, never one."""
    locks, seed, rounds, in_order = pickle.loads(arg)
    rng = random.Random(seed)
    deadlocks = 0
    for _ in range(rounds):
        mine = rng.sample(range(len(locks)), 3)
        if in_order:
            mine.sort()
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    for number in mine:
                        stack.enter_context(locks[number])
                        os.sched_yield()
                break
            except Deadlock:
                deadlocks += 1
    say(fds, deadlocks)


def sleeper(arg, fds):
    """Hold the lock as long as the other side says nothing."""
    lock = pickle.loads(arg)
    with lock:
        say(fds, "holds")
        os.read(fds[1], 1)
