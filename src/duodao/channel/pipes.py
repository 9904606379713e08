"""A pipe queue's maker and its clients find each other without a file or name, by /proc (Linux).

    client: opens /proc/MAKER/fd/N, the control pipe ── one packet: my pid, my two pipes, HMAC ──► maker
            ◄──────── the maker opens the other ends of both by /proc/CLIENT/fd/…, then says HELLO ─┘

A pipe's inode number stands in the handle and in the packet and is compared before and after each opening, so neither a
pid that is used again nor a descriptor that was closed leads to something else. A packet is written whole and is one
read (packet mode, O_DIRECT): behind garbage it still is found, and without its HMAC nothing is opened.
The maker's death: the client waits for HELLO and for the end of the control pipe's one reader, whichever comes first;
after HELLO it keeps no end of its pipes that is the maker's, so the kernel tells each side of the other's end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import os
import select
import stat
import struct
from time import monotonic

from duodao.channel.framing import Stream
from duodao.channel.handshake import SECONDS, prove
from duodao.channel.peers import Place, await_ready, spare
from duodao.children import lifeline
from duodao.errors import PeerLost, UsageError

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_CALL = struct.Struct("<8sIIIQQ")
_MAGIC = b"dd-pipe1"
_SIZE = _CALL.size + 32  # below the 512 bytes that POSIX lets no other write come into


class Control:
    """The maker's end of a pipe queue: where clients leave their calls. `fd` is readable when there is one."""

    def __init__(self, key: bytes) -> None:
        if not os.path.exists(f"/proc/{os.getpid()}/fd"):
            raise UsageError("via='pipe' needs Linux and its /proc: use via='shared' or via='unix:PATH' here")
        self.fd, self._writer = lifeline.private_pipe()
        os.set_blocking(self.fd, False)
        self.place = Place("pipe", (os.getpid(), self._writer, os.fstat(self.fd).st_ino))
        self._key = key
        self._calls: list[bytes] = []
        self._spares: tuple[int, ...] = (spare(), spare())

    def accept(self) -> Stream | None:
        """The next client, None when there is none now. OSError EMFILE: descriptors ran out; then `turn_away`."""
        while True:
            if not self._calls:
                try:
                    data = os.read(self.fd, 65536)
                except BlockingIOError:
                    return None
                # Garbage ends where a packet begins, and each packet ends a read.
                self._calls = [data[at - _SIZE : at] for at in range(len(data), 0, -_SIZE)][::-1]
            try:
                stream = self._answer(self._calls[0])
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                stream = None  # it has ended since
            del self._calls[0]
            if stream is not None:
                return stream

    def _answer(self, call: bytes) -> Stream | None:
        if len(call) != _SIZE or not hmac.compare_digest(call[_CALL.size :], self._proof(call[: _CALL.size])):
            return None
        _, pid, up, down, up_inode, down_inode = _CALL.unpack_from(call)
        return _open_both(pid, (up, up_inode, os.O_RDONLY), (down, down_inode, os.O_WRONLY))

    def _proof(self, call: bytes) -> bytes:
        return prove(self._key, b"call", str(self.place.what).encode(), call)

    def turn_away(self) -> Stream | None:
        """With no descriptor left: meet the first caller on spare ones, to tell it so. Else it would wait."""
        spares, self._spares = self._spares, ()
        for fd in spares:
            lifeline.close_private(fd)
        try:
            return self.accept()
        except OSError:
            self._calls.clear()
            return None

    def replace_spare(self) -> None:
        """After a `turn_away` whose stream was closed."""
        self._spares = spare(), spare()

    def close(self) -> None:
        """Serve no longer: who calls now finds no reader."""
        for fd in (self.fd, self._writer, *self._spares):
            lifeline.close_private(fd)


def _open_both(pid: int, first: tuple[int, int, int], second: tuple[int, int, int]) -> Stream:
    reader = open_end(pid, *first)
    try:
        return Stream(reader, open_end(pid, *second))
    except BaseException:
        lifeline.close_private(reader)
        raise


def open_end(pid: int, number: int, inode: int, mode: int) -> int:
    """One end, anew, of the pipe that a process has as descriptor `number`. FileNotFoundError: it isn't there."""
    path = f"/proc/{pid}/fd/{number}"
    _check_pipe(os.stat(path), inode)  # before: opening a terminal or a device does things
    with lifeline.unforked() as private:
        fd = private(os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _check_pipe(os.fstat(fd), inode)  # after: it may have become another in between
    except BaseException:
        lifeline.close_private(fd)
        raise
    return fd


def _check_pipe(found: os.stat_result, inode: int) -> None:
    if not stat.S_ISFIFO(found.st_mode) or found.st_ino != inode:
        raise FileNotFoundError(errno.ENOENT, "that descriptor is another's by now")


def call(place: Place, key: bytes) -> Stream:
    """Two pipes to the maker of a pipe queue. PeerLost: it closed the queue, ended, or is silent for SECONDS."""
    pid, number, inode = map(int, place.what)
    try:
        control = open_end(pid, number, inode, os.O_WRONLY)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise _gone(place) from error
    ours: list[int] = []
    try:
        down_reader, down_writer = lifeline.private_pipe()
        ours += down_reader, down_writer
        up_reader, up_writer = lifeline.private_pipe()
        ours += up_reader, up_writer
        _leave_call(control, place, key, up_reader, down_writer)
        await_ready(monotonic() + SECONDS, place, (down_reader, select.POLLIN), (control, 0))
        _check_said(down_reader, place)
        for fd in (up_reader, down_writer):  # the maker's now: so that an end of it is an end for us
            ours.remove(fd)
            lifeline.close_private(fd)
        return Stream(down_reader, up_writer)
    except BaseException:
        for fd in ours:
            lifeline.close_private(fd)
        raise
    finally:
        lifeline.close_private(control)


def _check_said(reader: int, place: Place) -> None:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if not poll.poll(0):  # it was the control pipe: its reader is gone
        raise _gone(place)


def _leave_call(control: int, place: Place, key: bytes, up: int, down: int) -> None:
    inodes = os.fstat(up).st_ino, os.fstat(down).st_ino
    text = _CALL.pack(_MAGIC, os.getpid(), up, down, *inodes)
    text += prove(key, b"call", str(place.what).encode(), text)
    with contextlib.suppress(OSError):  # a kernel without packets has whole writes all the same
        fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | _O_DIRECT)
    until = monotonic() + SECONDS
    while True:
        try:
            os.write(control, text)
        except BlockingIOError:  # some hundred clients call at once
            await_ready(until, place, (control, select.POLLOUT))
        except BrokenPipeError:
            raise _gone(place) from None
        else:
            return


def _gone(place: Place) -> PeerLost:
    return PeerLost(f"{place} is gone: that process closed it, or ended")
