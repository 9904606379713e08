"""`concurrent.futures` on Duodao's pools: `from duodao.dropin import futures`; the rest of a program stays as it is.

What differs is what would have hung or broken. Calls that wait for calls of their own pool run, or raise
`duodao.errors.Deadlock`. A killed worker process fails the one call in it, with an error that is a BrokenProcessPool
and a `duodao.errors.WorkerDied`; the pool goes on. Lambdas, closures and functions of `__main__` reach processes.
Source: M30, M31; https://docs.python.org/3/library/concurrent.futures.html
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

from duodao.errors import NotPicklable, RemoteError, WorkerDied
from duodao.pipeline.future import Future
from duodao.pipeline.pool import Pool
from duodao.pipeline.roster import InitializerFailed

__all__ = [
    "ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION", "BrokenExecutor", "BrokenProcessPool", "BrokenThreadPool",
    "CancelledError", "Executor", "Future", "InvalidStateError", "ProcessPoolExecutor", "ThreadPoolExecutor",
    "TimeoutError", "as_completed", "wait",
]  # fmt: skip


class WorkerKilled(WorkerDied, BrokenProcessPool):
    """The worker died in this call; the pool goes on."""


class Unsendable(NotPicklable, pickle.PicklingError, BrokenProcessPool):
    """The call, or its result, can't travel between processes."""


class Unreadable(RemoteError, BrokenProcessPool):
    """The result or the exception arrived, and can't be unpickled here."""


class ThreadInitializerFailed(InitializerFailed, BrokenThreadPool):
    """The initializer raised: the pool can't be used."""


class ProcessInitializerFailed(InitializerFailed, BrokenProcessPool):
    """The initializer raised: the pool can't be used."""


class ThreadPoolExecutor(Pool):
    """As `concurrent.futures.ThreadPoolExecutor`: calls on at most `max_workers` threads, CPUs + 4 (32 at most) by
    default."""

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        workers = min(32, _cpus() + 4) if max_workers is None else _checked(max_workers)
        super().__init__(
            workers, lane="thread", initializer=initializer, initargs=initargs, name=thread_name_prefix or None
        )
        self._max_workers = workers
        self._roster.translate = _thread_error


class ProcessPoolExecutor(Pool):
    """As `concurrent.futures.ProcessPoolExecutor`: calls on at most `max_workers` processes, one per CPU by default.

    mp_context: accepted; workers always start fresh, from a small process that has none of this one's threads, so what
    the start methods differ in doesn't arise. max_tasks_per_child: a worker is replaced after so many calls.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        del mp_context
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        workers = _cpus() if max_workers is None else _checked(max_workers)
        super().__init__(
            workers, lane="process", initializer=initializer, initargs=initargs, max_calls=max_tasks_per_child
        )
        self._max_workers = workers
        self._roster.translate = _process_error


def _cpus() -> int:
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def _checked(workers: int) -> int:
    if workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    return workers


def _thread_error(error: BaseException) -> BaseException:
    if isinstance(error, InitializerFailed):
        return _as(ThreadInitializerFailed(*error.args), error)
    return error


def _process_error(error: BaseException) -> BaseException:
    if isinstance(error, WorkerDied):
        return _as(WorkerKilled(error.args[0], exitcode=error.exitcode, deaths=error.deaths), error)
    if isinstance(error, NotPicklable):
        return _as(Unsendable(*error.args), error)
    if isinstance(error, RemoteError):
        return _as(Unreadable(*error.args), error)
    if isinstance(error, InitializerFailed):
        return _as(ProcessInitializerFailed(*error.args), error)
    return error


def _as(new: BaseException, old: BaseException) -> BaseException:
    new.__cause__ = old.__cause__
    return new
