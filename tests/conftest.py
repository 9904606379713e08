"""What every test is held to: it leaves no thread, no child process and no descriptor behind."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

hypothesis.settings.register_profile("busy", deadline=None)  # an example may wait for a machine that has other work
hypothesis.settings.load_profile("busy")
os.environ.setdefault("DUODAO_LOCKDEP", "1")
"""All locks of ours report inversions of their order, in the processes that tests start too; warnings are errors."""

PATIENCE = 5.0
"""Seconds that ending threads and processes get. They are waited for, never slept for."""
KEPT_THREADS = ("duodao-guard-reader", "pydevd", "IPythonHistory", "ThreadPoolExecutor-")
"""Threads that outlive a run on purpose: the guard's reader, and what other programs keep to themselves."""
STARTING = "(in the middle of its exec)"
KEPT_FILES = ("duodao-arena", "/dev/pts/", ".hypothesis", "inotify")


def pytest_configure(config: pytest.Config) -> None:
    """Make the one pipe that libuv keeps for as long as the program lives, so that no test is blamed for it."""
    del config
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


ALONE = (
    "test_choose.py",
    "test_flat_memory.py",
    "test_zombies.py",
    "test_orphans.py",
    "test_rate_retry.py",
    "test_stall.py",
)
"""Files whose facts are about time, memory or the whole of the process table: run one after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that don't share the machine."""
    for item in items:
        if item.path.name in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """`make test` runs in two parts; that one of them has no test among those asked for is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("markexpr"):
        session.exitstatus = pytest.ExitCode.OK


def need(found: object, what: str) -> None:
    """A server or program that a test needs: missing, it skips the test at home and fails it where CI is set."""
    if found:
        return
    give_up(f"{what} is missing")


def program(name: str) -> str:
    """Path of a program that a test needs. Debian has servers in /usr/sbin, which a user's PATH may leave out."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    need(found, name)
    assert found is not None
    return found


def need_cpython(found: object) -> None:
    """CPython's own tests, which distributions ship apart. CI says which of its Pythons must have them."""
    if found:
        return
    if os.environ.get("DUODAO_CPYTHON_TESTS") == "1":
        pytest.fail("Python's own `test` package is missing, and DUODAO_CPYTHON_TESTS=1 says that it is here")
    pytest.skip("this Python comes without its own `test` package")


def give_up(reason: str) -> NoReturn:
    """Skip at home; fail in CI, where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true says that nothing may be")
    pytest.skip(reason)


def children() -> dict[int, str]:
    """Direct children of this process, zombies included: pid -> command line ("" for a zombie)."""
    found: dict[int, str] = {}
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            pids = task.read_text().split()
        except OSError:
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if not command and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
                    command = STARTING
                found[int(pid)] = command
            except OSError:
                continue
    return found


def files() -> dict[str, str]:
    """Descriptors of this process: number -> what it is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return {n: link for n, link in found.items() if not any(kept in link for kept in KEPT_FILES)}


def is_guard(command: str) -> bool:
    """The one process that a program keeps until its end. It is started without waiting for it."""
    return "duodao.children" in command or command == STARTING


def join_new_threads(before: set[threading.Thread], deadline: float) -> list[str]:
    """Wait for threads that a test started; the names of those that are still there."""
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(KEPT_THREADS):
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
    return [
        thread.name
        for thread in set(threading.enumerate()) - before
        if thread.is_alive() and not thread.name.startswith(KEPT_THREADS)
    ]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: the threads it started have ended, and it left no child but the guard, no zombie at all.

    A test whose thread can't end, because it shows just that, says so: @pytest.mark.leaves("threads").
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    marks = {str(name) for mark in request.node.iter_markers("leaves") for name in mark.args}
    threads, before = set(threading.enumerate()), children()
    yield
    deadline = time.monotonic() + PATIENCE
    if "threads" not in marks:
        left = join_new_threads(threads, deadline)
        assert not left, f"threads left behind: {left}"
    if "children" not in marks:
        after = {pid: command for pid, command in children().items() if pid not in before and not is_guard(command)}
        assert not after, f"child processes left behind (pid: command, empty = zombie): {after}"


@pytest.fixture(autouse=True, scope="module")
def nothing_held(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test file, with idle workers and guard ended: no more descriptors than before, no child at all."""
    if not sys.platform.startswith("linux"):
        yield
        return
    end_children()
    before, family, failed = files(), children(), request.session.testsfailed
    yield
    end_children()
    if request.session.testsfailed > failed:
        return  # its traceback keeps what it had open
    gc.collect()
    if any("files" in mark.args for mark in request.node.iter_markers("leaves")):
        return
    after = {n: link for n, link in files().items() if before.get(n) != link}
    assert not after, f"descriptors left open: {after}"
    left = {pid: command for pid, command in children().items() if pid not in family}
    assert not left, f"child processes left behind: {left}"


def end_children() -> None:
    """End what a program keeps between runs, as its exit would; the next run starts it anew."""
    fleet, guard = sys.modules.get("duodao.lanes.fleet"), sys.modules.get("duodao.children.guard")
    if fleet is not None:
        fleet.FLEET.clear()
    if guard is not None:
        guard.shutdown()
