"""`multiprocessing.Pipe`: the standard library's connections, which travel to a Process as it starts."""

from __future__ import annotations

import os
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener, wait
from multiprocessing.connection import Connection as _Connection
from socket import socketpair
from typing import Any

from duodao import descriptors
from duodao.errors import NotPicklable

__all__ = ["AuthenticationError", "Client", "Connection", "Listener", "Pipe", "wait"]


class Connection(_Connection):
    """One end of a pipe, as `multiprocessing.connection.Connection`."""

    def __reduce__(self) -> tuple[Any, ...]:
        place = descriptors.send(self.fileno())
        if place is None:
            raise NotPicklable(
                "a Connection can only be given to a Process as it starts: a descriptor doesn't fit into a queue or a "
                "pool's call. Give it in args=, or talk through a Queue",
                "connection",
            )
        return _arrive, (place, self.readable, self.writable)


def _arrive(place: int, readable: bool, writable: bool) -> Connection:
    return Connection(descriptors.take(place), readable=readable, writable=writable)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802  # the standard library's name
    """Two connected ends. duplex=False: the first only receives, the second only sends."""
    if duplex:
        left, right = socketpair()
        return Connection(left.detach()), Connection(right.detach())
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)
