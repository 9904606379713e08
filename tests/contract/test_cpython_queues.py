"""CPython's own tests of its queues, run on ours, on whichever Python this is: duodao.Queue in memory, in all three
orders, and duodao.dropin.queue in the place of the module."""

from __future__ import annotations

import functools
import importlib
import queue
import unittest
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import need_cpython

from duodao.channel.memory import MemoryQueue
from duodao.dropin import queue as dropin
from duodao.errors import ShutDown

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suites: Any = importlib.import_module("test.test_queue")
except ImportError:  # distributions ship it apart
    suites = None


def ordered(order):
    """A class as `queue` has them: of one order, and by the name that CPython's tests look at."""

    def start(self, maxsize=0):
        MemoryQueue.__init__(self, maxsize, order=order)

    name = {"fifo": "Queue", "lifo": "LifoQueue", "priority": "PriorityQueue"}[order]
    return type(name, (MemoryQueue,), {"__init__": start})


OURS = SimpleNamespace(
    Queue=ordered("fifo"), LifoQueue=ordered("lifo"), PriorityQueue=ordered("priority"),
    Empty=queue.Empty, Full=queue.Full, ShutDown=ShutDown,
)  # fmt: skip
SUITES = ("QueueTest", "LifoQueueTest", "PriorityQueueTest", "FailingQueueTest")
MODULES = {"ours": (OURS, SUITES), "dropin": (dropin, (*SUITES, "CSimpleQueueTest"))}


def cases():
    if suites is None:
        return [pytest.param("", "", "", id="not installed")]
    loader = unittest.TestLoader()
    return [
        (module, suite, name)
        for module, (_, names) in MODULES.items()
        for suite in names
        for name in loader.getTestCaseNames(getattr(suites, suite))
    ]


@functools.cache
def suite_of(module, suite):
    base = getattr(suites, suite)
    bases = (base,) if issubclass(base, unittest.TestCase) else (base, unittest.TestCase)
    return type(f"Our{suite}", bases, {"queue": MODULES[module][0]})


@pytest.mark.parametrize(("module", "suite", "name"), cases())
def test_as_queue(module, suite, name):
    """What CPython holds of its queues holds of ours."""
    need_cpython(suites is not None)
    result = unittest.TestResult()
    suite_of(module, suite)(name).run(result)
    assert result.testsRun == 1
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
