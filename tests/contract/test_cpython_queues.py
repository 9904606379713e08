"""CPython's own tests of queue.Queue, run on ours, on whichever Python this is: in memory, in all three orders."""

from __future__ import annotations

import functools
import importlib
import queue
import unittest
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from duodao.channel.memory import MemoryQueue
from duodao.errors import ShutDown
from tests.conftest import need

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


def cases():
    if suites is None:
        return [pytest.param("", "", id="not installed")]
    loader = unittest.TestLoader()
    return [(suite, name) for suite in SUITES for name in loader.getTestCaseNames(getattr(suites, suite))]


@functools.cache
def suite_of(suite):
    return type(f"Our{suite}", (getattr(suites, suite), unittest.TestCase), {"queue": OURS})


@pytest.mark.parametrize(("suite", "name"), cases())
def test_as_queue(suite, name):
    """What CPython holds of its queues holds of ours."""
    need(suites is not None, "CPython's `test` package")
    result = unittest.TestResult()
    suite_of(suite)(name).run(result)
    assert result.testsRun == 1
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
