"""CPython's own tests of its executors, run on Pool by way of the drop-in's names, which are pools, thread and process.

On Python 3.11 they are one module, from 3.12 on a package. What is left out stands in `OUT`, each with its reason.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import logging
import multiprocessing
import sys
import unittest
import unittest.mock
import warnings
from typing import Any

import pytest
from tests.conftest import need_cpython

from duodao.dropin import futures as ours

NAMES = ("test_thread_pool", "test_process_pool", "test_shutdown", "test_init", "test_wait", "test_as_completed",
         "test_deadlock", "test_future", "executor", "util")  # fmt: skip


def modules() -> list[Any]:
    """CPython's test modules, as far as this Python has them."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("", *(f".{name}" for name in NAMES)):
            try:
                found.append(importlib.import_module(f"test.test_concurrent_futures{name}"))
            except (ImportError, unittest.SkipTest):  # distributions ship it apart; 3.11 has but one
                continue
    return found


MODULES = modules()

INSIDE = "it looks at attributes of CPython's implementation"
NAMED = "it makes the standard library's executor by its full name"
CONTEXT = "it needs semaphores or queues of multiprocessing as arguments, which only travel by inheritance there"
BREAKS = "it holds that a killed worker breaks the pool; ours goes on, as tests/faults/test_pool_faults.py holds"
OUT: dict[str, dict[str, str]] = {
    "ThreadPoolShutdownTest": {
        "test_threads_terminate": INSIDE,
        "test_context_manager_shutdown": NAMED,
        "test_del_shutdown": NAMED,
        "test_shutdown_no_wait": NAMED,
        "test_thread_names_assigned": NAMED,
        "test_thread_names_default": NAMED,
    },
    "ThreadPoolExecutorTest": {
        "test_saturation": INSIDE,
        "test_idle_thread_reuse": INSIDE,
        "test_hang_global_shutdown_lock": "forks with threads of the standard library's pool: nothing of ours",
    },
    "ProcessPoolExecutorTest": {
        "test_killed_child": BREAKS,
        "test_traceback": "the cause is errors.RemoteTraceback, not concurrent.futures' private class",
        "test_saturation": CONTEXT,
        "test_ressources_gced_in_workers": "it needs a Manager of multiprocessing, which trusts its own children only",
        "test_idle_process_reuse_one": INSIDE,
        "test_idle_process_reuse_multiple": INSIDE,
        "test_max_tasks_per_child": INSIDE,
        "test_max_tasks_per_child_defaults_to_spawn_context": INSIDE,
        "test_python_finalization_error": INSIDE,
        "test_max_workers_too_large": "for Windows",
    },
    "FutureTests": {
        "test_exception_with_success": "it ends a future through private fields, which nobody who waits hears of",
    },
    "ExecutorDeadlockTest": {
        "test_exit_during_result_pickle_on_worker": "a result that can't be pickled is NotPicklable",
        "test_shutdown_deadlock_pickle": INSIDE,
        "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": INSIDE,
    },
}
"""CPython's class -> tests left out: why."""


class Base(unittest.TestCase):
    """What CPython's mixins get from their ExecutorMixin."""

    worker_count = 5
    executor_kwargs: dict[str, Any] = {}
    executor_type: Any

    def setUp(self) -> None:
        super().setUp()
        self.executor = self.executor_type(max_workers=self.worker_count, **self.executor_kwargs)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        self.executor = None
        super().tearDown()

    def get_context(self) -> Any:
        """The drop-in takes any."""
        return multiprocessing.get_context("spawn")


class Threads(ours.ThreadPoolExecutor):
    """With what CPython's tests read of the pool's state."""

    __name__ = "ThreadPoolExecutor"
    _broken = property(lambda self: self._roster.broken)


class Processes(ours.ProcessPoolExecutor):
    """As Threads."""

    _broken = property(lambda self: self._roster.broken)


Threads.__name__, Processes.__name__ = "ThreadPoolExecutor", "ProcessPoolExecutor"
LANES: dict[str, Any] = {"thread": Threads, "process": Processes}
SUITES = {
    "ExecutorTest": ("thread", "process"),
    "ThreadPoolExecutorTest": ("thread",),
    "ProcessPoolExecutorTest": ("process",),
    "ExecutorShutdownTest": ("thread", "process"),
    "ThreadPoolShutdownTest": ("thread",),
    "InitializerMixin": ("thread", "process"),
    "FailingInitializerMixin": ("thread", "process"),
    "WaitTests": ("thread", "process"),
    "AsCompletedTests": ("thread", "process"),
    "ExecutorDeadlockTest": ("process",),
    "FutureTests": ("thread",),
}


def home(suite: str) -> Any:
    """The module that has this class; None where this Python has none."""
    return next((module for module in MODULES if hasattr(module, suite)), None)


@functools.cache
def suite_of(suite: str, lane: str) -> type[unittest.TestCase]:
    """CPython's class on our pool."""
    theirs = getattr(home(suite), suite)
    whole = any(base.__name__ == "ExecutorMixin" for base in theirs.__mro__)  # it makes and ends its executor
    bases = (theirs,) if issubclass(theirs, unittest.TestCase) else (theirs, unittest.TestCase if whole else Base)
    return type(f"{lane}{suite}", bases, {"executor_type": LANES[lane], "__module__": __name__})


def cases() -> list[Any]:
    found = []
    for suite, lanes in SUITES.items():
        if home(suite) is None:
            continue
        out = OUT.get(suite, {})
        for lane in lanes:
            names = unittest.TestLoader().getTestCaseNames(suite_of(suite, lane))
            found += [pytest.param(suite, lane, name, id=f"{lane}-{suite}-{name}") for name in names if name not in out]
    return found or [pytest.param("", "", "", id="not installed")]


@pytest.fixture
def names_of_ours(monkeypatch):
    """Programs that the tests start import our names."""
    module = home("ExecutorShutdownTest")
    original = getattr(module, "assert_python_ok", None)

    def start(*words: str, **options: Any) -> Any:
        return original(
            *(w.replace("from concurrent.futures import", "from duodao.dropin.futures import") for w in words)
        )

    if original is not None:
        monkeypatch.setattr(module, "assert_python_ok", start)


@pytest.fixture
def future_of_ours(monkeypatch):
    """Tests of futures make ours."""
    for module in MODULES:
        if module.__name__.rpartition(".")[2] in ("test_future", "util", "test_concurrent_futures"):
            monkeypatch.setattr(module, "Future", ours.Future, raising=False)


@pytest.mark.usefixtures("names_of_ours", "future_of_ours")
@pytest.mark.parametrize(("suite", "lane", "name"), cases())
def test_as_concurrent_futures(suite, lane, name):
    """What CPython holds of its executors holds of ours."""
    if not MODULES and sys.version_info < (3, 12):
        pytest.skip("builds of Python 3.11 leave out this part of the package")
    need_cpython(MODULES)
    result = unittest.TestResult()
    with unittest.mock.patch.object(logging.root, "handlers", []):  # without pytest's, what is logged goes to stderr
        suite_of(suite, lane)(name).run(result)
    assert result.testsRun == 1
    assert not [text for _, text in result.errors + result.failures], (result.errors + result.failures)[0][1]


def test_it_is_an_executor():
    """A pool is the standard library's Executor, its futures are the standard library's futures."""
    with ours.ThreadPoolExecutor(1) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert isinstance(pool.submit(int), concurrent.futures.Future)
