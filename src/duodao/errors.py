"""Every error Duodao raises of its own, split by whose fault it is. A user's own exception is never wrapped in one.

DuodaoError
  UsageError (ValueError)            you asked for something wrong; nothing was started
  Closed (RuntimeError)              you closed it, then used it
    ShutDown                           the queue was shut down
  Deadlock (RuntimeError)            tasks wait for each other in a circle; this one was chosen to give way
    Stalled                            all tasks of a group wait for what none of them will do
  LostUpdate (RuntimeError)          a write would have undone another's; nothing was written
  Broken                             the world broke it
    WorkerDied                         a worker process ended inside an item (signal, os._exit, out of memory)
    CallExited                         the function called sys.exit() or raised what else ends programs
    CommandFailed                      a program ended with an error, was stopped, or answered what isn't its protocol
    RemoteError                        an exception that can't travel between processes; its text is here
    NotPicklable                       a function, input or result that can't travel between processes
    SetupFailed                        a factory of `setup=` failed; the run ends
    OwnerDied                          the holder of a lock ended with it; what the lock protects may be half done
    PeerLost (ConnectionError)         the other side of a queue is gone, or speaks another language
    Damaged                            a file or shared memory doesn't hold what it should
    GuardDied                          the process that owns our children could not be (re)started
    JournalError                       the journal can't be used: says which, and what to do
      JournalMismatch                    it belongs to another function, pipeline or code version
      JournalDamaged                     its file is not a journal or is cut in a way that can't be repaired
      JournalFull                        the disk refused a write
  Busy                               it is in use or took too long
    CallTimeout (TimeoutError)         a call ran longer than `timeout`
    JournalBusy                        another process has the journal open
    TableFull                          too many wait or share at once
  TooManyFailures                    the run was ended by `max_failures`
"""

from __future__ import annotations

import queue as _queue
import signal as _signal
import traceback as _traceback
from collections.abc import Sequence
from typing import Any


class DuodaoError(Exception):
    """The root: `except DuodaoError` catches what Duodao says, and nothing your own functions raise."""


class UsageError(DuodaoError, ValueError):
    """An option or an argument is wrong. Raised before anything starts; the message names what is valid."""


class Closed(DuodaoError, RuntimeError):
    """Something was used after you closed it."""


_Standard: Any = getattr(_queue, "ShutDown", Exception)  # from Python 3.13 on: programs written for it catch that


class ShutDown(Closed, _Standard):  # type: ignore[misc]
    """The queue was shut down: `put` at once, `get` when what was in it has been read."""


class Deadlock(DuodaoError, RuntimeError):
    """Tasks wait for each other in a circle. This one gives way: its wait failed, and it holds what it held before.

    Leaving its `with` blocks lets the others go on; then it may try again. The text has the names of the locks, their
    holders and the stacks. `cycle`: a line per wait, "B waits for 'plate', held by A". `stacks`: (line, frames) of
    each, a frame as (file, line number, function), the outermost first.
    """

    def __init__(self, message: str, cycle: Sequence[str] = (), stacks: Sequence[tuple[str, Any]] = ()) -> None:
        super().__init__(message, tuple(cycle), tuple(stacks))
        self.cycle = tuple(cycle)
        self.stacks = tuple(stacks)

    def __str__(self) -> str:
        parts = [str(self.args[0])]
        for line, frames in self.stacks:  # read and formatted only when shown: one that retries never looks
            summary = _traceback.StackSummary.from_list([(file, number, name, None) for file, number, name in frames])
            parts.append(f"--- {line}\n{''.join(summary.format())}".rstrip())
        return "\n".join(parts)


class Stalled(Deadlock):
    """All tasks of a group wait, without a time-out, for what only one of them could do."""


class LostUpdate(DuodaoError, RuntimeError):
    """Between a read and the write that follows from it another process wrote; the write was not done.

    `key`: what it is about. `writers`: this process and the other, as texts.
    """

    def __init__(self, message: str, key: Any = None, writers: Sequence[str] = ()) -> None:
        super().__init__(message, key, tuple(writers))
        self.key = key
        self.writers = tuple(writers)

    def __str__(self) -> str:
        return str(self.args[0])


class Broken(DuodaoError):
    """Something outside your control failed."""


def _describe_exit(status: int) -> str:
    """`status` as os.waitstatus_to_exitcode gives it: negative = the signal that ended the process."""
    if status >= 0:
        return f"exit code {status}"
    try:
        name = _signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


