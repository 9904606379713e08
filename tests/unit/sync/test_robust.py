"""Robust mutexes and futex words: between threads and processes, and when one of them dies."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from duodao import arena
from duodao.errors import UsageError
from duodao.sync import robust
from duodao.sync.robust import BUSY, DEAD, OVER, OWN, Mutex, Word

USE = """
from duodao.sync.robust import *
mutex = Mutex({offset})
"""


@pytest.fixture
def offset():
    """A page of the arena."""
    got = arena.get().allocate(4096)
    arena.get().view(got, 4096)[:] = bytes(4096)
    yield got
    arena.get().free(got)


@pytest.fixture
def mutex(offset):
    """A free mutex in it."""
    made = Mutex(offset)
    made.init()
    return made


@pytest.fixture
def sharer(mutex, other):
    """Start other processes that know the mutex."""
    return lambda source: other(USE.format(offset=mutex.offset) + textwrap.dedent(source))


def in_thread(function):
    """What `function()` returns in a thread that has ended then."""
    got = []
    thread = threading.Thread(target=lambda: got.append(function()))
    thread.start()
    thread.join()
    return got[0]


def abandon(mutex):
    """Have a thread take the mutex and end. `join` returns a little before the kernel hears of it."""
    assert in_thread(mutex.trylock) in {0, DEAD}
    deadline = time.monotonic() + 10
    while mutex.owner():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_one_thread_has_it(mutex):
    """Its owner is known by native thread number, gets OWN, others get BUSY; only it can unlock."""
    assert mutex.owner() == 0
    assert mutex.trylock() == 0
    assert mutex.owner() == threading.get_native_id()
    assert mutex.trylock() == OWN
    assert mutex.lock(1) == OWN
    assert in_thread(mutex.trylock) == BUSY
    assert in_thread(lambda: mutex.lock(0.001)) == OVER
    assert in_thread(mutex.unlock) == errno.EPERM
    assert mutex.unlock() == 0
    assert mutex.unlock() == errno.EPERM
    assert in_thread(lambda: mutex.trylock() or mutex.unlock()) == 0


def test_one_that_may_be_taken_again(offset):
    """With again=True its owner takes it as often as it likes, and gives it back as often."""
    mutex = Mutex(offset)
    mutex.init(again=True)
    assert [mutex.trylock() for _ in range(3)] == [0, 0, 0]
    assert [mutex.unlock() for _ in range(2)] == [0, 0]
    assert in_thread(mutex.trylock) == BUSY
    assert mutex.unlock() == 0
    assert mutex.owner() == 0


def test_a_thread_that_ends_with_it_is_told(mutex):
    """The next one gets DEAD and has it; after `consistent` that is forgotten, also when it dies before that."""
    abandon(mutex)
    abandon(mutex)
    assert mutex.trylock() == DEAD
    assert mutex.consistent() == 0
    assert mutex.unlock() == 0
    assert mutex.trylock() == 0
    assert mutex.consistent() == errno.EINVAL
    mutex.unlock()


def test_a_process_that_is_killed_with_it_is_told(mutex, sharer):
    """kill -9 of the owner, and of a worker that waits: who waits next gets it, and knows."""
    owner = sharer("mutex.trylock(); say(mutex.owner()); hear()")
    assert int(owner.hear()) == mutex.owner() == owner.pid
    waiter = sharer("say()\nwith mutex.held() as undone: say(undone); hear()")
    waiter.hear()
    assert mutex.lock(0.001) == OVER
    owner.kill()
    assert waiter.hear() == "True"
    waiter.kill()
    with mutex.held() as undone:
        assert undone
        mutex.done()
    with mutex.held() as undone:
        assert not undone
        mutex.done()


def test_what_was_left_undone_is_told(mutex):
    """A block that ends by an exception, or without `done`, makes the next one repair; `done` ends that."""
    with pytest.raises(ZeroDivisionError), mutex.held():
        raise ZeroDivisionError
    assert mutex.owner() == 0
    with mutex.held() as undone:
        assert undone
    with mutex.held() as undone:
        assert undone
        mutex.done()
    with mutex.held() as undone:
        assert not undone
        mutex.done()


def test_a_second_block_in_the_same_thread_is_refused(mutex):
    """A signal handler that uses what its own thread is just using gets an error, not a hang, and the mutex stays."""
    with mutex.held():
        with pytest.raises(RuntimeError, match="signal handler"), mutex.held():
            pass
        assert mutex.owner() == threading.get_native_id()
        mutex.done()


def test_interrupts_never_leave_it_taken(mutex):
    """Ctrl-C at any instruction of a block, also at its first and last: afterwards the mutex is free."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    caught = blocks = 0
    try:
        while caught < 500:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + (caught % 100) * 1e-6)
                for _ in range(20_000):  # not for ever: an interrupt inside a __del__ is only printed
                    with mutex.held():
                        blocks += 1
                        mutex.done()
            except KeyboardInterrupt:
                caught += 1
                assert mutex.owner() == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert blocks > 0


