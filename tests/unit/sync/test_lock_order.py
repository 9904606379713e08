"""Lock order: what could deadlock is reported, once, with both stacks, though it never did."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings

import pytest
from tests.unit.sync.meeting import Runner

from duodao.sync import Condition, Lock, LockOrderWarning, RLock, locks
from duodao.sync.order import ORDER, Order

GATE = "gate"


@pytest.fixture
def kinds():
    """Lock and RLock that report to an order of their own."""
    order = Order()

    class OurLock(plain(Lock)):
        pass

    class OurRLock(plain(RLock)):
        pass

    order.watch(OurLock)
    order.watch(OurRLock)
    return OurLock, OurRLock


def plain(kind):
    """The class without what DUODAO_LOCKDEP=1, as in our test runs, has wrapped."""

    def unwrapped(name):
        method = getattr(kind, name)
        return getattr(method, "__wrapped__", method)

    return type(kind.__name__, (kind,), {
        name: unwrapped(name)
        for name in ("acquire", "release", "__enter__", "__exit__", "aacquire", "__aenter__", "__aexit__",
                     "_release_save", "_acquire_restore", "_aacquire_restore")
    })  # fmt: skip


def nest(*wanted):
    """Take them, one inside the other; the warnings that this gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def enter(rest):
            if rest:
                with rest[0]:
                    enter(rest[1:])

        enter(wanted)
    return [str(each.message) for each in caught if issubclass(each.category, LockOrderWarning)]


def test_an_inversion_is_reported_once(kinds):
    """The second order is reported as it is taken, with who, what and where of both, and then no more."""
    a, b = kinds[0](name="a"), kinds[0](name="b")
    assert not nest(a, b)
    (text,) = Runner(nest, b, a, name="second").result()
    assert "Lock 'b' is held and Lock 'a' taken here" in text
    assert "thread 'second' took Lock 'a' while it held Lock 'b'" in text
    assert "thread 'MainThread' took Lock 'b' while it held Lock 'a'" in text
    assert text.count(__file__) >= 2
    assert not nest(b, a)
    assert not nest(a, b)


def test_through_three_locks(kinds):
    """a before b, b before c, c before a: no two contradict each other, the three do. Strictly one after the other."""
    a, b, c = (kinds[0](name=name) for name in "abc")
    assert not nest(a, b)
    assert not nest(b, c)
    (text,) = nest(c, a)
    assert text.count("---") == 3


def test_what_counts_is_the_place_where_they_were_made(kinds):
    """Locks without a name are of one class with all that were made on that line."""

    one = [kinds[0]() for _ in range(3)]
    other = [kinds[0]() for _ in range(3)]
    assert not nest(one[0], other[0])
    assert nest(other[2], one[1])


def test_an_inversion_of_tasks(kinds):
    """Tasks are held to it as threads are, and to one order with them."""
    a, b = kinds[0](name="a"), kinds[1](name="b")

    async def main():
        async with b, a:
            pass

    assert not nest(a, b)
    with pytest.warns(LockOrderWarning, match="task 'Task-"):
        asyncio.run(main())
    assert not a.locked()
    assert not b.locked()


def test_a_gate_is_silent(kinds):
    """Two orders that are only ever taken under one common lock exclude each other; without it they don't."""
    gate, a, b = (kinds[0](name=name) for name in ("gate", "a", "b"))
    assert not nest(gate, a, b)
    assert not nest(gate, b, a)
    assert nest(a, b)


def test_two_gates_are_none(kinds):
    """Different gates of one class don't exclude each other."""
    one, two, a, b = (kinds[0](name=name) for name in (GATE, GATE, "a", "b"))
    assert not nest(one, a, b)
    assert nest(two, b, a)


def test_locks_of_one_class_in_one_order(kinds):
    """Nested locks of one class are silent in the order of their making, that of `locks()`; both orders are not."""
    accounts = [kinds[0](name="account") for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with locks(accounts[2], accounts[0]):
            pass
        with locks(accounts[1], accounts[2], accounts[0]):
            pass
    assert not nest(accounts[0], accounts[2])
    assert nest(accounts[2], accounts[1])


def test_taking_an_rlock_again_is_no_order(kinds):
    """An RLock that is held already is not waited for."""
    a, b = kinds[1](name="a"), kinds[1](name="b")
    assert not nest(a, b, a)
    assert not nest(a, b)


def test_a_try_and_a_time_out_are_silent(kinds):
    """What ends by itself closes no circle; what it took counts as held."""
    a, b, c = (kinds[0](name=name) for name in "abc")
    assert not nest(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with b:
            assert a.acquire(False)
            a.release()
            assert a.acquire(timeout=1)
            a.release()
        assert c.acquire(False)
        with a:
            pass
        c.release()
    assert nest(a, c)


def test_a_condition_gives_its_lock_back_while_it_waits(kinds):
    """What is taken while a Condition waits is not taken under its lock."""
    condition = Condition(kinds[1](name="door"))
    with condition, condition:
        assert condition.wait(0.01) is False
        with pytest.raises(RuntimeError):
            Condition(kinds[0]()).wait()
    assert not condition.locked()

    async def main():
        async with condition:
            assert await condition.await_(0.01) is False

    asyncio.run(main())
    a = kinds[0](name="a")
    assert not nest(a, condition._lock)
    assert nest(condition._lock, a)


def test_a_warning_that_is_an_error_takes_nothing(kinds):
    """It is raised before the wait: neither lock is left held."""
    a, b = kinds[0](name="a"), kinds[0](name="b")
    assert not nest(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LockOrderWarning), b, a:
            pass
    assert not a.locked()
    assert not b.locked()


def test_a_lock_that_is_dropped_while_held_is_held_no_more(kinds):
    """A lock that nobody knows any more orders nothing, and is not kept alive."""
    a = kinds[0](name="a")
    a.acquire()
    b = kinds[0](name="b")
    del a
    gc.collect()
    assert not nest(b)
    assert not nest(kinds[0](name="a"), b)


def run(program, **environ):
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


PROGRAM = """
import sys
from duodao.sync import Lock
a, b = Lock(name="a"), Lock(name="b")
with a, b:
    pass
with b, a:
    pass
print("duodao.sync.order" in sys.modules)
"""


def test_off_it_costs_nothing():
    """Without DUODAO_LOCKDEP=1 not even the module is loaded; with it a program says what it has to say."""
    off, on = run(PROGRAM, DUODAO_LOCKDEP="0"), run(PROGRAM, DUODAO_LOCKDEP="1")
    assert (off.stdout, off.stderr) == ("False\n", "")
    assert on.stdout == "True\n"
    assert "<string>:7: LockOrderWarning: lock order inversion: Lock 'b' is held and Lock 'a' taken" in on.stderr


def test_our_own_test_runs_have_it_on():
    """In this very run our locks report to the program's order."""
    if os.environ.get("DUODAO_LOCKDEP") != "1":
        pytest.skip("switched off by DUODAO_LOCKDEP")
    lock = Lock(name="plate")
    with lock:
        assert ORDER.times(lock, threading.get_ident()) == 1
    assert ORDER.times(lock, threading.get_ident()) == 0