class WorkerDied(Broken):
    """A worker process ended while it was inside this item.

    `exitcode`: as `subprocess` counts it, negative for a signal. `deaths`: how many workers the item has cost.
    """

    def __init__(self, message: str, *, exitcode: int, deaths: int = 1) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.deaths = deaths

    @classmethod
    def at(cls, what: str, exitcode: int, deaths: int = 1) -> WorkerDied:
        """The error for `what` ("input 17") whose worker ended with `exitcode`."""
        times = "" if deaths == 1 else f" {deaths} times"
        return cls(f"{what} killed its worker{times} ({_describe_exit(exitcode)})", exitcode=exitcode, deaths=deaths)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_died, (self.args[0], self.exitcode, self.deaths)


def _rebuild_died(message: str, exitcode: int, deaths: int) -> WorkerDied:
    return WorkerDied(message, exitcode=exitcode, deaths=deaths)


class CallExited(Broken):
    """The function raised SystemExit, KeyboardInterrupt or GeneratorExit: that ends its item, not your program."""


class CommandFailed(Broken):
    """A program ended with an error, was stopped, or answered what isn't its protocol.

    `exitcode`: as `subprocess` counts it, negative for a signal; None: it still ran. `stdout`, `stderr`: the ends of
    what it had said, bytes, 64 kB of each at most.
    """

    def __init__(self, message: str, *, exitcode: int | None = None, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.stdout = stdout
        self.stderr = stderr

    @classmethod
    def at(
        cls, what: str, did: str = "", *, exitcode: int | None = None, stdout: bytes = b"", stderr: bytes = b""
    ) -> CommandFailed:
        """The error for `what`, a program, which `did` something, or ended with that exit code; with its last words."""
        did = did or f"ended with {_describe_exit(exitcode or 0)}"
        lines = stderr[-1000:].decode("utf-8", "backslashreplace").split("\n")
        said = " | ".join(line.strip() for line in lines[-8:] if line.strip())
        return cls(f"{what} {did}{said and f': {said[-500:]}'}", exitcode=exitcode, stdout=stdout, stderr=stderr)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_failed, (self.args[0], self.exitcode, self.stdout, self.stderr)


def _rebuild_failed(message: str, exitcode: int | None, stdout: bytes, stderr: bytes) -> CommandFailed:
    return CommandFailed(message, exitcode=exitcode, stdout=stdout, stderr=stderr)


class RemoteError(Broken):
    """An exception that can't be pickled or unpickled. `remote_type` is its class name, `remote_text` its traceback."""

    def __init__(self, message: str, remote_type: str = "", remote_text: str = "") -> None:
        super().__init__(message, remote_type, remote_text)
        self.remote_type = remote_type
        self.remote_text = remote_text

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteTraceback(Exception):
    """The traceback text of another process, attached as `__cause__`. Source: concurrent.futures.process."""

    @property
    def tb(self) -> str:
        """The text, under the standard library's name."""
        return f'\n"""\n{self.args[0]}"""'

    def __str__(self) -> str:
        return self.tb


class NotPicklable(Broken):
    """A function, an input or a result can't travel between processes. `what` says which of them."""

    def __init__(self, message: str, what: str = "value") -> None:
        super().__init__(message, what)
        self.what = what

    def __str__(self) -> str:
        return str(self.args[0])


class SetupFailed(Broken):
    """A factory of `setup=` raised; its own exception is the `__cause__`. The run ends: no call can have it."""


class OwnerDied(Broken):
    """The last holder of a lock ended without releasing it. `holder`: who it was.

    A value more often than an exception: `acquire` and `with` of a shared lock give it, truthy, in place of True.
    """

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message, holder)
        self.holder = holder

    def __str__(self) -> str:
        return str(self.args[0])


class PeerLost(Broken, ConnectionError):
    """The other side of a queue is gone, refused us, or sent what is not of our protocol."""


class Damaged(Broken):
    """A queue's file, or a piece of shared memory, doesn't hold what it should: nothing was read from it."""


class GuardDied(Broken):
    """The process that forks and guards our children can't be started."""


class JournalError(Broken):
    """The journal can't be used."""


class JournalMismatch(JournalError):
    """The journal was written by another function, pipeline or version of the code."""


class JournalDamaged(JournalError):
    """The file is not a journal, or is damaged beyond what can be repaired without a wrong result."""


class JournalFull(JournalError):
    """The disk refused a write. What was committed before is safe; run the same command when there is room."""


class Busy(DuodaoError):
    """It is in use, or it took too long."""


class CallTimeout(Busy, TimeoutError):
    """A call ran longer than `timeout` seconds."""


class JournalBusy(Busy):
    """Another process has this journal open."""


class TableFull(Busy):
    """As many as there is room for wait or share already; the message says how many, and of what."""


class TooManyFailures(DuodaoError):
    """The run was ended by `max_failures`. `report` holds what was done until then."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
