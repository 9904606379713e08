"""Frames on a stream of bytes that never blocks: a pair of pipes, or a socket.

    | length of the body | kind | flags | number |  body  | mark: sealed streams only |

A stream is bound to its handshake (handshake.py): over pipes and unix sockets by the kernel, which lets nobody else
write into them; over TCP by a mark on every frame of our own tasks, a MAC keyed by the handshake that counts the
frames, so that none can be altered, left out or sent again.

Invariants:
  1. No frame is believed about its length beyond `limit`, and memory is taken for what has arrived, not for what was
     announced.
  2. After an error the stream is read no further.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from duodao.children import lifeline
from duodao.errors import PeerLost

HEAD = struct.Struct("<IBBxxI")
GREETING = 1024
"""Bytes of a frame before the handshake is over,"""
STRANGERS = 16 << 20
"""from another program after it,"""
OURS = 1 << 30
"""and from a task of ours, at most."""
_CHUNK = 65536
_LARGE = 1 << 20
_MARK = 16
_F_SETPIPE_SZ = 1031  # fcntl.h of Linux

# Kinds. The greeting:
HELLO, PROOF, WELCOME, REFUSED = 1, 2, 3, 4
# Requests; all but ACK and CANCEL have one answer.
PUT, GET, ACK, CANCEL, DONE, JOIN, SHUTDOWN, LOOK = 10, 11, 12, 13, 14, 15, 16, 17
# Answers. CLOSED may come unasked.
ITEMS, OK, FULL, EMPTY, SHUT, CLOSED, FAILED, SEEN = 20, 21, 22, 23, 24, 25, 26, 27

NOW = 1
"""Flag of a request: answer at once, do not wait."""


class Frame(NamedTuple):
    """One message. number: what it counts."""

    kind: int
    flags: int
    number: int
    body: memoryview


class Seal:
    """Marks the frames of one direction, or checks their marks."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def mark(self, *pieces: bytes | memoryview) -> bytes:
        """The mark of the next frame."""
        digest = hashlib.blake2b(self._count.to_bytes(8, "little"), digest_size=_MARK, key=self._key)
        for piece in pieces:
            digest.update(piece)
        self._count += 1
        return digest.digest()


class Stream:
    """Both directions of one peer. reader, writer: descriptors, non-blocking and private, the same one for a socket."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer
        self.limit = GREETING
        self.unsent: deque[memoryview] = deque()
        self.seal_in: Seal | None = None
        self.seal_out: Seal | None = None
        self._got = bytearray()
        self._wanted = HEAD.size
        self._widened = reader == writer
        self._pid = os.getpid()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def add(self, kind: int, number: int = 0, pieces: Sequence[bytes] = (), *, flags: int = 0) -> None:
        """Have a frame sent by the next calls of `flush`."""
        size = sum(map(len, pieces))
        head = HEAD.pack(size, kind, flags, number)
        if size > _CHUNK:
            self._widen()
        mark = b"" if self.seal_out is None else self.seal_out.mark(head, *pieces)
        if size < _CHUNK:
            self.unsent.append(memoryview(b"".join((head, *pieces, mark))))
        else:
            self.unsent.extend(memoryview(piece) for piece in (head, *pieces, mark) if piece)

    def _widen(self) -> None:
        """A pipe of 1 MB for who sends large frames, where the system grants it."""
        if not self._widened:
            self._widened = True
            try:
                fcntl.fcntl(self.writer, _F_SETPIPE_SZ, _LARGE)
            except OSError:
                return

    def flush(self) -> bool:
        """Write what the other side takes now; True when nothing is left. OSError: it is gone."""
        unsent = self.unsent
        while unsent:
            try:
                wrote = os.writev(self.writer, [unsent[n] for n in range(min(len(unsent), 64))])
            except BlockingIOError:
                return False
            while unsent and wrote >= len(unsent[0]):
                wrote -= len(unsent.popleft())
            if wrote:
                unsent[0] = unsent[0][wrote:]
        return True

    def read(self) -> list[Frame]:
        """The frames that are complete now; with none there, none. EOFError: the other side is gone; PeerLost: it sent
        what is not a frame, or more than it may; OSError as read."""
        try:
            data = os.read(self.reader, max(_CHUNK, min(self._wanted - len(self._got), _LARGE)))
        except BlockingIOError:
            return []
        except ConnectionError:
            raise EOFError from None
        if not data:
            raise EOFError
        if self._got:
            self._got += data
            if len(self._got) < self._wanted:
                return []
            data = bytes(self._got)
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Frame]:
        whole, at, frames = memoryview(data), 0, []
        extra = 0 if self.seal_in is None else _MARK
        wanted = HEAD.size
        while len(data) - at >= HEAD.size:
            size, kind, flags, number = HEAD.unpack_from(data, at)
            if size > self.limit:
                raise PeerLost(
                    f"the other side announced {size} bytes where at most {self.limit} may follow: it speaks another "
                    "language, or its item is too large"
                )
            wanted = HEAD.size + size + extra
            if len(data) - at < wanted:
                break
            body = whole[at + HEAD.size : at + HEAD.size + size]
            if self.seal_in is not None:
                mark = self.seal_in.mark(whole[at : at + HEAD.size], body)
                if not hmac.compare_digest(mark, whole[at + wanted - extra : at + wanted]):
                    raise PeerLost("a frame came altered, or not from the peer that had proved itself: it was not read")
            frames.append(Frame(kind, flags, number, body))
            at += wanted
            wanted = HEAD.size
        self._wanted = wanted
        self._got = bytearray(whole[at:])
        return frames

    def close(self) -> None:
        """Give the descriptors back. Idempotent; in a forked copy, which has none of them, nothing happens."""
        if os.getpid() != self._pid:
            return
        reader, writer, self.reader, self.writer = self.reader, self.writer, -1, -1
        self.unsent.clear()
        lifeline.close_private(reader)
        if writer != reader:
            lifeline.close_private(writer)
