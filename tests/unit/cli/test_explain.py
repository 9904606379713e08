"""What the command line makes of an error: one line with options as they are written there, and an exit code."""

from __future__ import annotations

import pytest

from duodao import errors
from duodao.cli import explain


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lane='fast': there is no such lane", "--lane 'fast': there is no such lane"),
        (
            "star=True spreads tuple inputs, common= gives constants",
            "--star spreads tuple inputs, --common gives constants",
        ),
        ("max_memory=-1: bytes over 0", "--max-memory -1: bytes over 0"),
        ("max_failures=0.05: 3 of 9 inputs failed", "--max-failures 5%: 3 of 9 inputs failed"),
        ("keep its results with --accept-code (accept_code=True)", "keep its results with --accept-code"),
    ],
)
def test_options_in_messages(text, line):
    """A message of the API names options as the command line does."""
    assert explain.explain(errors.UsageError(text)) == line


def test_cause_of_a_failed_setup_is_told():
    """An error that another one caused tells both, once."""
    error = errors.SetupFailed("setup 'db' failed")
    error.__cause__ = OSError("no route")
    assert explain.explain(error) == "setup 'db' failed (OSError: no route)"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.JournalMismatch("x"), 2),
        (errors.JournalBusy("x"), 2),
        (errors.JournalFull("x"), 1),
        (errors.SetupFailed("x"), 1),
        (errors.TooManyFailures("x"), 3),
    ],
)
def test_exit_codes(error, code):
    """What was refused is 2, what went wrong on the way is 1, too many failures are 3."""
    assert explain.exit_code(error) == code
