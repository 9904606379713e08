"""Ending what a thread waits for."""

from __future__ import annotations

import threading

from duodao.lanes.interrupt import Cancelled, Interrupt, attach, detach
from duodao.sync import Condition, Event, graph


class Waiter:
    """A thread that runs `body` with an Interrupt attached."""

    def __init__(self, body):
        self.seen = []
        self.raised = None
        self.waits = threading.Semaphore(0)
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.main, args=(body,))
        self.thread.start()
        assert self.ready.wait(10)

    def main(self, body):
        ident = threading.get_ident()
        self.stop = Interrupt(ident, "asked")
        attach(ident, self.listen)
        attach(ident, self.stop.listen)
        self.ready.set()
        try:
            body(self)
        except BaseException as error:
            self.raised = error
        finally:
            detach(ident, self.listen)
            detach(ident, self.stop.listen)
            detach(ident, self.stop.listen)

    def listen(self, wait):
        self.seen.append(wait)
        if wait is not None:
            self.waits.release()

    def end(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.thread.ident not in graph._watchers
        return self.raised


def test_the_present_wait_raises():
    """A thread that waits is woken with Cancelled, which knows who asked."""
    waiter = Waiter(lambda _: Event().wait())
    assert waiter.waits.acquire(timeout=10)
    waiter.stop.strike()
    error = waiter.end()
    assert isinstance(error, Cancelled)
    assert waiter.stop.caused(error)
    assert not waiter.stop.caused(None)
    assert not waiter.stop.caused(Cancelled("asked"))
    assert waiter.seen[-1] is None


def test_the_next_wait_raises():
    """A request that finds no wait is heard by the next one, also by one with a time-out."""
    gate = threading.Event()

    def body(waiter):
        gate.wait(10)
        Event().wait(60)

    waiter = Waiter(body)
    waiter.stop.strike()
    gate.set()
    assert isinstance(waiter.end(), Cancelled)


def test_one_request_is_raised_once():
    """What the thread does while it unwinds works; striking again before it was heard is no second request."""
    results = []

    def body(waiter):
        try:
            Event().wait()
        finally:
            results.append(Event().wait(0.001))

    waiter = Waiter(body)
    assert waiter.waits.acquire(timeout=10)
    waiter.stop.strike()
    assert isinstance(waiter.end(), Cancelled)
    assert results == [False]


def test_insist_ends_every_wait():
    """After `insist` each wait raises."""
    count = []

    def body(waiter):
        for _ in range(3):
            try:
                Event().wait()
            except Cancelled:
                count.append(1)

    waiter = Waiter(body)
    assert waiter.waits.acquire(timeout=10)
    waiter.stop.insist()
    assert waiter.end() is None
    assert count == [1, 1, 1]


def test_a_condition_has_its_lock_again():
    """A Condition whose wait is ended has taken its lock back before the error leaves it."""
    condition, held = Condition(), []

    def body(waiter):
        with condition:
            try:
                condition.wait()
            finally:
                held.append(condition._is_owned())

    waiter = Waiter(body)
    assert waiter.waits.acquire(timeout=10)
    waiter.stop.strike()
    assert isinstance(waiter.end(), Cancelled)
    assert held == [True]


def test_nobody_hears_of_a_unit_that_was_left():
    """After `detach` nothing is called."""
    calls = []
    ident = threading.get_ident()
    attach(ident, calls.append)
    Event().wait(0.001)
    assert [wait is None for wait in calls] == [False, True]
    detach(ident, calls.append)
    Event().wait(0.001)
    assert len(calls) == 2
