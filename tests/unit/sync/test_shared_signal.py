"""Semaphore, Event, Condition and Barrier with shared=True: between processes, and when one of them is killed."""

from __future__ import annotations

import gc
import math
import pickle
import signal
import threading

import pytest
from meeting import Runner, all_of
from other_process import until

import duodao
from duodao import sync
from duodao.errors import Closed, Deadlock, UsageError
from duodao.sync import cells, graph, robust, table, turns


def waiting(primitive, count=1):
    """Until so many wait for it, where all processes can see it."""
    until(lambda: len(primitive.statistics().waiters) >= count, f"{count} wait for {primitive.name}")


# Semaphore


def test_permits_are_shared(other):
    """What one process takes, another hasn't; what it releases, a waiter of another process gets."""
    permits = sync.Semaphore(2, name="seats", shared=True)
    far = other("permits.acquire(); permits.acquire(); say(); hear(); permits.release(2); say()", permits=permits)
    far.hear()
    assert permits.locked()
    assert permits.acquire(blocking=False) is False
    assert permits.acquire(timeout=0.02) is False
    runners = [Runner(permits.acquire) for _ in range(2)]
    waiting(permits, 2)
    far.tell()
    assert all_of(*runners) == [True, True]
    assert permits.statistics() == sync.Statistics("seats", True, None, (), 0)


def test_permits_are_counted_right(other):
    """Processes and threads that take and give: never more inside than there are permits, and all are back."""
    permits = sync.Semaphore(2, shared=True)
    inside = sync.BoundedSemaphore(2, shared=True)
    source = """
    hear()
    for _ in range(300):
        with permits:
            assert inside.acquire(blocking=False)
            inside.release()
    say('done')
    """
    others = [other(source, permits=permits, inside=inside) for _ in range(3)]

    def here():
        for _ in range(300):
            with permits:
                assert inside.acquire(blocking=False)
                inside.release()

    for process in others:
        process.tell()
    all_of(Runner(here), Runner(here))
    assert [process.hear() for process in others] == ["done"] * 3
    assert permits.statistics().value == 2


def test_a_timeout_that_is_no_number():
    """A wait of nan seconds, which would never be over, is a ValueError."""
    condition = sync.Condition(shared=True)
    with condition:
        for wait in (
            lambda: condition.wait(math.nan),
            lambda: condition.wait_for(lambda: False, math.nan),
            lambda: sync.Semaphore(0, shared=True).acquire(timeout=math.nan),
            lambda: sync.Event(shared=True).wait(math.nan),
            lambda: sync.Barrier(2, shared=True).wait(math.nan),
        ):
            with pytest.raises(ValueError, match="nan"):
                wait()


def test_more_than_there_may_be(other):
    """A BoundedSemaphore above its first value is a ValueError, in any process; so is a negative first value."""
    bounded = sync.BoundedSemaphore(1, shared=True)
    far = other("bounded.acquire(); say()", bounded=bounded)
    far.hear()
    bounded.release()
    with pytest.raises(ValueError, match="too many times"):
        bounded.release()
    for value in (-1, 1 << 31):
        with pytest.raises(ValueError, match="initial value"):
            sync.Semaphore(value, shared=True)
    with pytest.raises(ValueError, match="one or more"):
        bounded.release(0)
    with pytest.raises(ValueError, match="timeout"):
        bounded.acquire(blocking=False, timeout=1)


def test_a_killed_waiter_takes_no_permit_with_it(other):
    """A permit that is released as a waiter is killed goes to the next one; nobody hangs."""
    for _ in range(5):
        permits = sync.Semaphore(0, shared=True)
        far = other("permits.acquire()", permits=permits)
        waiting(permits)
        runner = Runner(permits.acquire)
        waiting(permits, 2)
        far.child.kill()
        permits.release()
        far.child.wait(10)
        if permits._values[0] == 0 and runner.is_alive():
            permits.release()  # the killed one had it
        assert runner.result() is True


# Event


def test_an_event_reaches_all_processes(other):
    """set() in one process ends the waits in all others; clear() takes it down for all."""
    event = sync.Event(name="go", shared=True)
    others = [other("say(event.wait()); hear(); say(event.is_set())", event=event) for _ in range(2)]
    waiting(event, 2)
    assert event.wait(0.02) is False
    event.set()
    assert [process.hear() for process in others] == ["True", "True"]
    assert event.wait()
    event.clear()
    for process in others:
        process.tell()
    assert [process.hear() for process in others] == ["False", "False"]
    assert event.statistics() == sync.Statistics("go", True, None, (), 0)


