"""`multiprocessing.Process` on Duodao's guard: it can't outlive this program, and needs no `__main__` guard."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from duodao.dropin.multiprocessing import interrupt
from duodao.errors import CallExited, UsageError, WorkerDied
from duodao.lanes.apart import Exchange, Packed
from duodao.lanes.apart import Process as _Single
from duodao.lanes.single import Call, Ending
from duodao.sync import graph, lot

_OURS = ("_single", "_waiters", "_ending", "_sentinel", "_parent")
"""What belongs to the process that started it, and doesn't travel."""


class Process:
    """As `multiprocessing.Process`: a target with arguments, or a subclass with `run()`.

    Waiting for it is seen by the search for deadlocks. Source: M4, M9.
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        assert group is None, "group argument must be None for now"
        above = current_process()
        self._identity: tuple[int, ...] = (*above._identity, next(above._children))
        self._config: dict[str, Any] = dict(above._config)
        self._parent_pid = os.getpid()
        self._parent_name = above.name
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs or {})
        self._name = name or f"{type(self).__name__}-{':'.join(map(str, self._identity))}"
        if daemon is not None:
            self._config["daemon"] = bool(daemon)
        self._forget()

    _children: Any = None  # counts those that it starts itself, where it runs

    def _forget(self) -> None:
        self._single: _Single | None = None
        self._waiters: lot.Parked = deque()
        self._ending: Ending | None = None
        self._sentinel = -1
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OURS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
        self.__dict__.update(state)

    def run(self) -> None:
        """What the process does: calls the target, unless a subclass says otherwise."""
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        """Start it. AssertionError when it was started before, or by another process than its maker."""
        self._check_closed()
        assert self._single is None, "cannot start a process twice"
        assert self._parent_pid == os.getpid(), "can only start a process object created by current process"
        assert not current_process().daemon, "daemonic processes are not allowed to have children"
        _family.start(self)

    def terminate(self) -> None:
        """Ask it to end, with SIGTERM."""
        self._started().cancel()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._started().kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most. Deadlock when it can't end before this thread goes on."""
        self._check_closed()
        assert self._parent_pid == os.getpid(), "can only join a child process"
        assert self._single is not None, "can only join a started process"
        lot.wait(self, self._waiters, lambda: self._ending is not None, timeout)

    def is_alive(self) -> bool:
        """Does it run?"""
        self._check_closed()
        if self is current_process():
            return True
        assert self._parent_pid == os.getpid(), "can only test a child process"
        return self._single is not None and self._ending is None

    def close(self) -> None:
        """Give up the handle. ValueError while the process runs."""
        if self._single is not None and self._ending is None:
            raise ValueError("Cannot close a process while it is still running. You should first call join().")
        if self._sentinel >= 0:
            os.close(self._sentinel)
            self._sentinel = -1
        self._closed = True

    def __del__(self) -> None:
        if getattr(self, "_sentinel", -1) >= 0:
            os.close(self._sentinel)

    @property
    def name(self) -> str:
        """For people."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        assert isinstance(name, str), "name must be a string"
        self._name = name

    @property
    def daemon(self) -> bool:
        """Is it ended with its maker? Set before it starts."""
        return bool(self._config.get("daemon", False))

    @daemon.setter
    def daemon(self, daemon: bool) -> None:
        assert self._single is None, "process has already started"
        self._config["daemon"] = daemon

    @property
    def authkey(self) -> bytes:
        """The secret that a program's processes share; random unless set. Not used by queues and locks of ours."""
        return bytes(self._config["authkey"])

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._config["authkey"] = bytes(authkey)

    @property
    def pid(self) -> int | None:
        """Its number; None before it starts."""
        self._check_closed()
        if self is current_process():
            return os.getpid()
        return None if self._single is None else self._single.pid

    ident = pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs; 0, the code it left with, or minus the signal that ended it."""
        self._check_closed()
        return None if self._ending is None else self._ending.code

    @property
    def sentinel(self) -> int:
        """A descriptor that is ready to be read when the process has ended. Linux only."""
        self._check_closed()
        if self._sentinel < 0:
            pid = self._started().pid
            assert pid is not None
            self._sentinel = os.pidfd_open(pid)
        return self._sentinel

    def __repr__(self) -> str:
        if self._closed:
            state = "closed"
        elif self._single is None:
            state = "initial" if self is not current_process() else "started"
        elif self._ending is None:
            state = "started"
        else:
            state = f"stopped exitcode={self._ending.code}"
        extra = " daemon" if self.daemon else ""
        return f"<{type(self).__name__} name={self._name!r} parent={self._parent_pid} {state}{extra}>"

    # For the search for deadlocks

    def resolvers(self) -> tuple[graph.Unit, ...]:
        """Only the process itself can end a join."""
        unit = None if self._single is None else self._single.unit
        return () if unit is None else (unit,)

    def describe(self) -> str:
        """As messages name the wait."""
        return f"the end of process {self._name!r}"

    def _started(self) -> _Single:
        self._check_closed()
        if self._single is None:
            raise ValueError(f"process {self._name!r} was not started")
        return self._single

    def _check_closed(self) -> None:
        if self._closed:
            raise ValueError("process object is closed")


class _Main(Process):
    """The process that nobody of ours started."""

    def __init__(self) -> None:
        self._identity = ()
        self._config = {"authkey": os.urandom(32)}
        self._parent_pid = os.getppid()
        self._parent_name = ""
        self._name = "MainProcess"
        self._target, self._args, self._kwargs = None, (), {}
        self._children = itertools.count(1)
        self._forget()


class _Above:
    """What a child knows of its parent."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.ident = pid

    def is_alive(self) -> bool:
        """It is: a child of ours ends with its parent."""
        return True

    def join(self, timeout: float | None = None) -> None:
        """Wait `timeout` seconds; without it for ever, that is until this process ends with it."""
        threading.Event().wait(timeout)


