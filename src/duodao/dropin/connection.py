"""`multiprocessing.Pipe`: the standard library's connections, which travel to a Process as it starts.

A connection is a descriptor. It goes to the child beside the pickled call, as one of the descriptors that the guard
hands over; the pickle has its place among them. `travelling` is open on the sender's side while that pickle is made,
`arrived` on the receiver's while it is read.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection as _Connection
from socket import socketpair
from typing import Any

from duodao.errors import NotPicklable

_sent: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("sent", default=None)
_given: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar("given", default=())


class Connection(_Connection):
    """One end of a pipe, as `multiprocessing.connection.Connection`."""

    def __reduce__(self) -> tuple[Any, ...]:
        sent = _sent.get()
        if sent is None:
            raise NotPicklable(
                "a Connection can only be given to a Process as it starts: a descriptor doesn't fit into a queue or a "
                "pool's call. Give it in args=, or talk through a Queue",
                "connection",
            )
        sent.append(self.fileno())
        return _arrive, (len(sent) - 1, self.readable, self.writable)


def _arrive(place: int, readable: bool, writable: bool) -> Connection:
    return Connection(os.dup(_given.get()[place]), readable=readable, writable=writable)


@contextlib.contextmanager
def travelling() -> Iterator[list[int]]:
    """Connections that are pickled in here are sent along; the list fills with their descriptors."""
    sent: list[int] = []
    token = _sent.set(sent)
    try:
        yield sent
    finally:
        _sent.reset(token)


@contextlib.contextmanager
def arrived(fds: list[int]) -> Iterator[None]:
    """Connections that are unpickled in here are made of `fds`, which are closed in the end."""
    token = _given.set(tuple(fds))
    try:
        yield
    finally:
        _given.reset(token)
        for fd in fds:
            os.close(fd)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802  # the standard library's name
    """Two connected ends. duplex=False: the first only receives, the second only sends."""
    if duplex:
        left, right = socketpair()
        return Connection(left.detach()), Connection(right.detach())
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)
