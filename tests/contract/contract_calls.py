"""The functions that the contract suite runs on every lane: a plain and an async form of each, importable by workers.

A gate is a FIFO: a call that comes to it reads one byte, so the test lets one call pass per byte it writes. A call that
must be seen to have begun writes its item into another FIFO first. Both work across threads, tasks and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import time
from functools import partial


class Custom(Exception):
    """An error of the user's own."""


# -- what a call does, said once ------------------------------------------------------------------------------------


def square(x):
    return x * x


def add(x, y, z=0):
    return x + y + z


def scaled(x, factor, offset=0):
    return x * factor + offset


def odd_fails(x):
    if x % 2:
        inner(x)
    return x


def inner(x):
    raise Custom("odd", x)


def raises(kind):
    errors = {
        "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "generator": GeneratorExit(),
        "stop": StopIteration("mine"), "timeout": TimeoutError("mine"), "value": ValueError("mine"),
    }  # fmt: skip
    if kind in errors:
        raise errors[kind]
    return kind


def dice(_x, rng):
    return rng.random()


def stack(_x):
    """(file, function) of the frames above, nearest first."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        found.append((os.path.basename(frame.f_code.co_filename), frame.f_code.co_name))
        frame = frame.f_back
    return found


def with_resource(x, thing):
    return thing, x


def with_log(x, log):
    note(log, f"call {os.getpid()} {x}")
    return x


def note(log, line):
    with open(log, "a") as file:
        file.write(line + "\n")


async def _awaited(function, *args, **kwargs):
    await asyncio.sleep(0)
    return function(*args, **kwargs)


async def square_async(x):
    return await _awaited(square, x)


async def add_async(x, y, z=0):
    return await _awaited(add, x, y, z)


async def scaled_async(x, factor, offset=0):
    return await _awaited(scaled, x, factor, offset)


async def odd_fails_async(x):
    await asyncio.sleep(0)
    return odd_fails(x)


async def raises_async(kind):
    await asyncio.sleep(0)
    if kind == "stop":  # a coroutine can't: PEP 479 makes a RuntimeError of it
        raise RuntimeError("mine")
    return raises(kind)


async def dice_async(x, rng):
    return await _awaited(dice, x, rng)


async def stack_async(_x):
    return stack(_x)[1:]


async def with_resource_async(x, thing):
    return await _awaited(with_resource, x, thing)


# -- calls that wait ------------------------------------------------------------------------------------------------


def _begun(started, x):
    with open(started, "wb", buffering=0) as file:
        file.write(b"%d\n" % x)


def gated(x, gate, started):
    """Items below 0 wait for the gate; 1000 and above take 30 ms; the others return at once."""
    if x < 0:
        with open(gate, "rb", buffering=0) as file:  # first: the test may close its end once it has let all pass
            _begun(started, x)
            file.read(1)
    elif x >= 1000:
        time.sleep(0.030)
    return x


def gated_polled(x, gate, started):
    """The same where a read of a file would stop all: it waits in `select`, which gevent patches."""
    if x >= 0:
        return gated(x, gate, started)
    fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _begun(started, x)
        while True:
            select.select([fd], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 1)
                return x
    finally:
        os.close(fd)


async def gated_async(x, gate, started):
    if x < 0:
        loop = asyncio.get_running_loop()
        fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _begun(started, x)
            while True:
                ready = loop.create_future()
                loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
                try:
                    await ready
                finally:
                    loop.remove_reader(fd)
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 1)
                    break
        finally:
            os.close(fd)
    elif x >= 1000:
        await asyncio.sleep(0.030)
    return x


# -- resources ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def resource(log):
    note(log, "open")
    try:
        yield "thing"
    finally:
        note(log, "close")


@contextlib.asynccontextmanager
async def resource_async(log):
    note(log, "open")
    await asyncio.sleep(0)
    try:
        yield "thing"
    finally:
        await asyncio.sleep(0)
        note(log, "close")


def broken_resource():
    raise Custom("no database")


def logged(log):
    return partial(resource, log)


def logged_async(log):
    return partial(resource_async, log)
