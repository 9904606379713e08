"""The open connections of a library that tells of none, found among this process's descriptors.

granian owns its sockets. That they are ours to look at is enough to count them, to cut them at the end, and to end what
it would keep for ever: a peer of https that never begins its handshake, for which granian has no time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence

_ACKED = 120
"""Offset in struct tcp_info of the count of bytes that the peer has confirmed."""
_NOTHING = 100
"""Bytes. Who was sent fewer has had no answer: the first of a TLS server is longer, an alert is shorter."""


def connections(listening: Sequence[socket.socket]) -> Iterator[socket.socket]:
    """The connections of these listening sockets.

    Each is a copy, closed when the next is asked for: shutting it down cuts the connection, closing it doesn't.
    """
    ports = {sock.getsockname()[1] for sock in listening if sock.fileno() >= 0}
    for name in os.listdir("/proc/self/fd") if ports else ():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] in ports:
                        sock.getpeername()
                        yield sock


def cut(listening: Sequence[socket.socket]) -> None:
    """End all connections now."""
    for sock in connections(listening):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class Silence:
    """Cuts connections that were sent nothing for one to two times `seconds`: their handshake has not begun.

    The one timer here that goes on while nothing happens: nobody tells of a connection that says nothing. It looks from
    another thread, for a look at ten thousand takes a tenth of a second.
    """

    def __init__(self, listening: Sequence[socket.socket], seconds: float) -> None:
        self.cut = 0
        self._listening = listening
        self._seconds = seconds
        self._suspects: set[object] = set()
        self._task = asyncio.get_running_loop().create_task(self._watch())
        self._over = asyncio.Event()

    async def close(self) -> None:
        """Look no more."""
        self._over.set()
        await self._task

    async def _watch(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._seconds)
            if not self._over.is_set():
                await asyncio.get_running_loop().run_in_executor(None, self._look)

    def _look(self) -> None:
        silent: set[object] = set()
        for sock in connections(self._listening):
            with contextlib.suppress(OSError):
                peer = sock.getpeername()
                if _acknowledged(sock) >= _NOTHING:
                    continue
                if peer in self._suspects:
                    self.cut += 1
                    sock.shutdown(socket.SHUT_RDWR)
                else:
                    silent.add(peer)
        self._suspects = silent


def _acknowledged(sock: socket.socket) -> int:
    if sys.platform != "linux":
        return _NOTHING
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED + 8)
    return int(struct.unpack_from("Q", info, _ACKED)[0])
