"""Parking: nobody is woken for nothing, and no wake-up is lost, however a waiter leaves."""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
from collections import deque

import pytest
from tests.unit.sync.meeting import PATIENCE, Noticing, Runner

from duodao.sync import graph, lot


class Thing:
    """One that anybody could release: `units` of it are there."""

    def __init__(self, units: int = 0) -> None:
        self.units = units
        self.parked = Noticing()

    def resolvers(self):
        return None

    def describe(self):
        return "Thing"

    def take(self):
        if self.units:
            self.units -= 1
            return True
        return False

    def give(self):
        self.units += 1
        lot.wake(self.parked)

    def wait(self, timeout=None):
        return lot.wait(self, self.parked, self.take, timeout)

    async def await_(self, timeout=None):
        return await lot.await_(self, self.parked, self.take, timeout)


@pytest.fixture
def thing():
    thing = Thing()
    yield thing
    assert not thing.parked, "somebody still stands in the lot"
    assert not graph._waits, "a wait is still published"


def test_what_is_there_is_had_at_once(thing):
    """A wait for what is there parks nobody and publishes nothing."""
    thing.units = 1
    assert thing.wait() is True
    assert thing.wait(timeout=0) is False


def test_first_come_first_served(thing):
    """One wake-up wakes one waiter, the one that came first."""
    order = []

    def stand(number):
        thing.wait()
        order.append(number)
        done.release()

    done, threads = threading.Semaphore(0), []
    for number in range(4):
        threads.append(Runner(stand, number))
        thing.parked.reach(number + 1)
    for number in range(4):
        thing.give()
        assert done.acquire(timeout=PATIENCE)
        assert order == list(range(number + 1))
    for thread in threads:
        thread.result()


def test_a_time_out_leaves_nothing(thing):
    """A wait ends False when its time is over, and then no longer stands in the lot."""
    assert thing.wait(timeout=0.01) is False
    assert asyncio.run(thing.await_(timeout=0.01)) is False


def test_threads_and_tasks_share_a_lot(thing):
    """A task that is parked behind a thread gets the second unit."""
    first = Runner(thing.wait)
    thing.parked.reach(1)
    second = Runner(lambda: asyncio.run(thing.await_()))
    thing.parked.reach(2)
    thing.give()
    assert first.result() is True
    assert second.is_alive()
    thing.give()
    assert second.result() is True


def test_one_that_came_by_in_between_sends_the_woken_one_back_to_the_front(thing):
    """The woken one finds its unit taken, parks again before those that came later, and gets the next."""
    first, second = Runner(thing.wait), None
    thing.parked.reach(1)
    second = Runner(thing.wait)
    thing.parked.reach(2)
    ticket = thing.parked[0]
    lot.wake(thing.parked)  # without a unit: as if another had taken it
    with thing.parked.changed:
        assert thing.parked.changed.wait_for(lambda: thing.parked[0] is not ticket, PATIENCE)
    thing.give()
    first.result()
    assert second.is_alive()
    thing.give()
    second.result()


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, RuntimeError, "doom"])
def test_the_wake_up_of_one_that_leaves_goes_to_the_next(thing, leaves):
    """A waiter that is woken and leaves without what it was woken for hands the wake-up on."""
    met = threading.Event()

    def ready():
        if threading.current_thread().name == "leaver" and met.is_set() and leaves != "doom":
            raise leaves
        return thing.take() if met.is_set() else False

    def stand():
        return lot.wait(thing, thing.parked, ready)

    leaver = Runner(stand, name="leaver")
    thing.parked.reach(1)
    stayer = Runner(stand, name="stayer")
    thing.parked.reach(2)
    met.set()
    if leaves == "doom":
        graph.doom(wait_of(leaver), RuntimeError("gives way"))
    thing.give()
    assert stayer.result() is True
    assert leaver.done().error is not None


def test_a_wake_up_that_comes_as_the_time_ends_goes_to_the_next(thing):
    """A waiter whose time is over, and that is woken before it has left, hands the wake-up on."""
    looks = []

    def ready():
        looks.append(1)
        if len(looks) == 3:  # the look after the time is over
            thing.parked.reach(2)
            thing.give()
        return False

    leaver = Runner(lot.wait, thing, thing.parked, ready, 0.01)
    thing.parked.reach(1)
    stayer = Runner(thing.wait)
    assert leaver.result() is False
    assert stayer.result() is True


def wait_of(thread):
    """The wait of a thread that has parked; published an instant later."""
    published = threading.Event()
    graph.watch(thread.ident, lambda wait: published.set())
    try:
        found = graph.waiting(thread.ident)
        if found is None:
            assert published.wait(PATIENCE)
            found = graph.waiting(thread.ident)
        return found
    finally:
        graph.unwatch(thread.ident)


