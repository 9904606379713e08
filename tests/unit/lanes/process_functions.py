"""Functions for the tests of the process lane, importable by workers."""

from __future__ import annotations

import logging
import os
import random
import sys

import numpy as np

KEPT: list = []


def square(x):
    return x * x


def length(x):
    return type(x).__name__, len(x)


def total(a):
    return float(a.sum()), a.flags.writeable


def keep(a):
    """Keeps every array it gets, and says the first elements of all."""
    KEPT.append(a)
    return [float(each[0]) for each in KEPT]


def make(kind):
    name, size, fill = kind
    if name == "bytes":
        return bytes([fill]) * size
    if name == "bytearray":
        return bytearray([fill]) * size
    return np.full(size, fill, dtype=float)


def echo(x):
    return x


def shared(x, big, name):
    try:
        big[0] = 1.0
    except ValueError:
        return float(big[x]), name, os.getpid()
    return "writable"


def talk(x):
    print("out", x)
    print("err", x, file=sys.stderr)
    sys.stdout.write("no end")
    sys.stdout.buffer.write(b" bytes\n")
    logging.getLogger("talker").info("log %s", x)
    logging.getLogger("talker").debug("not wanted %s", x)
    return x


def where(_):
    return os.getpid(), os.getcwd(), os.environ.get("DUODAO_TEST"), os.environ["OMP_NUM_THREADS"], random.random()


def resource_of(x, db):
    return db.seen(x)


class Database:
    """A context manager that writes what happens to it into a file."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        return self

    def __enter__(self):
        self.note("open")
        return self

    def __exit__(self, *_):
        self.note("close")

    def note(self, what):
        with open(self.path, "a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def seen(self, x):
        return x, os.getpid()
