"""A program with every kind of descendant that ever outlived its parent. Says their numbers, then waits.

Arguments: what to do before the wait, of "fork" (a forked copy of this program stays), "storm" (forks go on and on).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

from duodao.children import guard

FOREVER = ["sleep", "600"]


def hog(arg, fds):
    """Hold the GIL in C: no thread of this process can run, no Python handler either."""
    import ctypes

    os.write(fds[0], f"hog {os.getpid()}\n".encode())
    os.close(fds[0])
    ctypes.PyDLL(None).sleep(600)


def parent(arg, fds):
    """Have grandchildren: one in our group, one in a session of its own, one that forked twice, as daemons do."""
    plain = subprocess.Popen(FOREVER)
    session = subprocess.Popen(FOREVER, start_new_session=True)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            os.execvp(FOREVER[0], FOREVER)
        os._exit(0)
    daemon = int(os.read(reader, 20))
    said = f"parent {os.getpid()}\ngrandchild {plain.pid}\nsetsid {session.pid}\nsetsid {daemon}\n"
    os.write(fds[0], said.encode())
    os.close(fds[0])
    wait()


def nested(arg, fds):
    """Be a supervisor ourselves."""
    child = guard.command(FOREVER)
    inner = guard._home.get().pid
    os.write(fds[0], f"nested {os.getpid()}\nsetsid {inner}\nnested {child.pid}\n".encode())
    os.close(fds[0])
    wait()


def nothing(arg, fds):
    """End."""


def wait():
    """For ever."""
    while True:
        signal.pause()


def from_a_thread(function):
    """The thread that forks ends at once: what PR_SET_PDEATHSIG would take for our end."""
    made = []
    thread = threading.Thread(target=lambda: made.append(function()))
    thread.start()
    thread.join()
    return made[0]


def main():
    """Start them all, say who they are, and wait."""
    entries = os.path.splitext(os.path.basename(__file__))[0]
    reader, writer = os.pipe()
    children = [
        from_a_thread(lambda name=name: guard.fork(f"{entries}:{name}", fds=[writer]))
        for name in ("hog", "parent", "nested")
    ]
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 4096), b"")).decode()
    os.close(reader)
    children.append(from_a_thread(lambda: guard.command(FOREVER)))
    pids = [line.split() for line in said.splitlines()] + [["command", children[-1].pid]]
    if "fork" in sys.argv and os.fork() == 0:
        os.write(1, b"")
        wait()
    print(json.dumps({"guard": guard._home.get().pid, "pids": [(kind, int(pid)) for kind, pid in pids]}), flush=True)
    heard = threading.Semaphore(0)
    for child in children:
        child.on_exit(lambda child: heard.release())
    if "storm" in sys.argv:
        while True:
            guard.fork(f"{entries}:nothing")
    if "again" in sys.argv:
        for _ in children:
            heard.acquire()
        codes = [child.exitcode for child in children]
        again = guard.command(["true"]).wait(10)
        print(json.dumps({"codes": codes, "again": again, "guard": guard._home.get().pid}), flush=True)
        return
    wait()


if __name__ == "__main__":
    main()
