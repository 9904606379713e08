"""CPython's own tests of `threading`, on `duodao.dropin.threading`: only their import lines are changed.

Its lock tests run in test_cpython_locks.py. Left out, each with its reason, are tests of the library's insides.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import moved_threading as moved
import pytest
from tests.conftest import need_cpython

_folder = tempfile.TemporaryDirectory(prefix="duodao-tests-")
standard = moved.load(Path(_folder.name))

INSIDES = "replaces a private function of the module"

KINDS: dict[str, dict[str, str]] = {
    "ThreadTests": {
        "test_disallow_instantiation": "the class of locks can be made here",
        "test_foreign_thread": "a Lock is released by its holder only",
        "test_limbo_cleanup": INSIDES,
        "test_lock_no_subclass": "a class may be derived from Lock here",
        "test_name": f"{INSIDES}; tests/unit/dropin holds the names",
    },
    "ThreadJoinOnShutdown": {},
    "ThreadingExceptionTests": {},
    "ExceptHookTests": {},
    "TimerTests": {},
    "InterruptMainTests": {},
    "AtexitTests": {},
}
"""CPython's test class -> tests left out: why."""


def cases() -> list[Any]:
    if standard is None:
        return [pytest.param("", "", id="not installed")]
    found = []
    for kind, out in KINDS.items():
        case = getattr(standard, kind, None)
        if case is not None and issubclass(case, unittest.TestCase):
            names = unittest.TestLoader().getTestCaseNames(case)
            found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names if name not in out]
    return found


@pytest.mark.leaves("threads")  # daemons, on purpose
@pytest.mark.parametrize(("kind", "name"), cases())
def test_as_threading(kind, name):
    """What CPython holds of its threads holds of ours."""
    need_cpython(standard)
    result = unittest.TestResult()
    unittest.TestSuite([getattr(standard, kind)(name)]).run(result)
    for _, text in [*result.failures, *result.errors]:
        raise AssertionError(text)