class _Family:
    """The processes that this one has started. A thread reads what they print, from the first start to the last end.

    At the program's end those that are no daemons are waited for, as in the standard library; the guard ends the rest.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._alive: dict[_Single, Process] = {}
        self._exchange: Exchange | None = None

    def start(self, process: Process) -> None:
        interrupt.listen(self.interrupt)
        call = Call(_live, (process,), {}, process.name)
        packed = Packed(call)
        with self._lock:
            if self._exchange is None:
                self._exchange = Exchange("duodao-processes")
            single = _Single(packed, self._over, lambda _: None, self._exchange)
            self._alive[single] = process
            process._single = single
            try:
                single.start()
            except BaseException:
                process._single = None
                self._drop(single)
                raise
        atexit.unregister(self.wait)
        atexit.register(self.wait)  # after the guard's, so before it

    def _over(self, single: Any, ending: Ending) -> None:
        with self._lock:
            process = self._alive.get(single)
            if process is not None:
                process._ending = ending
                self._drop(single)
        if process is None:
            return
        if ending.error is not None and not isinstance(ending.error, CallExited | WorkerDied):  # it never came to `run`
            print(f"Process {process.name}:", file=sys.stderr)
            traceback.print_exception(ending.error)
        process._target, process._args, process._kwargs = None, (), {}  # what they hold may go
        lot.wake_all(process._waiters)

    def _drop(self, single: _Single) -> None:
        self._alive.pop(single, None)
        if not self._alive and self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.close()

    def interrupt(self) -> None:
        """Ctrl-C is theirs, too. In the signal handler, so without the lock."""
        exchange = self._exchange
        for single in list(self._alive):
            with contextlib.suppress(AttributeError, OSError):  # the last of them has just ended
                exchange.interrupt(single)  # type: ignore[union-attr]

    def alive(self) -> list[Process]:
        """Those that run."""
        with self._lock:
            return list(self._alive.values())

    def wait(self) -> None:
        """Wait for all that are no daemons."""
        for process in self.alive():
            if not process.daemon:
                process.join()

    def forget(self) -> None:
        """In a forked copy: they are the original's."""
        self._lock = threading.RLock()
        self._alive = {}
        self._exchange = None


_family = _Family()
os.register_at_fork(after_in_child=_family.forget)
_current: Process = _Main()
_parent: _Above | None = None


def current_process() -> Process:
    """The process that runs this."""
    return _current


def parent_process() -> _Above | None:
    """The one that started it; None in the main process."""
    return _parent


def active_children() -> list[Process]:
    """The processes that were started here and run."""
    return _family.alive()


def _live(process: Process) -> None:
    """In the child: be that process."""
    global _current, _parent  # who we are is one fact of the whole process
    _current, _parent = process, _Above(process._parent_name, process._parent_pid)
    process._children = itertools.count(1)
    process._parent_pid = os.getppid()
    threading.current_thread().name = "MainThread"
    interrupt.heed()
    try:
        process.run()
    except SystemExit:
        raise
    except BaseException:
        print(f"Process {process.name}:", file=sys.stderr)
        traceback.print_exc()
        sys.exit(1)
    finally:
        _family.wait()


def set_start_method(method: str | None, force: bool = False) -> None:
    """Accepted and ignored: every process is forked from a server of ours, whatever the platform's default is.

    UsageError for a name that the standard library doesn't have.
    """
    del force
    if method not in (None, "fork", "spawn", "forkserver"):
        raise UsageError(f"cannot find context for {method!r}: fork, spawn, forkserver")


def get_start_method(allow_none: bool = False) -> str:
    """ "forkserver": the nearest to what is done here."""
    del allow_none
    return "forkserver"
