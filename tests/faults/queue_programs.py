"""Programs for the fault tests of queues: `python queue_programs.py NAME [ARGUMENT…]`, a pickled handle on stdin.

A program that got a pickled handle is a task of the queue's own program; one that makes its queue by `via=` is a
stranger. What they do they say on stdout, one line per item, written at once.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys

from duodao.channel.base import Queue


def say(what):
    """One line, at once: it is there even if the next instant is the last."""
    os.write(1, f"{what}\n".encode())


def given():
    """The queue whose handle came on stdin."""
    return pickle.loads(sys.stdin.buffer.read())


def read_all():
    """Get items for ever."""
    queue = given()
    say("ready")
    for item in queue:
        say(item)


def read_many(n="50"):
    """Get items for ever, many at a time."""
    queue = given()
    say("ready")
    while True:
        for item in queue.get_many(int(n)):
            say(item)


def write_all(start, many="1"):
    """Put numbers for ever; each is said when its put has returned."""
    queue, number = given(), int(start)
    say("ready")
    while True:
        if many == "1":
            queue.put(number)
            say(number)
            number += 1
        else:
            queue.put_many(range(number, number + int(many)))
            for each in range(number, number + int(many)):
                say(each)
            number += int(many)


def serve(via, maxsize="10"):
    """Make a queue, say its address and its handle, and wait for the end."""
    queue = Queue(int(maxsize), via=via)
    say(queue.address)
    say(pickle.dumps(queue).hex())
    signal.pause()


def serve_and_end(via, how):
    """Make a queue and end in this way without closing it."""
    queue = Queue(10, via=via)
    say(queue.address)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("on purpose")


def stranger(via, *words):
    """Open a queue by its address: put the words, then say one item, or the error."""
    queue = Queue(10, via=via)
    try:
        for word in words:
            queue.put(word)
        queue.put({1, 2})
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
    try:
        say(repr(queue.get(timeout=30)))
    except Exception as error:
        say(f"{type(error).__name__}: {error}")


def wait_interrupted():
    """Wait in get() until Ctrl-C."""
    queue = given()
    say("ready")
    try:
        queue.get()
    except KeyboardInterrupt:
        say("interrupted")
        queue.put("still usable")


def file_take(path, many="1"):
    """Take items from a file queue, say them, and hold them until killed."""
    queue = Queue(100_000, via=f"file:{path}")
    for _ in range(int(many)):
        say(queue.get())
    signal.pause()


def file_read_and_done(path):
    """Get items, say each, then task_done it; for ever."""
    queue = Queue(100_000, via=f"file:{path}")
    say("ready")
    while True:
        item = queue.get()
        say(item)
        queue.task_done()


def file_write(path, start):
    """Put numbers for ever; each is said when its put has returned."""
    queue, number = Queue(100_000, via=f"file:{path}"), int(start)
    say("ready")
    while True:
        queue.put(number)
        say(number)
        number += 1


def file_take_and_end(path, acknowledge):
    """Take three items, acknowledge some, and end normally without close."""
    queue = Queue(100_000, via=f"file:{path}")
    for _ in range(3):
        say(queue.get())
    for _ in range(int(acknowledge)):
        queue.task_done()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
