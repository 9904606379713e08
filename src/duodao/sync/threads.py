"""Threads as other processes know them: by the kernel's number, which stands in the mutexes that they hold."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from duodao.sync import graph

_EXITING = 0x4  # of the flags in /proc/TID/stat: PF_EXITING, include/linux/sched.h
_idents: dict[int, int] = {}
"""Native number -> `get_ident` of the threads of this process that ever took a shared lock, while they live."""


class _Entry:
    """Takes the thread out of the table as it ends."""

    __slots__ = ("_leave", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._leave = _idents.pop  # kept: at the interpreter's end the module is empty before the last thread's entry
        _idents[tid] = threading.get_ident()

    def __del__(self) -> None:
        self._leave(self.tid, None)


class _Me(threading.local):
    """word: process and thread in one number, as the last holder of a lock writes it into the lock's cell."""

    def __init__(self) -> None:
        self.tid = threading.get_native_id()
        self.word = (os.getpid() << 32) | self.tid
        self.entry = _Entry(self.tid)


ME = _Me()


def _forked() -> None:
    _idents.clear()
    ME.__dict__.clear()
    ME.__init__()  # type: ignore[misc]  # the copy has another number


os.register_at_fork(after_in_child=_forked)


def unit_of(tid: int) -> graph.Unit:
    """The thread with this native number: one of ours by its ident, else Far."""
    ident = _idents.get(tid)
    if ident is None and tid == os.getpid():
        ident = threading.main_thread().ident
    return graph.Far(tid) if ident is None else ident


def holder_tid(ident: int) -> int:
    """The native number of a thread of ours that ever took a shared lock; 0 for any other."""
    return next((tid for tid, known in list(_idents.items()) if known == ident), 0)


def tid_of(unit: graph.Unit | None) -> int:
    """The native number of a thread, or of the thread that runs a task; 0 when it isn't known."""
    if isinstance(unit, graph.Far):
        return unit.tid
    ident = unit if unit is None or isinstance(unit, int) else graph.loop_thread(unit)
    if ident is None:
        return 0
    known = threading._active.get(ident)  # type: ignore[attr-defined]  # enumerate() takes a lock, we may be in it
    return holder_tid(ident) or getattr(known, "native_id", None) or 0


def describe(pid: int, tid: int, name: str = "") -> str:
    """As messages name a thread of any process; pid: 0 where it isn't known."""
    if not pid and sys.platform == "linux":
        with contextlib.suppress(OSError, StopIteration, ValueError), open(f"/proc/{tid}/status", "rb") as file:
            pid = int(next(line.split()[1] for line in file if line.startswith(b"Tgid:")))
    if pid == tid:
        return f"process {pid}"
    thread = f"thread {name!r}" if name else f"thread {tid}"
    return f"{thread} of process {pid}" if pid else thread


def is_alive(tid: int) -> bool:
    """Is there a thread with this number that is not about to end? The kernel frees its mutexes a little before."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] not in {b"Z", b"X"} and not int(fields[6]) & _EXITING
