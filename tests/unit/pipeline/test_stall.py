"""A group that stands still is reported; one that only waits is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections import deque

import pytest

import duodao
from duodao import arena
from duodao.errors import Stalled
from duodao.pipeline import stall
from duodao.sync import Condition, Event, Semaphore, lot


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch):
    """pytest-timeout has a handler for SIGALRM, and a program with a handler is never stalled. Nor is one with threads
    of others, which tests of the same run may have left (Jupyter's loop, numpy's linear algebra)."""
    monkeypatch.setattr(stall, "handlers", lambda: False)
    left = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
    monkeypatch.setattr(stall, "_SERVANTS", (*stall._SERVANTS, *left))
    before = stall.native()
    if before:
        monkeypatch.setattr(stall, "native", lambda: False)


@contextlib.contextmanager
def expect_stall(*texts):
    """The block's group fails with Stalled, whose message has these texts."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group("still") as group:
        yield group
    (error,) = caught.value.exceptions
    assert isinstance(error, Stalled)
    for text in ("'still'", *texts):
        assert text in str(error)


def wait(event):
    event.wait()


def test_threads_that_wait_for_each_other():
    """Two threads, each waiting for an event that only the other would set: Stalled with both stacks."""
    a, b = Event(name="a"), Event(name="b")

    def first():
        a.wait()
        b.set()

    def second():
        b.wait()
        a.set()

    with expect_stall("Event 'a'", "Event 'b'", "in first", "in second") as group:
        group.start(first, lane="thread")
        group.start(second, lane="thread")


def test_the_last_producer_has_ended():
    """A consumer that waits for a producer that is gone: seen as the producer ends."""
    items, begun = Semaphore(0, name="items"), threading.Event()

    def consume():
        begun.set()
        items.acquire()
        items.acquire()

    def produce():
        begun.wait(10)
        items.release()

    with expect_stall("Semaphore 'items'") as group:
        group.start(consume, lane="thread")
        group.start(produce, lane="thread")


def test_daemons_count_as_others_do():
    """A daemon that waits, too, ends nobody's wait."""
    with expect_stall() as group:
        group.start(wait, Event(), lane="thread")
        group.start(wait, Event(), lane="thread", daemon=True)


def test_coroutines():
    """Tasks on a loop that has nothing else to do."""

    async def wait_here(event):
        await event

    with expect_stall("Event 'dusk'", "in wait_here") as group:
        group.start(wait_here, Event(name="dusk"))
        group.start(wait, Event(), lane="thread")


def test_async_with():
    """A group on the running loop, whose other tasks are the owner alone."""

    async def wait_here():
        await Event(name="dusk")

    async def main():
        async with duodao.Group() as group:
            group.start(wait_here)

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert isinstance(caught.value.exceptions[0], Stalled)


def test_processes():
    """A process that waits for what is in it alone, beside a thread that waits."""

    def lost():
        Event(name="alone").wait()

    with expect_stall("Event 'alone'", "in lost") as group:
        group.start(lost, lane="process")
        group.start(wait, Event(), lane="thread")


def test_processes_and_what_they_share():
    """Two processes and a thread that wait for an Event of all of them, which nobody is left to set."""
    event = Event(name="all", shared=True)

    def lost():
        event.wait()

    try:
        with expect_stall("Event 'all'", "'one'", "'two'") as group:
            group.start(lost, lane="process", name="one")
            group.start(lost, lane="process", name="two")
            group.start(lost, lane="thread")
    finally:
        event.close()


def test_a_condition():
    """Condition.wait is a wait like the others."""
    condition = Condition()

    def hold():
        with condition:
            condition.wait()

    with expect_stall() as group:
        group.start(hold, lane="thread")


def test_groups_that_nest_are_told_once():
    """A stall inside of an inner group is the inner group's failure."""
    seen = []

    def owner():
        try:
            with duodao.Group("inner") as inner:
                inner.start(wait, Event(), lane="thread")
        except* Stalled as caught:
            seen.append(str(caught.exceptions[0]))

    with duodao.Group("outer") as group:
        group.start(owner, lane="thread")
    assert "'inner'" in seen[0]


