"""ready, running, blocked on what, ended: what a task's state says where no primitive of ours is involved."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

import duodao
from duodao.sync import Event


def spin(path):
    """Use a processor until the file is there."""
    while not os.path.exists(path):
        pass


def until(task, states):
    """Wait until the state is one of these; what it is blocked on."""
    deadline = time.monotonic() + 20
    while task.state not in states:
        assert time.monotonic() < deadline, (task.state, task.blocked_on)


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_one_that_computes(lane, tmp_path):
    """A task that uses the processor is running; or ready, while others have it (or, a thread, the GIL)."""
    stop = tmp_path / "stop"
    with duodao.Group() as group:
        task = group.start(spin, str(stop), lane=lane)
        until(task, {"running"})
        seen = {task.state for _ in range(10)}
        stop.touch()
    assert "ended" not in seen
    assert (task.state, task.blocked_on) == ("ended", None)


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_one_in_a_system_call(lane):
    """A task that waits in the kernel is blocked, in a function of the kernel's where that is told."""
    reader, writer = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{reader}"

    def read(path):
        with open(path, "rb") as file:
            return file.read(1)

    try:
        with duodao.Group() as group:
            task = group.start(read, path, lane=lane)
            while not (task.blocked_on or "").startswith("kernel: "):  # on its way there it may wait for something else
                until(task, {"blocked"})
            os.write(writer, b"x")
    finally:
        os.close(reader)
        os.close(writer)
    assert task.result() == b"x"


def test_one_that_is_stopped():
    """A process that was stopped (SIGSTOP) is blocked, by that."""
    with duodao.Group() as group:
        task = group.start(time.sleep, 600, daemon=True)
        os.kill(task.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while task.blocked_on != "a stop signal":
            assert time.monotonic() < deadline
        os.kill(task.pid, signal.SIGCONT)


def test_coroutines():
    """One that awaits is blocked, one that blocks its loop is running, one behind it is ready."""
    gate, holds = threading.Event(), threading.Event()

    async def awaits():
        await asyncio.sleep(1000)

    async def hold():
        holds.set()
        gate.wait(10)

    with duodao.Group() as group:
        first = group.start(awaits, daemon=True)
        until(first, {"blocked"})
        assert "await" in first.blocked_on
        second = group.start(hold)
        assert holds.wait(10)
        third = group.start(awaits, daemon=True)
        assert second.state == "running"
        assert third.state == "ready"
        gate.set()


def test_one_that_waits_for_its_restart():
    """A task in its back-off is ready, and alive."""

    def fail():
        raise OSError

    with duodao.Group() as group:
        task = group.start(fail, lane="thread", restart=duodao.Restart(delay=1000, at_most=1000), daemon=True)
        until(task, {"ready"})
        assert task.is_alive()
        assert task.exitcode is None
        task.terminate()


def test_a_wait_with_a_time_out_is_a_wait():
    """A timed wait for a primitive of ours is blocked on it, too."""
    with duodao.Group() as group:
        task = group.start(Event(name="door").wait, 1000, lane="thread", daemon=True)
        until(task, {"blocked"})
        assert task.blocked_on == "Event 'door'"
