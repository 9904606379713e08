"""Ctrl-C again and again into a thread that takes, waits for and releases a lock that two others want."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import random, signal, sys, threading, time
from duodao.sync import Lock, RLock, graph, speed

lock = {"Lock": Lock, "RLock": RLock}[sys.argv[1]](name="plate")
main, over, pause = threading.main_thread().ident, threading.Event(), threading.Event()

def pester():
    chance = random.Random(1)
    while not over.is_set():
        pause.wait(chance.random() * 0.002)
        signal.pthread_kill(main, signal.SIGINT)

def rival():
    while not over.is_set():
        with lock:
            pause.wait(0)

armed = False

def interrupt(number, frame):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

def play():  # a function: in a loop of its own, Python 3.13 has instructions that no `try` around them covers
    global armed, rounds
    armed = True
    while time.monotonic() < until:
        with lock:
            rounds += 1
    armed = False

signal.signal(signal.SIGINT, interrupt)
threads = [threading.Thread(target=target) for target in (rival, rival, pester)]
for thread in threads:
    thread.start()
interrupts = held = rounds = 0
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        play()
    except KeyboardInterrupt:
        interrupts += 1
    if lock._is_owned():
        held += 1
        lock.release()
armed = False
over.set()
for thread in threads:
    thread.join(10)
assert not any(thread.is_alive() for thread in threads), "one of them was never woken"
assert not graph._waits, graph._waits
assert not lock._parked, lock._parked
assert not lock.locked(), lock
assert rounds and interrupts > 10, (rounds, interrupts)
# In pure Python an interrupt in the first instruction of __exit__ leaves it held (sync/README.md, Limits).
assert held <= interrupts / 20, (held, interrupts)
print("good")
"""


def pester(kind, seconds):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, kind, str(seconds)],
        env=os.environ | {"DUODAO_LOCKDEP": "0"},
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    assert done.stdout == "good\n", done.stderr


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_interrupts_lose_no_wake_up(kind):
    """Wherever an interrupt hits, no wait stays published, nobody stays parked, and the others go on to their end."""
    pester(kind, 1)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_interrupts_for_a_while(kind):
    """The same for 20 s."""
    pester(kind, 20)
