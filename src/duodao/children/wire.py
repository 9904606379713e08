"""Messages between the supervisor and its guard: one tuple of plain values and some descriptors, whole or not at all.

A sequenced-packet socket keeps them apart, so several threads send without waiting for each other's second halves, and
the guard, which has one thread, never waits for the rest of a message from a supervisor that was stopped in its middle.
A body too large for one packet travels in a memfd. marshal: both ends run the same interpreter, it needs no import, and
what arrives comes from ourselves.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Message = tuple[Any, ...]
FDS_AT_MOST = 250  # SCM_MAX_FD is 253; some are ours
_PACKET = 48 << 10  # bytes: far under the smallest default send buffer
_HEAD = struct.Struct("<?BI")  # is the body in a memfd; descriptors; number
_RIGHTS = socket.CMSG_SPACE(253 * array.array("i").itemsize)


class Truncated(OSError):
    """Descriptors were lost on the way: the receiver's limit of open files is reached. `number`: of that message."""

    def __init__(self, number: int) -> None:
        super().__init__("too many open files")
        self.number = number


def encode(message: Message) -> bytes:
    """The body of `message`."""
    return marshal.dumps(message)


def decode(body: bytes) -> Message:
    """The message of `body`."""
    message: Message = marshal.loads(body)  # noqa: S302 - our own process wrote it
    return message


def send(sock: socket.socket, body: bytes, fds: Sequence[int] = (), *, number: int = 0, flags: int = 0) -> None:
    """Send one message with copies of `fds`. `number` is what the receiver can say of it when it can't take it whole.

    BlockingIOError only with MSG_DONTWAIT in `flags`; BrokenPipeError or ConnectionResetError when nobody is there.
    """
    if len(body) <= _PACKET:
        _send(sock, _HEAD.pack(False, len(fds), number) + body, fds, flags)
        return
    memory = os.memfd_create("duodao-message")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(body)
        _send(sock, _HEAD.pack(True, len(fds) + 1, number), [memory, *fds], flags)
    finally:
        os.close(memory)


def _send(sock: socket.socket, packet: bytes, fds: Sequence[int], flags: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors, which the receiver must close; None at the end. Truncated: see there."""
    packet, rights = _receive(sock)
    if not packet:
        return None
    in_memory, count, number = _HEAD.unpack_from(packet)
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(fds) != count:
        for fd in fds:
            os.close(fd)
        raise Truncated(number)
    if not in_memory:
        return decode(packet[_HEAD.size :]), list(fds)
    with open(fds[0], "rb") as file:
        file.seek(0)  # the sender wrote through the same open file
        return decode(file.read()), list(fds[1:])


def _receive(sock: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    while True:
        try:
            packet, rights, _, _ = sock.recvmsg(_PACKET + _HEAD.size, _RIGHTS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            continue  # said once when the other side closed without reading all of ours; what it sent is still here
        return packet, rights
