"""What the tasks of the tests do; each form runs on every lane."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import os
import sys
import time

from duodao.sync import Event

MODE = contextvars.ContextVar("MODE", default="unset")


def add(a, b=0):
    return a + b


async def add_async(a, b=0):
    await asyncio.sleep(0)
    return a + b


class Doubler:
    """An object with a run method."""

    def __init__(self, value):
        self.value = value

    def run(self, *more):
        return self.value * 2 + sum(more)


class Refusal(Exception):
    """An error with state of its own."""

    def __init__(self, text, code):
        super().__init__(text, code)
        self.code = code


def refuse(code):
    raise Refusal("no", code)


def leave(code):
    sys.exit(code)


def say(text):
    print(text)
    print("aside", file=sys.stderr)


def mode():
    return MODE.get()


def hang():
    """Wait for ever, in a way that the lane can end."""
    Event(name="never").wait()


async def hang_async():
    await asyncio.Event().wait()


def sleep_for_ever():
    while True:
        time.sleep(60)


def pid():
    return os.getpid()


def unpicklable():
    return lambda: (yield)


class BadResult:
    """Can be sent, and not be received."""

    def __reduce__(self):
        return _raise, ()


def _raise():
    raise RuntimeError("it can't be made again")


def bad_result():
    return BadResult()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818
    """Nothing can be set on it, `__notes__` included."""

    code: int = 1


class OddNotes(Exception):  # noqa: N818
    """Something else stands where the notes should."""

    def __init__(self):
        self.__notes__ = 5


class Closed(Exception):  # noqa: N818
    """Lets nobody look at it."""

    def __getattribute__(self, name):
        raise RuntimeError(f"nobody may have {name}")


def fail_with(kind):
    """Raise one of them."""
    raise kind
