"""Messages between the supervisor and its guard: one tuple of plain values and some descriptors, whole or not at all.

A sequenced-packet socket keeps them apart, so several threads send without a lock around partial writes, and the guard,
which has one thread, never waits for the second half of a message from a supervisor that was stopped in the middle. A
body that is too large for one packet travels in a memfd. marshal: both ends run the same interpreter, and it needs no
import; the guard is ours, so what arrives is trusted.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
from collections.abc import Sequence
from typing import Any

Message = tuple[Any, ...]
_INLINE = 48 << 10  # bytes in one packet: far under the smallest default send buffer
_FDS_AT_MOST = 253  # SCM_MAX_FD
_SIZE = array.array("i").itemsize


class Truncated(OSError):
    """The receiver had no room for the descriptors of a message: its limit of open files is reached."""


def encode(message: Message) -> bytes:
    """The body of `message`."""
    return marshal.dumps(message)


def decode(body: bytes) -> Message:
    """The message of `body`."""
    message: Message = marshal.loads(body)
    return message


def send(sock: socket.socket, body: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one message with copies of `fds`. BlockingIOError only with MSG_DONTWAIT; BrokenPipeError: nobody is there."""
    if len(fds) >= _FDS_AT_MOST:
        raise ValueError(f"{len(fds)} descriptors are more than the {_FDS_AT_MOST - 1} that one message carries")
    if len(body) <= _INLINE:
        _send(sock, b"\0" + bytes([len(fds)]) + body, fds, flags)
        return
    memory = os.memfd_create("duodao-message")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(body)
        _send(sock, b"\1" + bytes([len(fds) + 1]), [memory, *fds], flags)
    finally:
        os.close(memory)


def _send(sock: socket.socket, packet: bytes, fds: Sequence[int], flags: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors, which are the receiver's to close; None at the end.

    Truncated when descriptors got lost; it carries the message, whose sender must be told.
    """
    try:
        packet, rights, _, _ = sock.recvmsg(
            _INLINE + 2, socket.CMSG_SPACE(_FDS_AT_MOST * _SIZE), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None  # the other side closed with a message of ours unread
    fds: list[int] = []
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.extend(array.array("i", data[: len(data) - len(data) % _SIZE]))
    if not packet:
        return None
    body = packet[2:]
    lost = len(fds) != packet[1]
    if packet[0] == 1 and fds:
        with open(fds.pop(0), "rb") as file:
            file.seek(0)
            body = file.read()
    if lost:
        for fd in fds:
            os.close(fd)
        raise Truncated(decode(body) if body else ())
    return decode(body), fds
