"""A lifeline: a pipe whose write end only we hold, and whose end kills a child's process group from inside the kernel.

The child arms the read end with F_SETSIG=SIGKILL, F_SETOWN=-its group and O_ASYNC. When the last copy of the write end is
closed, by `drop` or because the supervisor died in any way, the kernel itself sends SIGKILL to the group. Nothing of the
child has to run for that: a child that holds the GIL in C dies, and so does an exec'd program. The kernel keeps the group,
not its number, so a number that is used again is never hit.

Rejected: PR_SET_PDEATHSIG, which fires when the *thread* that forked ends (https://github.com/golang/go/issues/27505);
a watcher thread, which needs the GIL; signalling by pid, which races with its reuse.

Invariant: no process but the supervisor holds a write end. They are close-on-exec, `_after_fork` closes them in forked
copies, and `_lock` is held across every fork, so that none is forked between its making and its entry in `_open`.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading

_F_SETSIG = 10  # fcntl.h, Linux; the fcntl module doesn't name it
_lock = threading.RLock()  # re-entrant: a signal handler may fork while its own thread holds it
_open: set[int] = set()


def lift(fd: int) -> int:
    """`fd` as a number above 2. In a program whose stdout is closed a pipe may get number 1, where any print of a C
    library would reach it, and one byte written into a lifeline kills the child."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


class Lifeline:
    """One lifeline, held by the supervisor. `reader` goes to the child; `sent` says that it is there."""

    __slots__ = ("_writer", "reader")

    def __init__(self) -> None:
        with _lock:
            reader, writer = os.pipe()
            self.reader, self._writer = lift(reader), lift(writer)
            _open.update((self.reader, self._writer))

    def sent(self) -> None:
        """The child has the read end: close ours."""
        with _lock:
            if self.reader in _open:
                _open.discard(self.reader)
                os.close(self.reader)
            self.reader = -1

    def drop(self) -> None:
        """End the child's process group, now. Idempotent; after a fork, in the copy, it does nothing."""
        with _lock:
            if self._writer in _open:
                _open.discard(self._writer)
                os.close(self._writer)
            self._writer = -1


def arm(reader: int) -> None:
    """In the child, as leader of its process group: from here on the kernel ends the group with the lifeline."""
    fcntl.fcntl(reader, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(reader, 0)
    if poll.poll(0):  # it was dropped before it was armed: the kernel had nobody to tell
        os.kill(os.getpid(), signal.SIGKILL)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for fd in _open:
        os.close(fd)
    _open.clear()


def _acquire() -> None:
    _lock.acquire()


def _release() -> None:
    _lock.release()


os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_after_fork)