def test_an_interrupt_reaches_a_waiter(mutex, sharer):
    """Ctrl-C works in the wait for a mutex that nobody gives back."""
    owner = sharer("mutex.trylock(); say(); hear()")
    owner.hear()
    main = threading.main_thread().ident
    thread = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        with mutex.held():
            pass
    thread.join()
    assert mutex.owner() == owner.pid


def test_processes_exclude_each_other(mutex, sharer):
    """Three processes and two threads that add in the block: no addition is lost."""
    total = arena.get().view(mutex.offset + 64, 8).cast("Q")
    add = f"""
    from duodao import arena
    total = arena.get().view({mutex.offset + 64}, 8).cast("Q")
    hear()
    for _ in range(2000):
        with mutex.held():
            total[0] += 1
            mutex.done()
    say()
    """
    processes = [sharer(add) for _ in range(3)]

    def here():
        for _ in range(2000):
            with mutex.held():
                total[0] += 1
                mutex.done()

    threads = [threading.Thread(target=here) for _ in range(2)]
    for each in processes:
        each.tell()
    for thread in threads:
        thread.start()
    for each in processes:
        assert each.hear() == "x"
    for thread in threads:
        thread.join()
    assert total[0] == 10_000


def test_a_forked_copy_is_not_the_owner(mutex):
    """What the forking thread holds, its copy neither has nor can give back."""
    assert mutex.trylock() == 0
    pid = os.fork()
    if pid == 0:
        os._exit(0 if mutex.trylock() == BUSY and mutex.unlock() == errno.EPERM else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert mutex.unlock() == 0


def test_a_word_is_waited_for(offset, mutex, sharer):
    """A wait ends at once when the word is another, after its time, and when another process wakes it."""
    word = Word(offset + 64)
    word.value = 7
    assert word.wait(6, 10)
    assert not word.wait(7, 0)
    assert not word.wait(7, 0.001)
    assert word.wake(robust.ALL) == 0
    waiter = sharer(f"word = Word({offset + 64}); say()\nwhile word.value == 7: word.wait(7)\nsay(word.value)")
    waiter.hear()
    word.value = 8
    word.wake(robust.ALL)
    assert waiter.hear() == "8"
    assert robust.futex_wait(offset + 64, 7, 10)
    assert robust.futex_wake(offset + 64, 1) == 0


def test_as_many_as_were_told_are_woken(offset):
    """wake(n) wakes n of those that wait."""
    word = Word(offset + 64)
    over = threading.Event()

    def wait():
        while not over.is_set():
            word.wait(0)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while word.wake(2) != 2:
        assert time.monotonic() < deadline
        os.sched_yield()
    over.set()
    for thread in threads:
        thread.join()


def test_elsewhere_the_error_says_what_is_missing(monkeypatch):
    """A platform without robust mutexes: a UsageError that names what it lacks and what to use instead."""
    monkeypatch.setattr(robust._Home, "native", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="darwin has no robust mutexes.*via='pipe'"):
        Mutex(arena.COMMON_AT)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: object())
    with pytest.raises(UsageError, match="pthread_mutexattr_setrobust"):
        Word(arena.COMMON_AT)
    musl = SimpleNamespace(pthread_mutexattr_setrobust=1)
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: musl)
    with pytest.raises(UsageError, match="not glibc"):
        Word(arena.COMMON_AT)


def test_offsets_outside_are_refused():
    """A mutex or a word outside the arena is a ValueError, not a crash."""
    for make in (Mutex, Word):
        with pytest.raises(ValueError, match="not inside"):
            make(arena.get().size)
