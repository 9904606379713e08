"""Where one message ends in a stream of bytes that may be cut anywhere.

A framing takes bytes as they come and gives back whole messages, at most `most` at a time: what is beyond stays bytes,
so that a segment of ten thousand messages never becomes ten thousand objects for a connection that may not run them.

Invariants: `rest` holds no whole message unless `more` is set; with reading paused while `more` is set it is no longer
than the largest frame and one segment. After `over` nothing more is taken: the stream has no known place in it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

AT_ONCE = 64
"""Messages taken from a segment at a time."""
_SIZE = struct.Struct(">I")


class Lines:
    """Messages end with a line feed; one carriage return before it goes with it. An empty line is an empty message."""

    __slots__ = ("_limit", "more", "over", "rest")

    def __init__(self, max_frame: int) -> None:
        self._limit = max_frame
        self.rest = bytearray()
        self.more = False
        self.over = False

    def take(self, data: bytes, most: int = AT_ONCE) -> list[bytes]:
        """The whole messages in what was left and `data`, the first `most` of them."""
        if self.rest:
            if not self.more and b"\n" not in data:  # only what is new is searched: one byte at a time stays linear
                self.rest += data
                self.over = len(self.rest) > self._limit + 1  # its carriage return may be the last
                return []
            data = bytes(self.rest) + data
            self.rest = bytearray()
        lines = data.split(b"\n", most)
        tail = lines.pop()
        if tail or self.more:
            self.more = len(lines) == most and b"\n" in tail
            self.rest += tail
        if b"\r" in data:
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        if len(data) > self._limit:
            self._measure(lines)
        return lines

    def _measure(self, lines: list[bytes]) -> None:
        for at, line in enumerate(lines):
            if len(line) > self._limit:
                self.over = True
                del lines[at:]
                return
        self.over = not self.more and len(self.rest) > self._limit + 1

    @staticmethod
    def wrap(replies: Sequence[bytes]) -> bytes:
        """The bytes that carry these messages."""
        return replies[0] + b"\n" if len(replies) == 1 else b"\n".join((*replies, b""))


class Lengths:
    """Four bytes big-endian say how many follow."""

    __slots__ = ("_limit", "_need", "more", "over", "rest")

    def __init__(self, max_frame: int) -> None:
        self._limit = max_frame
        self._need = 4  # bytes that `rest` must have until there is anything to do
        self.rest = bytearray()
        self.more = False
        self.over = False

    def take(self, data: bytes, most: int = AT_ONCE) -> list[bytes]:
        """The whole messages in what was left and `data`, the first `most` of them."""
        rest = self.rest
        rest += data
        if len(rest) < self._need:
            return []
        messages: list[bytes] = []
        at, end, self._need, self.more = 0, len(rest), 4, False
        while end - at >= 4:
            (size,) = _SIZE.unpack_from(rest, at)
            if size > self._limit:
                self.over = True
                break
            if end - at - 4 < size:
                self._need = size + 4
                break
            if len(messages) == most:
                self.more = True
                break
            messages.append(bytes(rest[at + 4 : at + 4 + size]))
            at += 4 + size
        del rest[:at]
        return messages

    @staticmethod
    def wrap(replies: Sequence[bytes]) -> bytes:
        """The bytes that carry these messages."""
        parts: list[bytes] = []
        for reply in replies:
            parts += (_SIZE.pack(len(reply)), reply)
        return b"".join(parts)


class Raw:
    """No framing: what has come is a message, in pieces of at most the largest frame."""

    __slots__ = ("_limit", "more", "over", "rest")

    def __init__(self, max_frame: int) -> None:
        self._limit = max_frame
        self.rest = bytearray()
        self.more = False
        self.over = False

    def take(self, data: bytes, most: int = AT_ONCE) -> list[bytes]:
        """What was left and `data`, the first `most` pieces of it."""
        if self.rest:
            data = bytes(self.rest) + data
            self.rest = bytearray()
        limit = self._limit
        if len(data) <= limit and most:
            self.more = False
            return [data] if data else []
        pieces = [data[at : at + limit] for at in range(0, min(len(data), most * limit), limit)]
        self.rest += data[most * limit :]
        self.more = bool(self.rest)
        return pieces

    @staticmethod
    def wrap(replies: Sequence[bytes]) -> bytes:
        """The bytes that carry these messages."""
        return b"".join(replies)


Framer = Lines | Lengths | Raw
FRAMERS: dict[str, type[Framer]] = {"line": Lines, "length": Lengths, "raw": Raw}
