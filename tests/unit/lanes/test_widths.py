"""`workers=`: one width, or one per level where a lane can be nested in processes."""

from __future__ import annotations

import pytest

import duodao
from duodao.errors import UsageError
from duodao.lanes.choose import LEVELS, check_width, default_workers


@pytest.mark.parametrize(
    ("lane", "workers"),
    [
        ("thread", None),
        ("process", 3),
        ("command", 1),
        ("thread", (2, 8)),
        ("coroutine", (2, 500)),
        ("coroutine", (2, 2, 250)),
        ("greenlet", (2, 500)),
    ],
)
def test_widths_that_lanes_have(lane, workers):
    """One whole number goes with every lane; a tuple with those that run in processes of their own."""
    assert check_width(lane, workers) == workers


@pytest.mark.parametrize(
    ("lane", "workers", "text"),
    [
        ("thread", 0, "a whole number from 1"),
        ("thread", True, "a whole number from 1"),
        ("thread", 2.0, "a whole number from 1"),
        ("thread", [2, 8], "a whole number from 1"),
        ("thread", (2, 0), "a whole number from 1"),
        ("thread", (2, 8, 3), r"lane='thread' takes \(processes, threads\)"),
        ("thread", (2,), r"lane='thread' takes \(processes, threads\)"),
        ("coroutine", (1, 2, 3, 4), "or \\(processes, threads, coroutines\\)"),
        ("process", (2, 2), "lane='process' has one width"),
        ("auto", (2, 2), "lane='auto' has one width"),
        ("command", (2, 2), "lane='command' has one width"),
    ],
)
def test_widths_that_they_have_not(lane, workers, text):
    """Anything else is refused before anything starts, and the message says what is valid."""
    with pytest.raises(UsageError, match=text):
        check_width(lane, workers)
    with pytest.raises(UsageError, match=text):
        duodao.Pipeline("true" if lane == "command" else abs, lane=lane, workers=workers)


def test_every_lane_has_a_default_width():
    """Each lane that isn't `auto` has a default of at least one, at the top and inside a worker."""
    for lane in ("inline", "thread", "process", "coroutine", "greenlet", "command"):
        assert default_workers(lane, inside=False) >= 1
        assert default_workers(lane, inside=True) >= 1
    assert set(LEVELS) == {"thread", "coroutine", "greenlet"}


@pytest.mark.parametrize(
    ("work", "options", "text"),
    [
        ("", {"lane": "command"}, "the command is empty"),
        (len, {"lane": "command"}, "lane='command' runs a program"),
        ([], {"lane": "command"}, "lane='command' runs a program"),
        ("gzip {}", {"lane": "thread"}, "a program runs on lane='command'"),
        (["gzip", "{}"], {}, "a program runs on lane='command'"),
        (duodao.Command("gzip {}"), {"lane": "process"}, "a Command runs on lane='command'"),
        ("gzip {}", {"lane": "command", "common": {"level": 9}}, "common= is for functions"),
        ("gzip {}", {"lane": "command", "star": True}, "star= is for functions"),
        ("gzip {}", {"lane": "command", "seed": 1}, "seed= is for functions"),
    ],
)
def test_commands_and_functions_are_told_apart(work, options, text):
    """A program on a lane for functions, and the other way round, is refused, and the message says what fits."""
    with pytest.raises(UsageError, match=text):
        duodao.Pipeline(work, **options)
