"""A lifeline: a pipe whose write end only we hold, and whose end kills a child's process group from inside the kernel.

The child arms the read end with F_SETSIG=SIGKILL, F_SETOWN=-its group and O_ASYNC. When the last copy of the write end
is closed, by `drop` or because the supervisor died in any way, the kernel itself sends SIGKILL to the group. Nothing of
the child has to run for that: a child that holds the GIL in C dies, and so does an exec'd program. The kernel keeps the
group, not its number, so a number that is used again is never hit.

Rejected: PR_SET_PDEATHSIG, which fires when the *thread* that forked ends (https://github.com/golang/go/issues/27505);
a watcher thread, which needs the GIL; signalling by pid, which races with the reuse of the number.

Invariant: no process but the supervisor holds a write end. They are close-on-exec, forked copies close them before
anything else runs, and the lock is held across every fork, so none is forked between its making and its registration.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

_F_SETSIG = 10  # fcntl.h of Linux; the fcntl module doesn't name it


class _Private:
    """The descriptors of this process that no forked copy may hold."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: a signal handler may fork while its own thread holds it
        self.fds: set[int] = set()

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


_private = _Private()
os.register_at_fork(
    before=_private.before_fork,
    after_in_parent=_private.after_fork_in_parent,
    after_in_child=_private.after_fork_in_child,
)


def lift(fd: int) -> int:
    """`fd` as a number above 2, close-on-exec.

    In a program whose stdout is closed a pipe may get number 1; what a C library prints would go into it, and one byte
    in a lifeline kills the child.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def private_pipe() -> tuple[int, int]:
    """A pipe (reader, writer) that forked copies don't get; `close` it with `close_private`."""
    with _private.lock:
        reader, writer = os.pipe()
        reader, writer = lift(reader), lift(writer)
        _private.fds.update((reader, writer))
        return reader, writer


@contextlib.contextmanager
def unforked() -> Iterator[Callable[[int], int]]:
    """Nothing forks in here. What the given function is called with becomes private: forked copies don't get it."""
    with _private.lock:
        yield _keep


def _keep(fd: int) -> int:
    fd = lift(fd)
    _private.fds.add(fd)
    return fd


def close_private(fd: int) -> None:
    """Close one end. In a forked copy, where it is closed already, and a second time, nothing happens."""
    with _private.lock:
        if fd in _private.fds:
            _private.fds.discard(fd)
            os.close(fd)


class Lifeline:
    """One lifeline, held by the supervisor. `reader` goes to the child; `sent` says that it is on its way."""

    __slots__ = ("_writer", "reader")

    def __init__(self) -> None:
        self.reader, self._writer = private_pipe()

    def sent(self) -> None:
        """Close our copy of the read end. Idempotent."""
        with _private.lock:  # the number may be another's by the time of a second call
            close_private(self.reader)
            self.reader = -1

    def drop(self) -> None:
        """End the child's process group, now. Idempotent; in a forked copy it does nothing."""
        with _private.lock:
            close_private(self._writer)
            self._writer = -1


def arm(reader: int, group: int = 0) -> None:
    """From here on the process group ends with the lifeline: that of the caller, who leads it, or the one given."""
    fcntl.fcntl(reader, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, -(group or os.getpid()))
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(reader, 0)
    if poll.poll(0):  # dropped before it was armed, when the kernel had nobody to tell
        os.killpg(group, signal.SIGKILL) if group else os.kill(os.getpid(), signal.SIGKILL)
