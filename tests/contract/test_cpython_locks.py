"""CPython's own tests of its locks, run on ours, on whichever Python this is.

Left out are only those of the two deliberate differences: a Lock is released by its holder only, and waiting without
a time-out for a Lock that one holds oneself is an error. `KINDS` says what stands for what; the shared kinds are added
by a line each.
"""

from __future__ import annotations

import functools
import importlib
import unittest
import warnings
from typing import Any

import pytest
from tests.conftest import need_cpython

from duodao import sync

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suites: Any = importlib.import_module("test.lock_tests")
except ImportError:  # distributions ship it apart
    suites = None

BY_ANOTHER = "a Lock is released by its holder only"
OWN = "waiting for one's own Lock is Deadlock at once, where threading hangs"
ALIEN = "a shared Condition needs a shared lock"
NOT_OURS = "a lock that processes share is not made anew in a forked copy: it is the original's, too"
PRIVATE = "Condition has no _recursion_count, as in threading: CPython skips it there as well"


def between(kind: Any) -> Any:
    """The kind that processes share."""
    return functools.partial(kind, shared=True)


KINDS: dict[str, tuple[str, str, Any, dict[str, str]]] = {
    "Lock": ("LockTests", "locktype", sync.Lock, {
        "test_different_thread": BY_ANOTHER,
        "test_reacquire": f"{OWN}; {BY_ANOTHER}",
    }),
    "RLock": ("RLockTests", "locktype", sync.RLock, {}),
    "Event": ("EventTests", "eventtype", sync.Event, {}),
    "Condition": ("ConditionTests", "condtype", sync.Condition, {}),
    "Condition as RLock": ("RLockTests", "locktype", sync.Condition, {"test_recursion_count": PRIVATE}),
    "Condition of a Lock": ("ConditionTests", "condtype", lambda lock=None: sync.Condition(lock or sync.Lock()), {
        "test_acquire": OWN,
    }),
    "Semaphore": ("SemaphoreTests", "semtype", sync.Semaphore, {}),
    "BoundedSemaphore": ("BoundedSemaphoreTests", "semtype", sync.BoundedSemaphore, {}),
    "Barrier": ("BarrierTests", "barriertype", sync.Barrier, {}),
    "shared Lock": ("LockTests", "locktype", between(sync.Lock), {
        "test_different_thread": BY_ANOTHER,
        "test_reacquire": f"{OWN}; {BY_ANOTHER}",
        "test_at_fork_reinit": NOT_OURS,
    }),
    "shared RLock": ("RLockTests", "locktype", between(sync.RLock), {}),
    "shared Event": ("EventTests", "eventtype", between(sync.Event), {"test_at_fork_reinit": NOT_OURS}),
    "shared Condition": ("ConditionTests", "condtype", between(sync.Condition), {"test_acquire": ALIEN}),
    "shared Condition as RLock": ("RLockTests", "locktype", between(sync.Condition), {
        "test_recursion_count": PRIVATE,
    }),
    "shared Semaphore": ("SemaphoreTests", "semtype", between(sync.Semaphore), {}),
    "shared BoundedSemaphore": ("BoundedSemaphoreTests", "semtype", between(sync.BoundedSemaphore), {}),
    "shared Barrier": ("BarrierTests", "barriertype", between(sync.Barrier), {}),
}  # fmt: skip
"""What it is called here -> CPython's suite, the attribute that names the tested type, ours, tests left out: why."""


def cases() -> list[Any]:
    if suites is None:
        return [pytest.param("", "", id="not installed")]
    found = []
    for kind, (suite, _, _, out) in KINDS.items():
        names = unittest.TestLoader().getTestCaseNames(getattr(suites, suite))
        assert out.keys() <= {*names} | {"test_recursion_count"}, f"{kind}: no such test to leave out"
        found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names if name not in out]
    return found


@functools.cache
def suite_of(kind: str) -> type[unittest.TestCase]:
    suite, attribute, ours, _ = KINDS[kind]
    return type(f"Our{kind.title().replace(' ', '')}", (getattr(suites, suite),), {attribute: staticmethod(ours)})


@pytest.mark.parametrize(("kind", "name"), cases())
def test_as_threading(kind, name):
    """What CPython holds of its lock types holds of ours."""
    need_cpython(suites is not None)
    result = unittest.TestResult()
    suite_of(kind)(name).run(result)
    assert result.testsRun == 1
    assert not [text for _, text in result.errors + result.failures], (result.errors + result.failures)[0][1]
