"""Descriptors that travel with a pickle to a process that is being started.

A pickle holds bytes, a descriptor is a right of one process. What is pickled inside `travelling()` may leave its
descriptors on the list there and keep its place in it; the guard hands the list to the new process, and what is
unpickled there inside `arrived(fds)` finds its own by the place.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence

_sent: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("sent", default=None)
_given: contextvars.ContextVar[Sequence[int]] = contextvars.ContextVar("given", default=())


@contextlib.contextmanager
def travelling() -> Iterator[list[int]]:
    """What is pickled in here may take descriptors along; the list fills with them. They stay the caller's."""
    fds: list[int] = []
    token = _sent.set(fds)
    try:
        yield fds
    finally:
        _sent.reset(token)


def send(fd: int) -> int | None:
    """Take `fd` along; its place, or None when this pickle is not for a process that is being started."""
    fds = _sent.get()
    if fds is None:
        return None
    fds.append(fd)
    return len(fds) - 1


@contextlib.contextmanager
def arrived(fds: Sequence[int]) -> Iterator[None]:
    """What is unpickled in here may take copies of `fds`, which are closed in the end."""
    token = _given.set(fds)
    try:
        yield
    finally:
        _given.reset(token)
        for fd in fds:
            os.close(fd)


def take(place: int) -> int:
    """A copy, the caller's own, of the descriptor that was sent at `place`."""
    return os.dup(_given.get()[place])
