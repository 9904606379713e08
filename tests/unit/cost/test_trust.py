"""What may be tried out in the caller's own process, and what may not."""

# ruff: noqa: PLW0108 - lambdas are what is tested here

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass

import numpy as np
import pytest

from duodao.cost.trust import trusted

TABLE = {"a": [1, 2, (3, "x")]}
BIG = list(range(5000))
LOCK = threading.Lock()


def square(x):
    return x * x


def helper(x):
    return square(x) + TABLE["a"][0]


def recursive(x):
    return x and recursive(x - 1)


@dataclass
class Point:
    x: int

    def norm(self):
        return math.hypot(self.x, self.x)


class Deadly:
    def run(self):
        os.abort()


def closing_over(value):
    return lambda x: (x, value)


def fetch(port):
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"x")
        return s.recv(100)


def importing(x):
    import math as m

    return m.floor(x)


SAFE = [
    square,
    helper,
    recursive,
    len,
    str.upper,
    json.loads,
    functools.partial(helper, 3),
    closing_over(7),
    closing_over(square),
    fetch,
    importing,
    lambda x: time.sleep(x),
    lambda x: zlib.compress(x, 3),
    lambda x: hashlib.sha256(x).hexdigest(),
    lambda x: os.path.join(x, "b"),
    lambda x: [y for y in sorted(x) if y],
    lambda x: Point(x).norm(),
    lambda x: np.sum(x),
    lambda x: undefined_name,  # noqa: F821 - a NameError is an ordinary error
]
UNSAFE = [
    ast.parse,
    lambda x: ast.parse(x),
    lambda x: ctypes.string_at(x),
    lambda x: os.abort(),
    lambda x: os._exit(1),
    lambda x: sys.exit(1),
    lambda x: eval(x),
    lambda x: subprocess.run(x, check=True),
    lambda x: getattr(x, "y"),
    lambda x: x.__class__.__subclasses__(),
    lambda x: BIG[x],
    lambda x: LOCK,
    lambda x: Deadly().run(),
    lambda x: os,
    closing_over(ctypes),
    closing_over(os.abort),
    functools.partial(helper, LOCK),
]


@pytest.mark.parametrize("function", SAFE)
def test_harmless_functions_are_trusted(function):
    """Pure Python over plain data and well-behaved modules can raise or wait, but not end the process."""
    assert trusted(function)


@pytest.mark.parametrize("function", UNSAFE)
def test_anything_else_is_not(function):
    """What could crash, exit, run a program or can't be followed is tried out in a process."""
    assert not trusted(function)


def test_the_input_counts_too():
    """A method of the input's own class is code as well."""
    assert trusted(lambda x: x.run(), items=["text", 3, [1.0], {"a": b"x"}])
    assert not trusted(lambda x: x.run(), items=[Deadly()])
    assert trusted(lambda x: x.sum(), items=[np.ones(3)])
    assert not trusted(lambda x: x.sum(), items=[np.array([Deadly()])])


def test_a_raised_recursion_limit_ends_all_trust():
    """With it pure Python can overflow the C stack."""
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(100_000)
        assert not trusted(square)
    finally:
        sys.setrecursionlimit(before)


def test_a_module_that_shadows_the_standard_one_is_not_it(monkeypatch):
    """A json.py of the user's own is the user's code."""
    import types

    fake = types.ModuleType("json")
    fake.__file__ = "/home/someone/json.py"
    fake.loads = types.FunctionType((lambda x: os.abort()).__code__, {"os": os})
    monkeypatch.setitem(sys.modules, "json", fake)
    function = types.FunctionType((lambda x: json.loads(x)).__code__, {"json": fake})
    assert not trusted(function)
