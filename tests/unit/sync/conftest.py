"""Other processes for the tests of what is shared."""

from __future__ import annotations

import pytest
from other_process import Other


@pytest.fixture
def other():
    """Start other processes; they are ended after the test."""
    started = []

    def start(source, **given):
        started.append(Other(source, **given))
        return started[-1]

    yield start
    for process in started:
        process.close()
