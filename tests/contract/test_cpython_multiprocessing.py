"""CPython's own tests of `multiprocessing` on the drop-in: only their import lines are changed.

Left out, each with its reason, are tests of what the drop-in refuses (servers, descriptors in queues) or does otherwise
on purpose, and of the library's insides.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import moved_multiprocessing as moved
import pytest
from tests.conftest import need_cpython

_folder = tempfile.TemporaryDirectory(prefix="duodao-tests-")
standard = moved.load(Path(_folder.name))

EXECUTABLE = "processes are forked from a server: there is no executable to choose"
SERVER = "kills the library's own fork server; tests/unit/children hold what happens when ours is killed"
ORPHAN = "a process of ours ends with its parent, so it can't see that it has ended"
FEEDER = "put() pickles at once and raises: there is no feeder thread that could only print the error"
INSIDES = "looks at the pool's list of processes; tests/unit/dropin holds what it is about"
BY_VALUE = "the result is a lambda, which travels here; tests/unit/dropin holds what can't"

KINDS: dict[str, dict[str, str]] = {
    "Process": {
        "test_forkserver_sigint": SERVER,
        "test_forkserver_sigkill": SERVER,
        "test_parent_process": ORPHAN,
        "test_set_executable": EXECUTABLE,
    },
    "SubclassingProcess": {},
    "Queue": {
        "test_closed_queue_empty_exceptions": "a queue is closed after close(), whether it was used before or not",
        "test_queue_feeder_donot_stop_onexc": FEEDER,
        "test_queue_feeder_on_queue_feeder_error": FEEDER,
    },
    "Lock": {},
    "Semaphore": {},
    "Condition": {},
    "Event": {},
    "Barrier": {},
    "Value": {},
    "Array": {},
    "SharedCTypes": {},
    "Containers": {},
    "Pool": {
        "test_make_pool": INSIDES,
    },
    "PoolWorkerErrors": {
        "test_unpickleable_result": BY_VALUE,
    },
    "PoolWorkerLifetime": {
        "test_pool_worker_lifetime": INSIDES,
    },
    "Connection": {},
    "Poll": {},
    "PollEintr": {},
    "SimpleQueue": {
        "test_closed": "looks at its pipe",
    },
    "Wait": {},
    "IgnoreEINTR": {},
    "Initializers": {
        "test_manager_initializer": "a manager has no process: tests/unit/dropin",
        "test_pool_initializer": "counts initializers of a pool that gets no call: workers are made for calls",
    },
}
"""CPython's test class, without `_Test` or `Test` -> tests left out: why."""


def cases() -> list[Any]:
    if standard is None:
        return [pytest.param("", "", id="not installed")]
    found = []
    for kind, out in KINDS.items():
        names = unittest.TestLoader().getTestCaseNames(getattr(standard, f"Our{kind}"))
        found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names if name not in out]
    return found


@pytest.mark.parametrize(("kind", "name"), cases())
def test_as_multiprocessing(kind, name):
    """What CPython holds of its processes, queues and pools holds of ours."""
    need_cpython(standard)
    result = unittest.TestResult()
    unittest.TestSuite([getattr(standard, f"Our{kind}")(name)]).run(result)
    for _, text in [*result.failures, *result.errors]:
        raise AssertionError(text)
