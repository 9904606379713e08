"""A guard of the test's own, which therefore knows the folder of these tests."""

from __future__ import annotations

import os
import threading

import pytest

from duodao.children import guard


@pytest.fixture(autouse=True)
def fresh_guard():
    """The guard is started anew in each test, and nothing of the test's is left after it."""
    guard.shutdown()
    before = set(os.listdir("/proc/self/fd"))
    yield
    guard.shutdown()
    assert "duodao-guard-reader" not in {thread.name for thread in threading.enumerate()}
    left = set(os.listdir("/proc/self/fd")) - before
    assert len(left) <= 3, f"descriptors left: {left}"  # the list's own, and those of the arena if it is new


@pytest.fixture
def pipe():
    """A pipe (reader, writer), closed afterwards as far as the test has not."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue
