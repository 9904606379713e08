"""CPython's own tests of `multiprocessing`, moved to `duodao.dropin.multiprocessing` by changing their import lines.

Left out, each with its reason, are tests of what the drop-in refuses (servers, descriptors in queues) or does differently
on purpose, and of the library's insides.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import moved_multiprocessing as moved
import pytest

from duodao.dropin import multiprocessing as ours
from duodao.dropin.multiprocessing import connection
from tests.conftest import need

_folder = tempfile.TemporaryDirectory(prefix="duodao-tests-")
standard = moved.load(Path(_folder.name))

NAMES = (
    "active_children", "Array", "Barrier", "BoundedSemaphore", "Condition", "current_process", "Event", "JoinableQueue",
    "Lock", "parent_process", "Pipe", "Pool", "Queue", "RawArray", "RawValue", "RLock", "Semaphore", "set_executable",
    "Value",
)  # fmt: skip

EXECUTABLE = "processes are forked from a server: there is no executable to choose"

KINDS: dict[str, dict[str, str]] = {
    "Process": {
        "test_set_executable": EXECUTABLE,
    },
    "SubclassingProcess": {},
    "Queue": {},
    "Lock": {},
    "Semaphore": {},
    "Condition": {},
    "Event": {},
    "Barrier": {},
    "Value": {},
    "Array": {},
    "Pool": {},
    "Connection": {},
    "Poll": {},
}
"""CPython's test class, without `_Test` -> tests left out: why."""


class Attribute:
    """A name of the drop-in, loaded when a test uses it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, case: object, kind: type) -> Any:
        return getattr(ours, self.name)


def cases() -> list[Any]:
    if standard is None:
        return [pytest.param("", "", id="not installed")]
    found = []
    for kind, out in KINDS.items():
        names = unittest.TestLoader().getTestCaseNames(getattr(standard, f"_Test{kind}"))
        found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names if name not in out]
    return found


def case_of(kind: str) -> type[unittest.TestCase]:
    """CPython's tests with what they test."""
    mixin = {"TYPE": "processes", "connection": connection, "Process": ours.Process, "__module__": __name__}
    mixin.update({name: Attribute(name) for name in NAMES})
    return type(f"Our{kind}", (getattr(standard, f"_Test{kind}"), unittest.TestCase), mixin)


@pytest.mark.parametrize(("kind", "name"), cases())
def test_as_multiprocessing(kind, name):
    """What CPython holds of its processes, queues and pools holds of ours."""
    need(standard, "Python's own test package")
    result = unittest.TestResult()
    unittest.TestSuite([case_of(kind)(name)]).run(result)
    for _, text in [*result.failures, *result.errors]:
        raise AssertionError(text)
