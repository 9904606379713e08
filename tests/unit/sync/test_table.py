"""Circles of waits through several processes: found, broken once, and never seen where there is none."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest
from meeting import Runner, all_of
from other_process import until

from duodao import sync
from duodao.errors import Deadlock
from duodao.sync import graph, lot, table

pytestmark = pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")  # inversions are what this is about

MEET = """
from duodao.errors import Deadlock
def meet(first, second):
    try:
        with first:
            say('has'); hear()
            with second: pass
        say('went on')
    except Deadlock as error:
        say(error.cycle); say(error.stacks); say(str(error).count('--- '))
"""


def shared(*names):
    """Shared locks of these names."""
    return [sync.Lock(name=name, shared=True) for name in names]


def waiting(lock, count=1):
    """Until so many wait for the lock, where all processes can see it."""
    until(lambda: len(lock.statistics().waiters) >= count, f"{count} wait for {lock.name}")


def told(process):
    """What a process that ran `meet` says: "went on", or the cycle and the stacks of its Deadlock."""
    line = process.hear()
    return line if line == "went on" else (eval(line), eval(process.hear()), int(process.hear()))


def test_two_processes_that_wait_for_each_other(other):
    """One of them gets Deadlock, with the names of both locks, both holders and both stacks; the other goes on."""
    plate, chopsticks = shared("plate", "chopsticks")
    a = other(MEET + "meet(plate, chopsticks)", plate=plate, chopsticks=chopsticks)
    b = other(MEET + "meet(chopsticks, plate)", plate=plate, chopsticks=chopsticks)
    for process in (a, b):
        assert process.hear() == "has"
    for process in (a, b):
        process.tell()
    results = [told(a), told(b)]
    assert results.count("went on") == 1
    cycle, stacks, shown = next(result for result in results if result != "went on")
    text = "; ".join(cycle)
    for word in ("waits for Lock 'plate', held by", "waits for Lock 'chopsticks', held by", "thread 'MainThread'"):
        assert word in text
    assert f"process {a.pid}" in text or f"process {b.pid}" in text
    assert [frames[-1][2] for _, frames in stacks] == ["meet", "meet"]
    assert shown == 2


@pytest.mark.parametrize("size", [3, 4, 8])
def test_rings_of_processes(other, size):
    """A ring of 3 to 8 processes, each of which waits for the next one's lock: one gives way, the others go on."""
    ring = shared(*map(str, range(size)))
    others = [other(MEET + "meet(first, second)", first=ring[n], second=ring[(n + 1) % size]) for n in range(1, size)]
    for process in others:
        assert process.hear() == "has"
    for number, process in enumerate(others[:-1]):
        process.tell()
        waiting(ring[number + 2])
    with ring[0]:
        others[-1].tell()
        waiting(ring[0])
        cycles = []
        try:
            with ring[1]:
                pass
        except Deadlock as error:
            cycles.append(error.cycle)
    said = [told(process) for process in others]  # one of them may have looked first
    cycles += [cycle for cycle, *_ in (result for result in said if result != "went on")]
    assert [len(cycle) for cycle in cycles] == [size]


def test_at_the_same_instant_one_gives_way(other):
    """Two processes that close the circle at once: every time exactly one gets Deadlock, and both finish."""
    plate, chopsticks = shared("plate", "chopsticks")
    gate = sync.Barrier(2, shared=True)
    source = """
    from duodao.errors import Deadlock
    lost = 0
    for _ in range(40):
        gate.wait()
        try:
            with first:
                gate.wait()
                with second: pass
        except Deadlock:
            lost += 1
    say(lost)
    """
    a = other(source, first=plate, second=chopsticks, gate=gate)
    b = other(source, first=chopsticks, second=plate, gate=gate)
    assert int(a.hear(60)) + int(b.hear(60)) == 40