def test_the_body_waits_too():
    """The owner's own wait in the block's body stands for the wait for the end."""
    never = Event(name="never")
    with expect_stall("Event 'never'") as group:
        group.start(wait, never, lane="thread")
        never.wait()


def test_the_body_joins_what_stands_still():
    """A body that waits for a task which only the body could let go on."""
    queue = duodao.Queue(1, via="shared", name="full")
    try:
        with expect_stall("room in Queue 'full'") as group:
            group.start(queue.put_many, [1, 2, 3], lane="process").result()
    finally:
        queue.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_body_of_async_with(loop):
    """The same for a coroutine that owns a group, on both kinds of loop in the main thread."""
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    else:
        factory = asyncio.new_event_loop

    async def main():
        never = Event(name="never")
        async with duodao.Group("still") as group:
            group.start(wait, never, lane="thread")
            await never

    with pytest.raises(ExceptionGroup) as caught, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert isinstance(caught.value.exceptions[0], Stalled)


def test_a_group_inside_of_a_task(monkeypatch):
    """A group in a process of ours: the program above may end a wait for what they share, and does."""
    event, looks = Event(shared=True), Semaphore(0, shared=True)

    def inner():
        original = stall.Stall._signature

        def signature(this):
            found = original(this)
            looks.release()
            return found

        stall.Stall._signature = signature  # of this process, which ends with the call
        with duodao.Group() as group:
            group.start(wait, event, lane="thread")

    with duodao.Group() as group:
        group.start(inner, lane="process")
        for _ in range(2):
            assert looks.acquire(timeout=10)
        event.set()
    event.close()
    looks.close()


class Reaching:
    """Something to wait for that others can reach."""

    def __init__(self, reach):
        self.reach = reach
        self.parked = deque()
        self.done = False

    def resolvers(self):
        return None

    def describe(self):
        return "something"

    def wait(self):
        lot.wait(self, self.parked, lambda: self.done)

    def end(self):
        self.done = True
        lot.wake_all(self.parked)


def test_what_other_programs_reach(watched):
    """A queue at an address, or in a file: nobody knows who else is there."""
    assert duodao.Queue().on_item.reach == ""
    away = Reaching("world")
    watched.then = away.end
    with duodao.Group() as group:
        group.start(away.wait, lane="thread")
    assert set(watched.found) == {None}


def test_a_process_that_nobody_knows_of_has_the_arena(watched):
    """A fork of a fork may set what is shared: it is found by what it has mapped."""
    shared = Reaching("program")
    arena.get()
    ready, gone = os.pipe(), os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(gone[1])
            os.write(ready[1], b"!")
            os.read(gone[0], 1)
        os._exit(0)
    os.wait()
    os.read(ready[0], 1)
    watched.then = shared.end
    with duodao.Group() as group:
        group.start(shared.wait, lane="thread")
    assert set(watched.found) == {None}
    for end in (*ready, *gone):
        os.close(end)


class Watched:
    """How often the watch looked in earnest, and what it found."""

    def __init__(self, monkeypatch):
        self.looks = threading.Semaphore(0)
        self.found = []
        self.then = lambda: None  # after the second look
        original = stall.Stall._signature

        def signature(this):
            found = original(this)
            self.found.append(found)
            if len(self.found) == 2:
                self.then()
            self.looks.release()
            return found

        monkeypatch.setattr(stall.Stall, "_signature", signature)


@pytest.fixture
def watched(monkeypatch):
    """See Watched."""
    return Watched(monkeypatch)


def end_after(watched, end):
    """A thread outside: ends the wait once the watch has looked twice, or the block would never end."""
    assert watched.looks.acquire(timeout=10)
    end()


def test_a_thread_outside_may_end_it(watched):
    """While another thread of the program runs, the group is quiet and no more."""
    event = Event()
    thread = threading.Thread(target=end_after, args=(watched, event.set))
    thread.start()
    with duodao.Group() as group:
        group.start(wait, event, lane="thread")
    thread.join()
    assert set(watched.found) == {None}


