"""What the command line makes of an error of ours: one line, options as they are written here, and an exit code."""

from __future__ import annotations

import re

from duodao.errors import (
    DuodaoError,
    JournalBusy,
    JournalError,
    JournalFull,
    RemoteTraceback,
    TooManyFailures,
    UsageError,
)

OK, FAILED, USAGE, STOPPED = 0, 1, 2, 3

_TWICE = re.compile(r" \((?:accept_code|fresh)=True\)")  # where a message names both ways to write an option
_SHARE = re.compile(r"\bmax_failures=(0\.[0-9]+)")
_STDIN = re.compile(r"\bstdin='item'")
_OPTION = re.compile(
    r"\b(lane|workers|retries|timeout|rate|common|setup|star|seed|max_memory|max_failures|window|key|journal|fresh|"
    r"accept_code|protocol|shell|max_output|framing|processes|backlog|max_connections|max_frame|max_body|write_high|"
    r"idle|first_byte|stall|grace|proxy_from)=(?:True\b)?(?=(\S?))"
)


def explain(error: BaseException) -> str:
    """An error of ours with what caused it."""
    text = in_options(str(error))
    cause = error.__cause__
    if cause is None or isinstance(error, UsageError) or isinstance(cause, RemoteTraceback) or str(cause) in text:
        return text
    return f"{text} ({type(cause).__name__}: {cause})"


def in_options(text: str) -> str:
    """A message of the API with the command line's names: star=True is --star, lane='x' is --lane 'x'."""
    text = _STDIN.sub("--stdin-item", _TWICE.sub("", text))
    text = _SHARE.sub(lambda found: f"--max-failures {float(found[1]) * 100:g}%", text)
    return _OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}{' ' if found[2] else ''}", text)


def exit_code(error: DuodaoError) -> int:
    """The exit code for an error of ours that ended the command."""
    if isinstance(error, TooManyFailures):
        return STOPPED
    refused = (UsageError, JournalError, JournalBusy)
    return USAGE if isinstance(error, refused) and not isinstance(error, JournalFull) else FAILED
