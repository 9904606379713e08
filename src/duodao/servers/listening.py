"""Listening sockets: one per process on one address, and how they are closed without failing anyone.

Closing a listening socket resets the connections that wait in its queue, whose requests may have been sent already. So
it is shut first (`shut`): the kernel then drops the first packet of new connections, whoever has the socket goes on
accepting what is in the queue (`queued`), and only the empty one is closed. A peer that was dropped tries again after a
second, and is refused.
"""

from __future__ import annotations

import ctypes
import resource
import socket
import struct
import sys

from duodao.errors import Broken
from duodao.servers.options import Options

_ATTACH_FILTER = 26
_DROP_ALL = (0x06, 0, 0, 0)
"""The one instruction of a packet filter: return 0 bytes of it."""
_UNACKED = 24
"""Offset of a field of struct tcp_info that for a listening socket is the length of its queue."""


def open_all(options: Options) -> list[socket.socket]:
    """One socket per process, all listening at the address, which is `sockets[0].getsockname()`.

    Broken, with the address, when it is in use or isn't ours.
    """
    made: list[socket.socket] = []
    host, port = options.host, options.port
    try:
        for _ in range(options.processes):
            family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            if options.processes > 1 and not made:  # another server at this port would share its connections in silence
                with socket.socket(family, socket.SOCK_STREAM) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    alone.bind(where)
            made.append(socket.socket(family, socket.SOCK_STREAM))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.processes > 1:
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made[-1].bind(where)
            port = made[0].getsockname()[1]
            made[-1].setblocking(False)
        for sock in made:  # all are bound before the first accepts: one that can't be must not have taken anybody
            sock.listen(options.backlog)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host's name
        for sock in made:
            sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise Broken(f"can't listen at {options.scheme}://{options.host}:{options.port}: {reason}") from None
    return made


def raise_limit() -> int:
    """Allow this process as many descriptors as the system lets it have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or soft == resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS names a hard limit that it doesn't grant
            return soft
    return hard


def shut(sock: socket.socket) -> None:
    """Take no new connections; those in the queue are still to be accepted. For good, and for all who have the socket.

    Where the kernel can't, or the socket is closed, nothing happens.
    """
    if sys.platform != "linux" or sock.fileno() < 0:
        return
    program = ctypes.create_string_buffer(struct.pack("HBBI", *_DROP_ALL))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    except OSError:
        return


def queued(sock: socket.socket) -> int:
    """How many connections wait to be accepted; 0 where that isn't told."""
    if sys.platform != "linux" or sock.fileno() < 0:
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    except OSError:
        return 0
    return int(struct.unpack_from("I", info, _UNACKED)[0])