def test_a_signal_handler_may_end_it(watched, monkeypatch):
    """A program that handles a signal itself, as servers do for a graceful end, is quiet and no more."""
    monkeypatch.undo()
    watched.__init__(monkeypatch)
    event = Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: event.set())
    original = stall.Stall._signature

    def look_then_signal(this):
        found = original(this)
        os.kill(os.getpid(), signal.SIGUSR1)  # to the main thread, which waits
        return found

    monkeypatch.setattr(stall.Stall, "_signature", look_then_signal)
    try:
        with duodao.Group() as group:
            group.start(wait, event, lane="thread")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(watched.found) == {None}


def test_who_could_end_it_may_go_in_silence():
    """A thread outside that ends without ending the wait: the group is looked at again, and fails."""
    thread = threading.Thread(target=threading.Event().wait, args=(3 * stall.MOMENT,))
    thread.start()
    with expect_stall() as group:
        group.start(wait, Event(), lane="thread")
    thread.join()


def test_a_thread_of_a_process_may_go_in_silence():
    """The same inside of a process task."""

    def lost():
        threading.Thread(target=threading.Event().wait, args=(0.2,)).start()
        Event(name="alone").wait()

    with expect_stall("Event 'alone'") as group:
        group.start(lost, lane="process")


def test_a_quiet_server_is_not_reported():
    """A task in accept() may go on at any time: nothing is even looked at twice."""
    event = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            server.accept()[0].close()
            event.set()

        with duodao.Group() as group:
            group.start(serve, lane="thread")
            group.start(wait, event, lane="thread")
            watch = group.stall
            assert not watch._all_wait()
            group.later(3 * stall.MOMENT, lambda: socket.create_connection(server.getsockname()).close())


def test_news_of_a_process_that_were_not_read(watched):
    """A process that goes on while a callback holds up who reads its news is not taken for blocked."""
    gate, first, second = threading.Event(), Event(shared=True), Event(shared=True)

    def go_on():
        first.wait()
        second.wait(1.0)
        return "went on"

    def hold_up(_):
        first.set()  # the news of it lie in the pipe
        gate.wait(6 * stall.MOMENT)

    try:
        with duodao.Group() as group:
            task = group.start(go_on, lane="process")
            while not task.state == "blocked":
                pass
            group.start(len, (), lane="process").add_done_callback(hold_up)
        assert task.result() == "went on"
    finally:
        first.close()
        second.close()


def test_a_timer_of_the_loop_may_end_it(watched):
    """A loop that has a timer is not stuck."""
    event = Event()

    async def wait_here():
        asyncio.get_running_loop().call_later(4 * stall.MOMENT, event.set)
        await event

    with duodao.Group() as group:
        group.start(wait_here)
    assert watched.found
    assert set(watched.found) == {None}


def test_a_listener_of_the_loop_may_end_it(watched):
    """A loop that serves is not stuck, though no task of it runs."""
    event = Event()

    async def serve():
        server = await asyncio.start_server(lambda reader, writer: (writer.close(), event.set()), "127.0.0.1", 0)
        async with server:
            address.append(server.sockets[0].getsockname())
            await event

    address = []

    def connect():
        watched.looks.acquire(timeout=10)
        socket.create_connection(address[0]).close()

    thread = threading.Thread(target=connect)
    thread.start()
    with duodao.Group() as group:
        group.start(serve)
    thread.join()
    assert set(watched.found) == {None}


def test_waits_with_a_time_out_end_by_themselves(watched):
    """A wait with a time-out is no reason to look."""
    with duodao.Group() as group:
        group.start(Event().wait, 3 * stall.MOMENT, lane="thread")
        group.start(Event().wait, 3 * stall.MOMENT, lane="thread")
    assert watched.found == []


def test_two_that_play_ping_pong_are_not_reported(watched):
    """Threads that wake each other are both in a wait for moments; it is never the same one twice."""
    ping, pong = Semaphore(0), Semaphore(0)

    def play(mine, theirs, n):
        for _ in range(n):
            mine.acquire()
            theirs.release()

    with duodao.Group() as group:
        group.start(play, ping, pong, 5000, lane="thread")
        group.start(play, pong, ping, 5000, lane="thread")
        ping.release()
