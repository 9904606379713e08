"""Functions that the pool's tests run, importable by workers; `wrap` makes them fit for the lane."""

from __future__ import annotations

import os
import threading


def square(x):
    return x * x


def add(a, *, b=1):
    return a + b


def fail(error):
    raise error


def leave(code):
    raise SystemExit(code)


def where():
    return os.getpid(), threading.get_ident()


async def asquare(x):
    return square(x)


async def aadd(a, *, b=1):
    return add(a, b=b)


async def afail(error):
    fail(error)


async def aleave(code):
    leave(code)


def wrap(lane, function):
    """The function, or its async twin for the coroutine lane."""
    return globals()[f"a{function.__name__}"] if lane == "coroutine" else function
