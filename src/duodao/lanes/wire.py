"""Frames on a pipe between a process lane and one worker, and what pickles into them.

    | kind | flags | seq | count | meta length | body length | seconds |  meta  |  body  |

meta is marshalled, ours and of builtin values only; body is the user's, pickled. They are apart so that whoever can't
unpickle a body still knows which batch it belongs to, and says so.
"""

from __future__ import annotations

import marshal
import os
import pickle
import struct
import traceback
from collections.abc import Iterable
from typing import Any, NamedTuple

from duodao.errors import NotPicklable, RemoteError, RemoteTraceback
from duodao.lanes.foreign import set_cause
from duodao.pickling import Raised as Raised  # noqa: PLC0414  # the lanes have these from here
from duodao.pickling import dumps as dumps  # noqa: PLC0414
from duodao.pickling import not_picklable as not_picklable  # noqa: PLC0414
from duodao.pickling import said
from duodao.pickling import shown as shown  # noqa: PLC0414

HEAD = struct.Struct("<BBxxIIIQd")

# To the worker.
RUN, BATCH, OUTBOX, END, CANCEL = 1, 2, 3, 4, 5
# From the worker.
READY, PART, UNREAD, UNLOADED, FATAL, REPLACE, OUTPUT, LOG, ENDED, RETURNED, NOTICE = range(10, 21)

ITEMISED = 1
"""Flag: the body is a list of pickles, one per item, so that one bad item harms no other and a death names it."""
CAREFUL = 2
"""Flag: note which item is being run."""
LAST = 4
"""Flag: the batch has no more outcomes than these."""


class Frame(NamedTuple):
    """One message as it arrived."""

    kind: int
    flags: int
    seq: int
    number: int
    seconds: float
    meta: Any
    body: memoryview | bytes


def parts(
    kind: int,
    seq: int = 0,
    *,
    flags: int = 0,
    count: int = 0,
    seconds: float = 0.0,
    meta: Any = None,
    body: bytes = b"",
) -> list[bytes]:
    """One frame as the pieces to write: the head with its meta, and the body, which is not copied when it is long."""
    packed = b"" if meta is None else marshal.dumps(meta)
    head = HEAD.pack(kind, flags, seq, count, len(packed), len(body), seconds) + packed
    if len(body) < 65536:
        return [head + body]
    return [head, body]


def read_frame(fd: int) -> Frame | None:
    """The next frame of a blocking pipe; None at its end."""
    head = os.read(fd, HEAD.size)
    if len(head) < HEAD.size:
        rest = _read_exact(fd, HEAD.size - len(head)) if head else None
        if rest is None:
            return None
        head += bytes(rest)
    kind, flags, seq, count, meta_size, body_size, seconds = HEAD.unpack(head)
    data = _read_exact(fd, meta_size + body_size)
    if data is None:
        return None
    return _frame(kind, flags, seq, count, seconds, memoryview(data), meta_size)


def _frame(kind: int, flags: int, seq: int, count: int, seconds: float, data: memoryview, meta_size: int) -> Frame:
    meta = marshal.loads(data[:meta_size]) if meta_size else None  # noqa: S302 - our own worker wrote it
    return Frame(kind, flags, seq, count, seconds, meta, data[meta_size:])


def _read_exact(fd: int, size: int) -> bytes | bytearray | None:
    if not size:
        return b""
    data = os.read(fd, size)
    if len(data) == size:
        return data
    whole = bytearray(size)
    view = memoryview(whole)
    got = len(data)
    view[:got] = data
    while got < size:
        read = os.readv(fd, [view[got:]])
        if not read:
            return None
        got += read
    return whole