def test_an_event_that_is_cleared_at_once_is_seen(other):
    """Who waited when it was set gets True, though it was cleared before the waiter could look."""
    event = sync.Event(shared=True)
    far = other("say(event.wait(10))", event=event)
    waiting(event)
    for _ in range(3):
        event.set()
        event.clear()
    assert far.hear() == "True"


# Condition


def test_a_condition_between_processes(other):
    """A waiter gives the lock back, is woken by another process's notify, and has the lock again."""
    condition = sync.Condition(name="c", shared=True)
    far = other("with condition: say(condition.wait()); say(condition._is_owned())", condition=condition)
    waiting(condition)
    with condition:
        condition.notify()
        assert not select_line(far), "it waits for the lock"
    assert far.hear() == "True"
    assert far.hear() == "True"


def select_line(process):
    """Has it said something?"""
    import select

    return bool(select.select([process._heard], [], [], 0)[0])


def test_notify_wakes_as_many_as_it_says(other):
    """notify(n) wakes n, the first first, across processes; the others wait on."""
    condition = sync.Condition(shared=True)
    source = "with condition: say(condition.wait())"
    others = []
    for number in range(4):
        others.append(other(source, condition=condition))
        waiting(condition, number + 1)
    with condition:
        condition.notify(2)
    assert [process.hear() for process in others[:2]] == ["True", "True"]
    assert condition.statistics().value == 2
    with condition:
        condition.notify_all()
    assert [process.hear() for process in others[2:]] == ["True", "True"]


def test_a_wait_that_times_out(other):
    """It returns False with the lock held, and takes no later notify."""
    condition = sync.Condition(sync.Lock(shared=True), shared=True)
    with condition:
        assert condition.wait(0.02) is False
        assert condition.locked()
    far = other("with condition: say(condition.wait())", condition=condition)
    waiting(condition)
    with condition:
        condition.notify()
    assert far.hear() == "True"
    with condition:
        assert condition.wait_for(lambda: 0, timeout=0.02) == 0
        assert condition.wait_for(lambda: 7) == 7


def test_only_a_holder_waits_and_notifies():
    """Without the lock, wait and notify are RuntimeErrors; an RLock is given back entirely and taken as often."""
    condition = sync.Condition(shared=True)
    for use in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError, match="does not hold its lock"):
            use()
    with condition, condition:
        runner = Runner(notify, condition)
        assert condition.wait(10)
        assert condition._recursion_count() == 2 if hasattr(condition, "_recursion_count") else True
    runner.result()
    assert not condition.locked()
    with pytest.raises(UsageError, match="shared=True"):
        sync.Condition(threading.Lock(), shared=True)


def notify(condition):
    """One, with the lock."""
    with condition:
        condition.notify()


def test_killed_waiters_are_passed_over(other):
    """A notify goes to one that lives, though those before it were killed."""
    condition = sync.Condition(shared=True)
    dead = [other("with condition: condition.wait()", condition=condition) for _ in range(2)]
    waiting(condition, 2)
    far = other("with condition: say(condition.wait())", condition=condition)
    waiting(condition, 3)
    for process in dead:
        process.kill()
    with condition:
        condition.notify()
    assert far.hear() == "True"


def test_one_killed_after_it_was_told_hands_it_on(other):
    """kill -9 of a waiter that was notified and waits for the lock: the next one gets the notify, within slices."""
    condition = sync.Condition(shared=True)
    first = other("with condition: condition.wait()", condition=condition)
    waiting(condition)
    second = other("with condition: say(condition.wait())", condition=condition)
    waiting(condition, 2)
    with condition:
        condition.notify()
        first.kill()
    assert second.hear() == "True"


def test_a_killed_notifier_leaves_the_lock_to_the_waiters(other):
    """kill -9 of one that notified and holds the lock: the waiter has it, and is told by a warning."""
    condition = sync.Condition(shared=True)
    far = other("with condition: condition.wait()\n", condition=condition)
    waiting(condition)
    far.kill()
    notifier = other("hear(); condition.acquire(); condition.notify(); say(); hear()", condition=condition)

    def wait():
        with condition:
            return condition.wait()

    runner = Runner(wait)
    waiting(condition)
    notifier.tell()
    notifier.hear()
    with pytest.warns(RuntimeWarning, match="ended without releasing"):
        notifier.kill()
        assert runner.result() is True


@pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")
def test_a_wait_whose_lock_can_not_be_had_again(other):
    """Deadlock as the lock is taken again arrives as it is: the block knows that it doesn't hold the lock."""
    lock, outer = sync.Lock(name="inner", shared=True), sync.Lock(name="outer", shared=True)
    condition = sync.Condition(lock, shared=True)
    far = other(
        "hear()\nwith lock:\n    with outer: say('went on')",
        lock=lock,
        outer=outer,
        condition=condition,
    )

    def wait():
        with outer, condition:
            far.tell()
            condition.wait()

    runner = Runner(wait)
    waiting(condition)
    waiting(outer)
    condition._tell(1)  # as if it was notified when the other process had the lock
    with pytest.raises(Deadlock):
        runner.result()
    assert far.hear() == "went on"
    assert condition.statistics().value == 0


def test_ctrl_c_hands_a_notify_on(other):
    """A waiter that is interrupted as it is told: either it used the notify, or the next one gets it."""
    condition = sync.Condition(shared=True)
    real = turns.tell

    def tell(turn, what):
        real(turn, what)
        patch.undo()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    started = []

    def notifier():
        waiting(condition)
        started.append(other("with condition: say(condition.wait())", condition=condition))
        waiting(condition, 2)
        notify(condition)

    used = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "tell", tell)
        thread = threading.Thread(target=notifier)
        try:
            with condition:
                thread.start()
                used = condition.wait()
            thread.join()
        except KeyboardInterrupt:
            thread.join()
    if used:
        notify(condition)
    assert started[0].hear() == "True"
    until(lambda: not condition.locked(), "the other process has left its block")


# Barrier


def test_a_barrier_between_processes(other):
    """All parties go on together, each with a number of its own; the action ran once, before any went on."""
    barrier = sync.Barrier(3, name="b", shared=True)
    others = [other("for _ in range(3): say(barrier.wait())", barrier=barrier) for _ in range(2)]
    for _ in range(3):
        places = [barrier.wait(10), *(int(process.hear()) for process in others)]
        assert sorted(places) == [0, 1, 2]
    assert barrier.statistics() == sync.Statistics("b", True, None, (), 0)
    assert barrier.parties == 3
    assert not barrier.broken