def test_threads_of_one_process_too():
    """Threads that share locks in one process are found as those of several; RLocks as Locks."""
    plate, chopsticks = sync.RLock(name="plate", shared=True), sync.Lock(name="chopsticks", shared=True)
    both = threading.Barrier(2)

    def meet(first, second):
        try:
            with first:
                both.wait()
                with second:
                    return "went on"
        except Deadlock as error:
            return str(error)

    results = all_of(Runner(meet, plate, chopsticks), Runner(meet, chopsticks, plate))
    assert results.count("went on") == 1
    text = next(result for result in results if result != "went on")
    assert "RLock 'plate'" in text
    assert "Lock 'chopsticks'" in text


HYBRID = ("far", "holder of both", "stranger")


@pytest.mark.parametrize("last", HYBRID)
def test_a_circle_through_a_lock_of_one_process(other, last):
    """Two processes and three locks, of which one is local: found whoever closes the circle.

    far: has `theirs`, waits for `ours`. holder of both: has `ours`, waits for `local`. stranger: has `local`, waits for
    `theirs`.
    """
    ours, theirs = shared("ours", "theirs")
    local = sync.Lock(name="local")
    far = other(MEET + "meet(theirs, ours)", ours=ours, theirs=theirs)
    assert far.hear() == "has"
    gates = {name: threading.Event() for name in HYBRID}
    have = threading.Barrier(3)

    def meet(name, first, second):
        try:
            with first:
                have.wait(10)
                gates[name].wait(10)
                with second:
                    return "went on"
        except Deadlock as error:
            return error

    a = Runner(meet, "holder of both", ours, local)
    b = Runner(meet, "stranger", local, theirs)
    have.wait(10)
    steps = {
        "far": (far.tell, lambda: waiting(ours)),
        "holder of both": (gates["holder of both"].set, lambda: until(lambda: graph.waiting(a.ident), "it waits")),
        "stranger": (gates["stranger"].set, lambda: waiting(theirs)),
    }
    for name in [*(name for name in HYBRID if name != last), last]:
        steps[name][0]()
        if name != last:
            steps[name][1]()
    results = [a.result(), b.result(), told(far)]
    assert len([result for result in results if result != "went on"]) == 1


class End:
    """The end of a process, as a thing that is waited for."""

    def __init__(self, child):
        self.child = child

    def resolvers(self):
        return (graph.Far(self.child.pid),)

    def describe(self):
        return "the end of the child"


@pytest.mark.parametrize("last", ["parent", "child"])
def test_a_circle_through_the_end_of_a_process(other, last):
    """Who holds a lock and waits for a process that waits for that lock: one of the two gets Deadlock."""
    (lock,) = shared("lock")
    child = other(
        "from duodao.errors import Deadlock\nhear()\n"
        "try: lock.acquire(); lock.release(); say('went on')\nexcept Deadlock as error: say(error)",
        lock=lock,
    )
    parked = lot.deque()

    def ended(_child):
        lot.wake_all(parked)

    child.child.on_exit(ended)

    def join():
        return lot.wait(End(child.child), parked, lambda: child.child.exitcode is not None)

    def hold_and_join():
        with lock:
            held.set()
            if last == "parent":
                waiting(lock)
            try:
                join()
            except Deadlock as error:
                return str(error)
        return "went on"

    held = threading.Event()
    parent = Runner(hold_and_join)
    assert held.wait(10)
    if last == "child":
        until(lambda: any(entry.kind == table.THREAD for entry in table.get().entries()), "the summary stands")
    child.tell()
    said, result = child.hear(), parent.result()
    assert [said, result].count("went on") == 1
    assert "the end of the child" in said + result
    assert "Lock 'lock'" in said + result


def test_waits_with_a_time_out_are_never_broken(other):
    """A circle in which one waits with a time-out ends by that: no Deadlock, the timed one gets False."""
    plate, chopsticks = shared("plate", "chopsticks")
    far = other(MEET + "meet(chopsticks, plate)", plate=plate, chopsticks=chopsticks)
    assert far.hear() == "has"
    with plate:
        far.tell()
        waiting(plate)
        assert chopsticks.acquire(timeout=0.3) is False
    assert told(far) == "went on"