class Reader:
    """Frames from a pipe that is read without blocking: a worker stopped in the middle of one must not stop the others.

    `buffer` may be shared by all readers of a thread: between calls nothing is left in it.
    """

    __slots__ = ("_buffer", "_filled", "_pending", "_wanted", "fd")

    def __init__(self, fd: int, buffer: bytearray) -> None:
        self.fd = fd
        self._buffer = memoryview(buffer)
        self._pending = bytearray()
        self._filled = 0
        self._wanted = 0

    def read(self) -> Iterable[Frame]:
        """The frames that are complete now; the bodies are valid until the next call. EOFError at the pipe's end."""
        if self._wanted:  # in the middle of a long frame: straight into its place
            got = os.readv(self.fd, [memoryview(self._pending)[self._filled :]])
            if not got:
                raise EOFError
            self._filled += got
            if self._filled < self._wanted:
                return []
            whole, self._pending, self._wanted, self._filled = self._pending, bytearray(), 0, 0
            return [self._cut(memoryview(whole), 0)[0]]
        kept = len(self._pending)
        self._buffer[:kept] = self._pending
        got = os.readv(self.fd, [self._buffer[kept:]])
        if not got:
            raise EOFError
        return self._split(self._buffer[: kept + got])

    def _split(self, data: memoryview) -> list[Frame]:
        frames: list[Frame] = []
        at = 0
        while len(data) - at >= HEAD.size:
            head = HEAD.unpack_from(data, at)
            size = HEAD.size + head[4] + head[5]
            if len(data) - at < size:
                if size > len(self._buffer) // 2:
                    self._filled = len(data) - at
                    self._wanted = size
                    self._pending = bytearray(size)
                    self._pending[: self._filled] = data[at:]
                    return frames
                break
            frame, at = self._cut(data, at)
            frames.append(frame)
        self._pending = bytearray(data[at:])
        return frames

    @staticmethod
    def _cut(data: memoryview, at: int) -> tuple[Frame, int]:
        kind, flags, seq, count, meta_size, body_size, seconds = HEAD.unpack_from(data, at)
        begin = at + HEAD.size
        end = begin + meta_size + body_size
        return _frame(kind, flags, seq, count, seconds, data[begin:end], meta_size), end


def plain(blobs: list[bytes]) -> bytes:
    """A list of pickles as a body."""
    return pickle.dumps(blobs, 5)


def dump_each(values: Iterable[Any], what: str) -> tuple[list[bytes], dict[int, NotPicklable]]:
    """Every value pickled by itself; those that can't be are b"" and in the second part, by position."""
    blobs: list[bytes] = []
    bad: dict[int, NotPicklable] = {}
    for position, value in enumerate(values):
        try:
            blobs.append(dumps(value))
        except Raised as error:
            bad[position] = not_picklable(value, what, error)
            blobs.append(b"")
    return blobs, bad


def dump_error(error: BaseException) -> bytes:
    """An exception with its traceback; one that does not survive the round trip becomes a RemoteError, here and now."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # a property of its class raised
        text = said(error)
    try:
        data = dumps((error, text))
        back = pickle.loads(data)[0]
        if type(back) is type(error) or type(back).__qualname__ == type(error).__qualname__:
            return data
    except BaseException:  # noqa: S110 - its own __reduce__ or __init__ may do anything
        pass
    return pickle.dumps((_remote(error, text), text), 5)


def _remote(error: BaseException, text: str) -> RemoteError:
    return RemoteError(f"{said(error)} (the exception itself can't be pickled)", type(error).__qualname__, text)


def load_error(data: bytes) -> BaseException:
    """What `dump_error` packed, the remote traceback as its cause; a RemoteError where it can't be unpickled here."""
    try:
        error, text = pickle.loads(data)
    except BaseException as failed:  # of the lane's own thread: what escaped would end it
        return RemoteError(f"an exception of the worker can't be unpickled here ({said(failed)})")
    if isinstance(error, BaseException):
        set_cause(error, RemoteTraceback(text))
        return error
    return RemoteError(f"the worker raised {shown(error)}, which is no exception here", remote_text=text)


def write_all(fd: int, pieces: list[Any]) -> None:
    """Write what `parts` made, whole; blocks while the pipe is full. Uses up `pieces`."""
    while pieces:
        wrote = os.writev(fd, pieces)
        while pieces and wrote >= len(pieces[0]):
            wrote -= len(pieces.pop(0))
        if wrote:
            pieces[0] = memoryview(pieces[0])[wrote:]
