"""Functions for the tests of the greenlet lane, importable by workers: blocking code, as its users write it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import random
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from socket import socket as bound_at_import

TOGETHER = 1000
_begun = []
_all_here = threading.Event()

NAMES = {
    "threading": (threading, ("Thread", "Lock", "RLock", "Event", "local", "get_ident")),
    "socket": (socket, ("socket", "create_connection", "getaddrinfo")),
    "ssl": (ssl, ("SSLContext", "SSLSocket")),
    "select": (select, ("select", "poll")),
    "time": (time, ("sleep",)),
    "queue": (queue, ("SimpleQueue",)),
    "subprocess": (subprocess, ("Popen",)),
    "os": (os, ("fork", "waitpid")),
}


def originals():
    """What gevent would replace, as this process has it now."""
    return {f"{name}.{each}": id(getattr(module, each)) for name, (module, names) in NAMES.items() for each in names}


def homes(_x=None):
    """Where the socket class that this module took at its import comes from, and that of the module now."""
    return bound_at_import.__module__, socket.socket.__module__, time.sleep.__module__


def pid(_x):
    time.sleep(0.05)
    return os.getpid()


# -- waits ----------------------------------------------------------------------------------------------------------


def wait_for_all(x):
    """Ends when so many calls wait at once; each in the same thread."""
    _begun.append(x)
    if len(_begun) == TOGETHER:
        _all_here.set()
    if not _all_here.wait(60):
        raise AssertionError(f"only {len(_begun)} calls at once")
    return x


def sleep_for_all(x):
    _begun.append(x)
    while len(_begun) < TOGETHER:
        time.sleep(0.05)
    return x


def talk(x, port):
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(b"GET /%d HTTP/1.1\r\nHost: here\r\n\r\n" % x)
        data = b""
        while part := sock.recv(65536):
            data += part
    return data.rpartition(b"\r\n\r\n")[2].decode()


def open_url(x, port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{x}", timeout=60) as reply:
        return reply.read().decode()


def request(x, port):
    import requests

    return requests.get(f"http://127.0.0.1:{port}/{x}", timeout=60).text


def with_session(x, session, port):
    return session.get(f"http://127.0.0.1:{port}/{x}", timeout=60).text


class Session:
    """A requests.Session that says in a file when it is opened and closed."""

    def __init__(self, log):
        import requests

        self.log, self.session = log, requests.Session()

    def _note(self, text):
        with open(self.log, "a") as file:
            file.write(text + "\n")

    def __enter__(self):
        self._note("open")
        return self.session

    def __exit__(self, *error):
        self.session.close()
        self._note("close")


def sleep_some(x, log):
    """Item 0 sleeps for good."""
    if x == 0:
        try:
            lie_down()
        finally:
            with open(log, "a") as file:
                file.write("left\n")
    time.sleep(0.01)
    return x


def lie_down():
    time.sleep(600)


def swallow(x):
    """Item 0 sleeps on."""
    if x == 0:
        try:
            time.sleep(600)
        except BaseException:
            time.sleep(600)
    return x


# -- who holds the hub ----------------------------------------------------------------------------------------------


def compute(x):
    """Item 0 computes for a while, in Python."""
    ends = time.thread_time() + (0.5 if x == 0 else 0)
    while time.thread_time() < ends:
        pass
    time.sleep(0.05)
    return x


def compute_long(x):
    ends = time.thread_time() + 2.5
    while time.thread_time() < ends:
        pass
    return x


def compute_in_c(x):
    """Item 0 computes in C code that keeps the GIL, for a while."""
    if x == 0:
        sum(range(80_000_000))
    time.sleep(0.05)
    return x


def block(x):
    """Item 0 waits in C code that gevent knows nothing of."""
    if x == 0:
        ctypes.CDLL(None).usleep(600_000)
    time.sleep(0.05)
    return x


def hang(x):
    if x == 0:
        spin()
    time.sleep(0.05)
    return x


def spin():
    while True:
        pass


def hang_in_c(x):
    return sum(range(10**15)) if x == 0 else x


def die(x, how):
    if x == 3:
        time.sleep(0.02)
        os._exit(7) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return x


# -- locks ----------------------------------------------------------------------------------------------------------


def most_inside(kind):
    """How many greenlets were inside of one lock at once."""
    import gevent

    from duodao import sync

    makers = {
        "threading.Lock": threading.Lock, "threading.RLock": threading.RLock, "Lock": sync.Lock,
        "RLock": sync.RLock, "Condition": sync.Condition, "Semaphore": sync.Semaphore,
    }  # fmt: skip
    lock, inside, counts = makers[kind](), [0], []

    def enter():
        with lock:
            inside[0] += 1
            counts.append(inside[0])
            time.sleep(0.001)
            inside[0] -= 1

    gevent.joinall([gevent.spawn(enter) for _ in range(30)], raise_error=True)
    return len(counts), max(counts)


def wait_while_others_run(_x):
    """One holds a lock, another waits for it, a third counts meanwhile."""
    import gevent

    from duodao import sync

    lock, counted, freed = sync.Lock(), [], threading.Event()

    def hold():
        with lock:
            freed.wait()

    def wait():
        with lock:
            return len(counted)

    def count():
        for at in range(5):
            time.sleep(0.001)
            counted.append(at)
        freed.set()

    _, waiter, _ = tasks = [gevent.spawn(each) for each in (hold, wait, count)]
    gevent.joinall(tasks, raise_error=True)
    return waiter.value


def circle(_x):
    """Two greenlets that take two locks the other way round: what each has got from it."""
    import gevent

    from duodao import sync
    from duodao.errors import Deadlock

    first, second = sync.Lock(name="first"), sync.Lock(name="second")

    def take(one, other):
        try:
            with one:
                time.sleep(0.01)
                with other:
                    return "had both"
        except Deadlock as error:
            return str(error)

    tasks = [gevent.spawn(take, first, second), gevent.spawn(take, second, first)]
    gevent.joinall(tasks)
    return sorted((task.value for task in tasks), key=len)


def left_locked(_x):
    """What the next one gets of a lock whose greenlet ended with it, while it was waited for."""
    import warnings

    import gevent

    from duodao import sync

    lock = sync.Lock()

    def keep():
        lock.acquire()
        time.sleep(0.02)

    def take():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return type(lock.acquire()).__name__

    _, taker = tasks = [gevent.spawn(keep), gevent.spawn(take)]
    gevent.joinall(tasks, raise_error=True)
    return taker.value


def not_mine(_x):
    import gevent

    from duodao import sync

    lock = sync.RLock()
    with lock:
        task = gevent.spawn(lock.release)
        task.join()
        return type(task.exception).__name__, lock.acquire(timeout=0), gevent.spawn(lock.acquire, timeout=0.01).get()


def through_a_queue(via):
    import gevent

    import duodao

    items = duodao.Queue(3, via=via)
    feeder = gevent.spawn(lambda: [items.put(at) for at in range(200)])
    reader = gevent.spawn(lambda: sum(items.get() for _ in range(200)))
    gevent.joinall([feeder, reader], raise_error=True)
    items.close()
    return reader.value


def share(kind):
    import duodao
    from duodao import sync

    {
        "lock": lambda: sync.Lock(shared=True),
        "queue": lambda: duodao.Queue(3, via="shared"),
        "state": lambda: duodao.Shared({}),
    }[kind]()


def run_inside(lane):
    """A run of its own, inside of a call."""
    import duodao

    function = wait_async if lane == "coroutine" else twice
    return sum(duodao.map(function, range(100), lane=lane))


def twice(x):
    return 2 * x


# -- the rest of what a call may rely on ----------------------------------------------------------------------------


def come_back_twice(x):
    """Item 3 forks, and returns in the copy, too."""
    if x == 3:
        pid = os.fork()
        return x if pid == 0 else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return x


def fork_beside(x, log):
    """Item 3 has a forked process that waits and then works; the others wait meanwhile."""
    if x == 3:
        process = multiprocessing.get_context("fork").Process(target=fork_beside, args=("copy", log))
        process.start()
        process.join()
        return process.exitcode
    time.sleep(0.1)
    return note(x, log)


def dice(x, rng, scale):
    time.sleep(0.001 * random.random())  # noqa: S311 - any
    return x, rng.random() * scale


def flaky(x, log):
    """Fails the first time."""
    path = f"{log}.{x}"
    if not os.path.exists(path):
        with open(path, "w"):
            raise ValueError(x)
    return x


def note(x, log):
    with open(log, "a") as file:
        file.write(f"{x}\n")
    return x


def lie_down_not():
    raise OSError("no session")


async def wait_async(x):
    return x