def test_doom_at_the_moment_of_the_hand_over(thing):
    """A waiter that is woken and doomed at once raises, and the next one gets the unit."""
    first = Runner(thing.wait)
    thing.parked.reach(1)
    doomed = wait_of(first)
    second = Runner(thing.wait)
    thing.parked.reach(2)
    with graph._guard:
        doomed.doom = ZeroDivisionError("gives way")
    thing.units += 1
    lot.wake(thing.parked)
    assert second.result() is True
    with pytest.raises(ZeroDivisionError):
        first.result()


def test_two_wakers_wake_two(thing):
    """A ticket is rung once: the second waker goes on to the next waiter."""
    tickets = [lot.ThreadTicket() for _ in range(2)]
    parked = deque(tickets)
    assert tickets[0].signal()  # another waker; its waiter has not looked yet
    lot.wake(parked)
    assert all(ticket.rung for ticket in tickets)
    assert list(parked) == tickets, "they leave by themselves"


def test_one_that_leaves_can_not_be_rung():
    """A waiter closes its ticket as it leaves: a waker that has it in hand goes on to the next."""
    leaving, staying = lot.ThreadTicket(), lot.ThreadTicket()
    assert leaving.close()
    lot.wake(deque([leaving, staying]))
    assert staying.rung
    assert not leaving.signal()


def test_a_waker_that_is_interrupted_wakes_all(thing):
    """Ctrl-C inside `wake` loses no wake-up: all that are parked look again."""

    class Interrupted(lot.ThreadTicket):
        calls = 0

        def signal(self):
            Interrupted.calls += 1
            if Interrupted.calls == 1:
                raise KeyboardInterrupt

    others = [lot.ThreadTicket() for _ in range(2)]

    first = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        lot.wake(deque([first, *others]))
    assert all(ticket.rung for ticket in others)


def test_a_cancelled_task_hands_its_wake_up_on(thing):
    """A task that is cancelled when it has been woken, and before it ran, leaves its unit to the next."""

    async def main():
        first = asyncio.create_task(thing.await_())
        second = asyncio.create_task(thing.await_())
        await asyncio.sleep(0)
        assert len(thing.parked) == 2
        thing.give()
        first.cancel()
        assert await asyncio.wait_for(second, PATIENCE) is True
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


def test_a_cancelled_queued_task_is_out(thing):
    """A task that is cancelled while it waits is no longer in the lot, and takes no wake-up."""

    async def main():
        first = asyncio.create_task(thing.await_())
        second = asyncio.create_task(thing.await_())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(thing.parked) == 1
        thing.give()
        assert await asyncio.wait_for(second, PATIENCE) is True

    asyncio.run(main())


def test_a_waker_from_another_thread_reaches_a_task(thing):
    """A task is woken by any thread."""

    async def main():
        task = asyncio.create_task(thing.await_())
        await asyncio.sleep(0)
        giver = Runner(thing.give)
        assert await asyncio.wait_for(task, PATIENCE) is True
        giver.result()

    asyncio.run(main())


def test_a_task_of_a_closed_loop_takes_no_wake_up(thing):
    """A ticket whose loop has been closed is passed over."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(thing.await_())
    loop.run_until_complete(asyncio.sleep(0))
    thing.parked.reach(1)
    loop.close()
    other = Runner(thing.wait)
    thing.parked.reach(2)
    thing.give()
    assert other.result() is True
    assert not thing.parked, "it was taken out"
    del task
    graph._waits.clear()


def test_a_fair_wait_overtakes_nobody(thing):
    """With `fair` a task that comes while another stands there waits behind it; dead ones don't count."""

    async def main():
        first = asyncio.create_task(lot.await_(thing, thing.parked, thing.take, fair=True), name="first")
        await asyncio.sleep(0)
        thing.give()
        second = asyncio.create_task(lot.await_(thing, thing.parked, thing.take, fair=True), name="second")
        await first
        assert not second.done()
        thing.give()
        assert await second

    loop = asyncio.new_event_loop()
    task = loop.create_task(thing.await_())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.run(main())
    del task
    graph._waits.clear()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="needs the main thread")
def test_ctrl_c_ends_the_wait_of_the_main_thread(thing):
    """SIGINT raises KeyboardInterrupt out of a wait without a time-out, and nothing is left of it."""
    main = _thread.get_ident()
    blocked = threading.Event()
    graph.watch(main, lambda wait: blocked.set())

    def interrupt():
        assert blocked.wait(PATIENCE)
        signal.pthread_kill(main, signal.SIGINT)

    helper = Runner(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            thing.wait()
    finally:
        graph.unwatch(main)
    helper.result()


def test_ctrl_c_as_the_wait_is_published(thing):
    """SIGINT in the instant between parking and blocking leaves nothing behind either."""
    main = _thread.get_ident()
    graph.watch(main, lambda wait: wait and signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            thing.wait()
    finally:
        graph.unwatch(main)


def test_awaiting_outside_a_task_is_said(thing):
    """What waits in a loop must be a task."""
    coroutine = thing.await_()
    with pytest.raises(RuntimeError):
        coroutine.send(None)