def test_no_alarm_where_nobody_waits_in_a_circle(other):
    """A chain of waits whose end runs is none: the waiters wait on through several checks, then go on in order."""
    first, second = shared("first", "second")
    slow = other("with lock: say(); hear()", lock=second)
    slow.hear()
    middle = other(MEET + "meet(first, second)", first=first, second=second)
    assert middle.hear() == "has"
    middle.tell()
    waiting(second)
    with counted() as checks:
        last = Runner(lambda: first.acquire() and first.release())
        until(lambda: len(checks) >= 4, "it looks for circles")
        assert last.is_alive()
        slow.tell()
        last.result()
    assert told(middle) == "went on"


def test_a_stale_summary_is_no_circle(other):
    """A summary of a process that is stopped isn't renewed: its circle is not believed until it runs again."""
    (ours,) = shared("ours")
    source = """
    import threading
    from duodao import sync
    from duodao.errors import Deadlock
    local, theirs_held = sync.Lock(name='local'), threading.Event()
    def stranger():
        with local:
            theirs_held.set()
            try:
                with theirs: pass
            except Deadlock: say('stranger gave way')
    with ours:
        thread = threading.Thread(target=stranger)
        hear()
        thread.start(); theirs_held.wait()
        say('has')
        try:
            with local: pass
        except Deadlock: say('holder gave way')
    thread.join()
    say('done')
    """
    (theirs,) = shared("theirs")
    far = other(source, ours=ours, theirs=theirs)
    has, go = threading.Event(), threading.Event()

    def near():
        try:
            with theirs:
                has.set()
                go.wait(10)
                with ours:
                    return "went on"
        except Deadlock:
            return "gave way"

    with counted() as checks:
        runner = Runner(near)
        assert has.wait(10)
        far.tell()
        assert far.hear() == "has"
        until(lambda: any(entry.kind == table.THREAD for entry in table.get().entries()), "the summary stands")
        waiting(theirs)
        os.kill(far.pid, signal.SIGSTOP)
        try:
            go.set()
            waiting(ours)
            del checks[:]
            until(lambda: len(checks) >= 3, "it looks for circles")
            assert runner.is_alive()
        finally:
            os.kill(far.pid, signal.SIGCONT)
        said = [far.hear()]
        if said != ["done"]:
            said.append(far.hear())
        assert said[-1] == "done"
        assert [runner.result(), *said].count("went on") == len(said) - 1


@contextlib.contextmanager
def counted():
    """A list that grows by one whenever a thread of this process looks for circles."""
    checks = []
    real = table.Table.check

    def check(self, line, wait, *patience):
        checks.append(1)
        return real(self, line, wait, *patience)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table.Table, "check", check)
        yield checks


def test_a_doomed_wait_ends(other):
    """`graph.doom` ends a wait for a shared lock too, within a slice."""
    (lock,) = shared("lock")
    holder = other("with lock: say(); hear()", lock=lock)
    holder.hear()
    runner = Runner(lock.acquire)
    until(lambda: graph.waiting(runner.ident), "it waits")
    graph.doom(graph.waiting(runner.ident), ZeroDivisionError("doomed"))
    with pytest.raises(ZeroDivisionError, match="doomed"):
        runner.result()
    assert lock.statistics().waiters == ()


def test_a_waiter_that_is_killed_is_in_no_circle(other):
    """The line of a killed waiter is not read: who comes to wait for what it held gets OwnerDied, no Deadlock."""
    plate, chopsticks = shared("plate", "chopsticks")
    far = other(MEET + "meet(chopsticks, plate)", plate=plate, chopsticks=chopsticks)
    assert far.hear() == "has"
    with plate:
        far.tell()
        waiting(plate)
        far.kill()
        with pytest.warns(RuntimeWarning), chopsticks as got:
            assert got.holder == f"process {far.pid}"