def test_a_party_that_is_killed_breaks_it(other):
    """kill -9 of one that waits: the others get BrokenBarrierError, and so does who comes later, until reset."""
    barrier = sync.Barrier(3, shared=True)
    far = other("barrier.wait()", barrier=barrier)
    waiting(barrier)
    runner = Runner(barrier.wait)
    waiting(barrier, 2)
    far.kill()
    with pytest.raises(sync.BrokenBarrierError):
        runner.result()
    assert barrier.broken
    with pytest.raises(sync.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    again = [Runner(barrier.wait) for _ in range(3)]
    assert sorted(all_of(*again)) == [0, 1, 2]


def test_a_party_that_is_killed_in_the_action_breaks_it(other):
    """kill -9 of the party that runs the action, as others wait: BrokenBarrierError."""
    barrier = sync.Barrier(2, shared=True)
    runner = Runner(barrier.wait)
    waiting(barrier)
    far = other(
        "import time\ndef action(): say(); hear()\nbarrier._action = action\nbarrier.wait()",
        barrier=barrier,
    )
    far.hear()
    far.kill()
    with pytest.raises(sync.BrokenBarrierError):
        runner.result()


def test_a_death_in_the_middle_of_an_opening(other):
    """kill -9 of the last party as it lets the others go: those that it didn't come to go on as well."""
    barrier = sync.Barrier(3, shared=True)
    runners = [Runner(barrier.wait), Runner(barrier.wait)]
    waiting(barrier, 2)
    far = other(
        "from duodao.sync import turns\nreal = turns.tell\n"
        "def tell(*turn): real(*turn); say(); hear()\nturns.tell = tell\nbarrier.wait()",
        barrier=barrier,
    )
    far.hear()
    far.kill()
    assert sorted(all_of(*runners)) == [0, 1]
    assert not barrier.broken


def test_a_time_out_breaks_it(other):
    """wait(timeout) that is over, and abort(), give BrokenBarrierError in every process; reset to those that wait."""
    barrier = sync.Barrier(3, timeout=0.05, shared=True)
    source = """
    import threading
    try: barrier.wait(10); say('?')
    except threading.BrokenBarrierError: say('broken')
    """
    for act in (barrier.wait, barrier.abort, barrier.reset):
        far = other(source, barrier=barrier)
        waiting(barrier)
        try:
            act()
        except sync.BrokenBarrierError:
            assert act == barrier.wait
        assert far.hear() == "broken"
        assert barrier.broken == (act != barrier.reset)
        barrier.reset()
        assert not barrier.broken
    with pytest.raises(ValueError, match="parties"):
        sync.Barrier(0, shared=True)


# All of them


def makers():
    """One of each."""
    return [
        sync.Semaphore(0, name="it", shared=True),
        sync.BoundedSemaphore(0, name="it", shared=True),
        sync.Event(name="it", shared=True),
        sync.Condition(name="it", shared=True),
        sync.Barrier(2, name="it", shared=True),
    ]


def block(primitive):
    """Wait for it."""
    if isinstance(primitive, type(sync.Condition(shared=True))):
        with primitive:
            return primitive.wait()
    return (primitive.acquire if hasattr(primitive, "acquire") else primitive.wait)()


@pytest.mark.parametrize("index", range(5), ids=["semaphore", "bounded", "event", "condition", "barrier"])
def test_use_after_close(index):
    """Those that wait get Closed, as do all later uses, by name, and who receives it later."""
    primitive = makers()[index]
    data = pickle.dumps(primitive)
    runner = Runner(block, primitive)
    waiting(primitive)
    primitive.close()
    with pytest.raises(Closed, match="'it' was closed"):
        runner.result()
    with pytest.raises(Closed):
        block(primitive)
    with pytest.raises(Closed):
        primitive.statistics()
    with pytest.raises(Closed):
        pickle.loads(data)


@pytest.mark.parametrize("index", range(5), ids=["semaphore", "bounded", "event", "condition", "barrier"])
def test_ctrl_c_ends_a_wait(index):
    """Each wait is ended by Ctrl-C, and leaves nothing behind in the table or the graph."""
    primitive = makers()[index]
    main = threading.main_thread().ident

    def interrupt():
        waiting(primitive)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        block(primitive)
    thread.join()
    assert primitive.statistics().waiters == ()
    assert graph.waiting(main) is None


@pytest.mark.parametrize("index", range(5), ids=["semaphore", "bounded", "event", "condition", "barrier"])
def test_a_stalled_wait_can_be_ended(index):
    """A wait that anyone could end is in no circle, but `graph.doom` ends it."""
    primitive = makers()[index]
    assert primitive.resolvers() is None
    runner = Runner(block, primitive)
    until(lambda: graph.waiting(runner.ident), "it waits")
    graph.doom(graph.waiting(runner.ident), ZeroDivisionError("stalled"))
    with pytest.raises(ZeroDivisionError, match="stalled"):
        runner.result()


@pytest.mark.parametrize("index", range(5), ids=["semaphore", "bounded", "event", "condition", "barrier"])
def test_no_async_forms(index):
    """They are a TypeError that says what to use instead."""
    primitive = makers()[index]
    for use in (primitive.aacquire, primitive.await_, primitive.__aenter__):
        with pytest.raises(TypeError, match="has no async form"):
            use()


def test_they_reach_workers_that_run_already():
    """`duodao.map` over processes with an Event, a Semaphore and a Barrier in `common=`."""
    barrier, permits, event = sync.Barrier(2, shared=True), sync.Semaphore(2, shared=True), sync.Event(shared=True)
    event.set()

    def work(number, barrier, permits, event):
        with permits:
            return event.wait(10) and barrier.wait(10)

    common = {"barrier": barrier, "permits": permits, "event": event}
    assert sorted(duodao.map(work, range(2), lane="process", workers=2, common=common)) == [0, 1]


def test_handles_give_their_cells_back():
    """What was never sent is free with its last handle."""
    for _ in range(300):
        makers()
    gc.collect()
    assert len(cells._store.free[False]) + len(cells._store.fresh) > 0
    assert len({primitive.offset for _ in range(300) for primitive in makers()}) < 600


def test_elsewhere_the_error_says_what_is_missing(monkeypatch):
    """Where there are no futexes, shared=True is a UsageError that says so."""
    monkeypatch.setattr(robust._Home, "native", None)
    monkeypatch.setattr("sys.platform", "darwin")
    for make in (sync.Semaphore, sync.Event, sync.Condition):
        with pytest.raises(UsageError, match="no futexes"):
            make(shared=True)


def test_the_table_is_empty_in_the_end():
    """After all of this nobody stands in the table."""
    until(lambda: not list(table.get().entries()), "all have left")
