"""Every error Duodao raises of its own, split by whose fault it is. A user's own exception is never wrapped in one.

DuodaoError
  UsageError (ValueError)            you asked for something wrong; nothing was started
  Closed (RuntimeError)              you closed it, then used it
  Broken                             the world broke it
    WorkerDied                         a worker process ended inside an item (signal, os._exit, out of memory)
    CallExited                         the function called sys.exit() or raised what else ends programs
    RemoteError                        an exception that can't travel between processes; its text is here
    NotPicklable                       a function, input or result that can't travel between processes
    SetupFailed                        a factory of `setup=` failed; the run ends
    GuardDied                          the process that owns our children could not be (re)started
    JournalError                       the journal can't be used: says which, and what to do
      JournalMismatch                    it belongs to another function, pipeline or code version
      JournalDamaged                     its file is not a journal or is cut in a way that can't be repaired
      JournalFull                        the disk refused a write
  Busy                               it is in use or took too long
    CallTimeout (TimeoutError)         a call ran longer than `timeout`
    JournalBusy                        another process has the journal open
  TooManyFailures                    the run was ended by `max_failures`
"""

from __future__ import annotations

import signal as _signal
from typing import Any


class DuodaoError(Exception):
    """The root: `except DuodaoError` catches what Duodao says, and nothing your own functions raise."""


class UsageError(DuodaoError, ValueError):
    """An option or an argument is wrong. Raised before anything starts; the message names what is valid."""


class Closed(DuodaoError, RuntimeError):
    """Something was used after you closed it."""


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

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class NotPicklable(Broken):
    """A function, an input or a result can't travel between processes. `what` says which of them."""

    def __init__(self, message: str, what: str = "value") -> None:
        super().__init__(message, what)
        self.what = what

    def __str__(self) -> str:
        return str(self.args[0])


class SetupFailed(Broken):
    """A factory of `setup=` raised; its own exception is the `__cause__`. The run ends: no call can have it."""


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


class TooManyFailures(DuodaoError):
    """The run was ended by `max_failures`. `report` holds what was done until then."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
