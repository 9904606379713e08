"""What the calls of tests/faults/test_pool_faults.py do, importable by workers."""

from __future__ import annotations

import os
import signal


def die(how=signal.SIGKILL):
    """End the worker."""
    os.kill(os.getpid(), how)


def leave(code):
    os._exit(code)


def note(path, number, victim=None):
    """One line per call that began; number `victim` kills its worker."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    if number == victim:
        die()
    return number


def pid_then_wait(path):
    """Say who runs this, then wait until somebody opens the FIFO for writing."""
    with open(f"{path}.pid", "w") as file:
        file.write(str(os.getpid()))
    with open(path) as file:
        return file.read()


class DiesWhenUnpickled:
    """An argument whose unpickling ends the worker."""

    def __reduce__(self):
        return os._exit, (5,)


class RaisesWhenUnpickled:
    """An argument, or a value, whose unpickling raises."""

    def __reduce__(self):
        return int, ("no number",)


def stubborn():
    """The value can't be unpickled in the caller."""
    return RaisesWhenUnpickled()


def lasting(number):
    """Leaves a line, whole, in the program's output."""
    os.write(1, f"call {number}\n".encode())
    return number
