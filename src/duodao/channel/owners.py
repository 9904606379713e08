"""Whose a queue's file is, and which of the processes that had it open still live."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat

from duodao.errors import Broken, Damaged, DuodaoError, UsageError


def check_place(path: str) -> None:
    """UsageError: something else than a file is there, or a new file would lie where everybody may change it."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{path} is no regular file: a queue can't be kept there")
    with contextlib.suppress(OSError):
        folder = os.stat(os.path.dirname(path)).st_mode
        if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
            raise UsageError(f"everybody may write to the folder of {path}: what is in a queue there isn't ours alone")


def check_ours(found: os.stat_result, path: str) -> None:
    """UsageError: others may have written what is in this file. Source: M13; pickle's own warning."""
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(
            f"{path} is not ours alone (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}): items are "
            "pickled, so a queue file must be of this user, and group and others mustn't write to it (chmod 600)"
        )


def explain(error: sqlite3.Error, path: str) -> DuodaoError:
    """SQLite's error as ours."""
    kind = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return Broken(f"the disk refused the queue file {path} ({error}): what was put before is safe, make room")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Broken(f"another program holds the queue file {path} ({error}): only queues may open it")
    return damaged(path, str(error))


def damaged(path: str, why: str) -> Damaged:
    """The error for a file that is no queue, or no longer."""
    return Damaged(f"{path} is not a queue of Duodao, or is damaged ({why}): it is left as it is")


def check_sides(path: str) -> None:
    """As check_ours, of SQLite's log and index beside the file, where they are."""
    for side in (path + "-wal", path + "-shm"):
        with contextlib.suppress(FileNotFoundError):
            check_ours(os.lstat(side), side)


def check_there(fd: int, path: str) -> None:
    """Broken: the file that is open here no longer has its name. What is put into it would be lost with it."""
    mine = os.fstat(fd)
    try:
        found = os.stat(path)
    except OSError:
        found = None
    if found is None or (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino):
        raise Broken(
            f"the queue file {path} was {'removed' if found is None else 'replaced'} while it was open, and its items "
            "with it: close this queue, and make another"
        )


def start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; None: it isn't there, or only its zombie is."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def space() -> str:
    """Where pids mean the same: this boot, this pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "- -"
