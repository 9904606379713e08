"""Every ended child is reaped at once: none is seen as a zombie in two samples 10 ms apart. Source: M8."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest

from duodao.children import guard, reap

EVERY = 0.010


def zombies(parents):
    """The ended and unreaped children of `parents`."""
    found = set()
    for pid in reap._pids():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == b"Z" and int(parent) in parents:
            found.add(pid)
    return found


def waits_for_a_cpu(pid):
    """True while the process, or the one it spawns and waits for (D), is runnable: on a busy machine it may know what
    to do and have no turn yet."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in (b"R", b"D")


class Watch(threading.Thread):
    """Samples every 10 ms. `seen`: a zombie in two samples in a row while the guard sleeps, or in 100 in any case."""

    def __init__(self, guard_pid):
        super().__init__()
        self.over = threading.Event()
        self.guard_pid = guard_pid
        self.samples = 0
        self.seen = set()

    def run(self):
        parents = {os.getpid(), self.guard_pid}
        age = Counter()
        while not self.over.wait(EVERY):
            now = zombies(parents)
            age = Counter({pid: age[pid] + 1 for pid in now})
            old = {pid for pid in now if age[pid] > 1}
            if old and not waits_for_a_cpu(self.guard_pid):
                self.seen |= old & zombies(parents)
            self.seen |= {pid for pid in now if age[pid] > 100}
            self.samples += 1


def short_lives(count):
    """`count` children that end at once, half of them workers and half programs; a third leaves an orphan behind."""
    guard.shutdown()
    assert guard.command(["true"]).wait(10) == 0
    watch = Watch(guard._home.get().pid)
    watch.start()
    codes = Counter()
    heard = threading.Semaphore(0)
    room = threading.Semaphore(8)

    def ended(child):
        codes[child.exitcode] += 1
        room.release()
        heard.release()

    for number in range(count):
        room.acquire()
        if number % 2:
            child = guard.command(["true"] if number % 3 else ["sh", "-c", "setsid -f true"])
        else:
            child = guard.fork("operator:ne")  # ne(b"", []) is True, which is exit code 1
        child.on_exit(ended)
    for _ in range(count):
        heard.acquire()
    watch.over.set()
    watch.join()
    guard.shutdown()
    assert codes == {0: count // 2, 1: count // 2}
    assert watch.samples > 10
    assert watch.seen == set()
    assert zombies({os.getpid()}) == set()


def test_short_children(capfd):
    """500 short children and the orphans of some: every one is reported, none stays a zombie."""
    short_lives(500)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_thousand_short_children(capfd):
    """The same with 10,000."""
    short_lives(10_000)
