"""A program that runs, with its three pipes, as the command lane's one thread sees it; and how one per item behaves."""

from __future__ import annotations

import array
import fcntl
import os
import shlex
import termios
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from duodao.children import guard
from duodao.children.lifeline import lift
from duodao.errors import CallTimeout, CommandFailed
from duodao.lanes.base import Batch, Deliver, Failure
from duodao.lanes.program import Command, as_result, as_stdin

TAIL = 64 << 10
"""Bytes of stderr, and of a failed program's stdout, that are kept."""
_READ = 256 << 10
_SHOWN = 200


class Call:
    """One item on its way through the lane. alone: nothing else may be in its worker meanwhile."""

    __slots__ = ("alone", "batch", "began", "cancelled", "deliver", "item", "position", "size")

    def __init__(self, batch: Batch, deliver: Deliver, position: int, *, alone: bool) -> None:
        self.batch = batch
        self.deliver = deliver
        self.position = position
        self.item = batch.items[position]
        self.alone = alone
        self.began = 0.0
        self.size = 0
        self.cancelled = False


Outcome = tuple[Call, Any, Failure | None]
Then = Callable[["Running", Exception | None], object]


class Fault(Exception):
    """The program did what it may not: it is killed. fatal: nothing it says can be trusted, so the run ends.

    outcomes: of the calls that it answered before.
    """

    def __init__(self, did: str, *, fatal: bool = False) -> None:
        super().__init__(did)
        self.fatal = fatal
        self.outcomes: list[Outcome] = []


class Running:
    """A started program. due: when the lane must look at it. doom: what its end by our kill means for its calls.

    then: called when it runs, or can't, from another thread. OSError when there is no descriptor or process for it.
    """

    def __init__(self, command: Command, argv: list[str], then: Then, *, feeds: bool) -> None:
        self.command = command
        self.argv = argv
        self.calls: dict[int, Call] = {}
        self.due = inf
        self.state = "busy"
        self.doom: Failure | None = None
        self.began = monotonic()
        self.out = self.err = self.inp = -1
        self._tail = bytearray()
        self._backlog: deque[memoryview] = deque()
        theirs: list[int] = []
        try:
            reader = None
            if feeds:
                reader, self.inp = _pipe()
                theirs.append(reader)
                os.set_blocking(self.inp, False)
            self.out, out = _pipe()
            theirs.append(out)
            self.err, err = _pipe()
            theirs.append(err)
            os.set_blocking(self.out, False)
            os.set_blocking(self.err, False)
            self.child = guard.command(
                argv,
                env={**os.environ, **command.env} if command.env else None,
                cwd=None if command.cwd is None else os.fspath(command.cwd),
                stdin=reader,
                stdout=out,
                stderr=err,
                then=lambda _, error: then(self, error),
            )
        except BaseException:
            self.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    # -- the pipes ----------------------------------------------------------------------------------------------------

    def read(self, fd: int, size: int = _READ) -> bytes | None:
        """What is there, b"" at the end, None for nothing now. stderr goes to the tail that is kept."""
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return None
        if fd == self.err:
            self._tail += data
            if len(self._tail) > 2 * TAIL:
                del self._tail[:-TAIL]
        return data

    def rest(self) -> bytes:
        """After its end: what it left in its pipes. Counted first: a process that left the group may go on writing."""
        parts = []
        for fd in (self.err, self.out):
            left = _waiting(fd) if fd >= 0 else 0
            while left > 0 and (data := self.read(fd, min(left, _READ))):
                left -= len(data)
                if fd == self.out:
                    parts.append(data)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Have it written by `flush`."""
        self._backlog.append(memoryview(data))

    def flush(self) -> bool:
        """Write what the pipe takes; True when more is left. BrokenPipeError when it reads no more."""
        backlog = self._backlog
        try:
            while backlog:
                wrote = os.writev(self.inp, [backlog[at] for at in range(min(len(backlog), 64))])
                while backlog and wrote >= len(backlog[0]):
                    wrote -= len(backlog.popleft())
                if wrote:
                    backlog[0] = backlog[0][wrote:]
        except BlockingIOError:
            return True
        return False

    def unread(self) -> int:
        """Bytes that were written for it, or wait to be, and that it has not read."""
        return sum(map(len, self._backlog)) + (_waiting(self.inp) if self.inp >= 0 else 0)

    def end_input(self) -> None:
        """Close its stdin: nothing more comes."""
        self._backlog.clear()
        if self.inp >= 0:
            os.close(self.inp)
            self.inp = -1

    def close(self) -> None:
        """Close all pipes. Idempotent."""
        self.end_input()
        for fd in (self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = -1

    # -- what is said of it -------------------------------------------------------------------------------------------

    @property
    def stderr(self) -> bytes:
        """The end of it."""
        return bytes(self._tail[-TAIL:])

    def what(self) -> str:
        """The program with its arguments, as messages name it."""
        text = shlex.join([*self.command.words, *self.argv[4:]] if self.command.shell else self.argv)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

    def failed(self, did: str = "", *, code: int | None = None) -> CommandFailed:
        """The error that it `did` something, or ended with `code`."""
        stdout = self.printed()[-TAIL:]
        return CommandFailed.at(self.what(), did, exitcode=code, stdout=stdout, stderr=self.stderr)

    def overdue(self, call: Call, limit: float) -> Failure:
        """What a call's time-out means."""
        text = f"{self.what()} ran longer than its time-out of {limit:g} s; it was killed with all that it started"
        return Failure(CallTimeout(text), "timeout", monotonic() - call.began)

    # -- what the protocols differ in ---------------------------------------------------------------------------------

    def begin(self, call: Call, number: int) -> None:
        """Give it the call."""
        raise NotImplementedError

    def take(self, data: bytes) -> list[Outcome]:
        """What it printed. Fault for what it may not."""
        raise NotImplementedError

    def printed(self) -> bytes:
        """What it said on stdout that is not dealt with."""
        raise NotImplementedError

    def ended(self, code: int) -> list[Outcome]:
        """All was read. What its end means for the calls it had."""
        raise NotImplementedError

    def blame(self, error: BaseException, kind: str = "error") -> list[Outcome]:
        """The calls it has fail, or are lost where it can't be known which of them is to blame."""
        calls = list(self.calls.values())
        self.calls.clear()
        if len(calls) > 1:
            return [(call, None, Failure(None, "lost")) for call in calls]
        return [(call, None, Failure(error, kind, monotonic() - call.began)) for call in calls]


class Once(Running):
    """One process for one item."""

    def __init__(self, command: Command, argv: list[str], then: Then, item: Any) -> None:
        feeds = command.stdin == "item"
        data = as_stdin(item) if feeds else b""
        self._parts: list[bytes] = []
        self._size = 0
        super().__init__(command, argv, then, feeds=feeds)
        self.write(data)

    def begin(self, call: Call, number: int) -> None:
        call.began = self.began
        self.calls[number] = call

    def take(self, data: bytes) -> list[Outcome]:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self.command.max_output:
            raise Fault(f"printed more than max_output={self.command.max_output} bytes and was killed")
        return []

    def printed(self) -> bytes:
        return b"".join(self._parts)

    def ended(self, code: int) -> list[Outcome]:
        if code:
            return self.blame(self.failed(code=code))
        calls = list(self.calls.values())
        self.calls.clear()
        return [(call, as_result(self.command, self.printed()), None) for call in calls]


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    return lift(reader), lift(writer)


def _waiting(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
