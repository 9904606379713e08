"""A file rings: whoever changes what it holds touches it, and a thread in each process that waits hears that.

inotify, by ctypes, and a pidfd for each process whose death would matter. Nothing polls. The touch comes before the
change is committed, and a waiter that heard it takes the file's lock before it looks: so it looks when the change is
there, or is undone, and a toucher that was killed in between has changed nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
import threading
from collections.abc import Callable, Iterable

from duodao.children import lifeline
from duodao.errors import TableFull, UsageError

_IN_ATTRIB, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x4, 0x400, 0x800  # sys/inotify.h of Linux
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Listener:
    """Calls `heard()` in its own thread after each touch of the file and each death, until `stop`.

    TableFull: this user has no inotify instance left. UsageError: a system without inotify.
    """

    def __init__(self, path: str, heard: Callable[[], object]) -> None:
        if not sys.platform.startswith("linux"):
            raise UsageError("waiting on a queue in a file needs Linux's inotify: use block=False here")
        libc = ctypes.CDLL(None, use_errno=True)
        with lifeline.unforked() as private:
            fd = libc.inotify_init1(_FLAGS)
            if fd < 0:
                raise TableFull(
                    f"no inotify instance is left to wait for {path} with ({os.strerror(ctypes.get_errno())}): raise "
                    "/proc/sys/fs/inotify/max_user_instances, or let fewer processes wait"
                )
            self._fd = private(fd)
        if libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF) < 0:
            lifeline.close_private(self._fd)
            raise UsageError(f"{path} can't be watched: {os.strerror(ctypes.get_errno())}")
        self._heard = heard
        self._pid = os.getpid()
        self._lives: dict[tuple[int, int], int] = {}  # (pid, start) -> pidfd
        self._wanted: set[tuple[int, int]] = set()
        self._reader, self._waker = lifeline.private_pipe()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="duodao-queue-file", daemon=True)
        self._thread.start()

    def mind(self, processes: Iterable[tuple[int, int]]) -> None:
        """The processes (pid, start) whose death is to be heard."""
        wanted = set(processes)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._waker, b"!")

    def stop(self) -> None:
        """End the thread and wait until it has. In a forked copy nothing happens."""
        if os.getpid() == self._pid:
            self._stopping = True
            self._wake()
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._watch_lives()
                poll = select.poll()
                for fd in (self._fd, self._reader, *self._lives.values()):
                    poll.register(fd, select.POLLIN)
                ready = {fd for fd, _ in poll.poll()}
                if self._reader in ready:
                    os.read(self._reader, 4096)
                if self._fd in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._fd, 65536)
                dead = [life for life, fd in self._lives.items() if fd in ready]
                for life in dead:
                    lifeline.close_private(self._lives.pop(life))
                    self._wanted.discard(life)
                if dead or self._fd in ready:
                    self._heard()
        finally:
            for fd in (self._fd, self._reader, self._waker, *self._lives.values()):
                lifeline.close_private(fd)

    def _watch_lives(self) -> None:
        wanted = self._wanted.copy()
        for life in self._lives.keys() - wanted:
            lifeline.close_private(self._lives.pop(life))
        for life in wanted - self._lives.keys():
            with contextlib.suppress(OSError), lifeline.unforked() as private:  # ended: the next look finds out
                self._lives[life] = private(os.pidfd_open(life[0]))
