"""Ending what is left behind."""

from __future__ import annotations

import os
import subprocess

from duodao.children import reap


def test_children_without_the_kernels_list(monkeypatch):
    """On a kernel without /proc/PID/task/TID/children the children are found by their parents' numbers."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        listed = reap._children()
        real = open

        def no_list(path, *rest):
            if str(path).endswith("/children"):
                raise FileNotFoundError(path)
            return real(path, *rest)

        monkeypatch.setattr("builtins.open", no_list)
        assert child.pid in listed
        assert sorted(reap._children()) == sorted(listed)
    finally:
        child.kill()
        child.wait()


def test_only_the_marked_are_killed():
    """`kill_marked` ends those whose environment carries exactly the marker, and returns when they are gone."""
    environ = {**os.environ, "DUODAO_TEST": "a"}
    marked = subprocess.Popen(["sleep", "60"], env=environ)
    other = subprocess.Popen(["sleep", "60"], env={**environ, "DUODAO_TEST": "ab"})
    reap.kill_marked("DUODAO_TEST=a")
    assert marked.poll() == -9
    assert other.poll() is None
    other.kill()
    other.wait()
    reap.kill_marked("DUODAO_TEST=a")


def test_watching_who_is_gone():
    """A number without a process is left out, and a wait for those that are there ends in time."""
    child = subprocess.Popen(["sleep", "60"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    watches = reap.watch([child.pid, gone.pid])
    assert len(watches) == 1
    reap.await_deaths(watches, 0.01)
    assert child.poll() is None
    child.kill()
    child.wait()
