"""What the tests of nested lanes run; importable by workers."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time

import process_calls


async def run_async(item):
    """process_calls.run on a loop."""
    await asyncio.sleep(0)
    return process_calls.run(item)


def _end_this_process_once(path, number):
    """Its first caller with that number doesn't come back."""
    try:
        os.close(os.open(f"{path}/{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def fragile(number, path):
    """Every 40th item kills its process the first time it comes."""
    time.sleep(0.001)
    if number % 40 == 39:
        _end_this_process_once(path, number)
    return number


async def fragile_async(number, path):
    await asyncio.sleep(0.001)
    if number % 40 == 39:
        _end_this_process_once(path, number)
    return number


async def one_kills(number, log):
    """Item 70 ends its process, always; each item notes that it began, in one write that no death can tear."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    await asyncio.sleep(0.02)
    if number == 70:
        os._exit(5)
    await asyncio.sleep(0.2)
    return number


def mixed(number):
    """Work that computes for about 2 ms, with the GIL, and waits for 4 ms."""
    until = time.thread_time() + 0.002
    while time.thread_time() < until:
        pass
    time.sleep(0.004)
    return number, os.getpid(), threading.get_ident()


def tell(number):
    """A line in two writes, one on stderr, a log record."""
    print(f"out {number}", end=" ")
    print("end")
    print(f"err {number}", file=sys.stderr)
    logging.getLogger("nested").warning("record %d", number)
    return number


def reverse(data):
    return bytes(data[::-1])


def stuck(item):
    """Item 2 never returns, and says where it is stuck."""
    if item[0] == 2:
        with open(item[1], "w") as file:
            file.write(str(os.getpid()))
        threading.Event().wait()
    return item[0]


def holds_the_gil(item):
    """Item 2 never returns, and lets no other thread of its process run."""
    if item == 2:
        ctypes.PyDLL(None).pause()
    return item


def where(_):
    time.sleep(0.002)
    return os.getpid()
