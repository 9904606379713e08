"""What the crash table runs: five moments, six ways, and values that fail at their moment. Importable by workers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time


class Oops(Exception):
    """The error of the table's row "raise"."""


def fail(how):
    """Fail in one of the table's six ways."""
    if how == "raise":
        raise Oops(how)
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "SIGSEGV":
        quiet()
        ctypes.string_at(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        eat()
    raise AssertionError(how)


def quiet():
    """No core file, and no traceback of faulthandler in the test's output."""
    import faulthandler

    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def eat():
    """Ask for more than this process may have: what a limit on memory does to a program."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), hard))
    try:
        held = [bytearray(32 << 20) for _ in range(64)]
        del held
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class AtPickle:
    """Fails when it is pickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        fail(self.how)


class AtUnpickle:
    """Fails when it is unpickled; only in a process other than `spared`, so that a test can make one and pass it on."""

    def __init__(self, how, spared=0):
        self.how = how
        self.spared = spared

    def __reduce__(self):
        return unpickle, (self.how, self.spared)


def unpickle(how, spared):
    if os.getpid() != spared:
        fail(how)
    return how


def run(item):
    """Item ("run", how) fails in the call; ("result", how) fails as its result is pickled; others come back."""
    if isinstance(item, tuple) and item[0] == "run":
        fail(item[1])
    if isinstance(item, tuple) and item[0] == "result":
        return AtPickle(item[1])
    if isinstance(item, tuple) and item[0] == "back":
        return AtUnpickle(item[1], os.getpid())
    return item


class TwoArgs(Exception):
    """Does not unpickle: its __init__ wants two arguments and its args hold one."""

    def __init__(self, one, two):
        super().__init__(one)


def raise_two(item):
    if item == 3:
        raise TwoArgs(1, 2)
    return item


def kill_self_once(item):
    """Kills its worker the first time an item comes, as told by a file."""
    path, number, total = item
    marker = f"{path}/{number}"
    if number == total // 2 and not os.path.exists(marker):
        with open(marker, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{path}/runs", "a") as file:
        file.write(f"{number}\n")
    return number


def hang(item):
    """Item 2 never returns; it holds the GIL in C, as a stuck extension does."""
    if item == 2:
        ctypes.PyDLL(None).pause()
    return item


def hoard(item):
    """Item 2 takes 300 MB and waits: only a kill ends it."""
    if item == 2:
        held = b"x" * (300 << 20)
        signal.pause()
        return len(held)
    return item


def leak(item):
    """Every call leaves 20 MB behind."""
    LEFT.append(b"x" * (20 << 20))
    return os.getpid()


LEFT: list = []


def spawn(item):
    """Leaves a child of its own that holds every descriptor it was given."""
    if item == 0:
        if os.fork() == 0:
            with contextlib.suppress(BaseException):
                signal.pause()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def nap(item):
    time.sleep(item)
    return item


def die_at_import(item):
    return item


class DiesOnLoad:
    """A callable whose unpickling ends the process."""

    def __reduce__(self):
        return os._exit, (7,)

    def __call__(self, item):
        return item


class RaisesOnLoad:
    """A callable whose unpickling raises."""

    def __reduce__(self):
        return fail, ("raise",)

    def __call__(self, item):
        return item
