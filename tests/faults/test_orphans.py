"""Nothing that a program started lives on without it, however the program, or the guard, or both, end. Source: M7."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from duodao.children import reap

HERE = Path(__file__).parent
PROMISED = 0.100
"""Seconds within which all descendants of a killed supervisor are gone."""
KINDS = {"hog", "parent", "grandchild", "setsid", "nested", "command"}


class Tree:
    """A supervisor with descendants of every kind, and a pidfd of each."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "orphan_supervisor.py"), *arguments], stdout=subprocess.PIPE
        )
        self.said = json.loads(self.process.stdout.readline())
        self.guard = self.said["guard"]
        self.watches = {(kind, pid): os.pidfd_open(pid) for kind, pid in [*self.said["pids"], ("guard", self.guard)]}
        assert KINDS <= {kind for kind, _ in self.watches}

    def left(self, seconds, *, but=()):
        """Who is still there after at most `seconds`, as (kind, pid); kinds in `but` are not waited for."""
        end = time.monotonic() + seconds
        left = {who: fd for who, fd in self.watches.items() if who[0] not in but}
        while left and (rest := end - time.monotonic()) > 0:
            ended = select.select(left.values(), [], [], rest)[0]
            left = {who: fd for who, fd in left.items() if fd not in ended}
        return sorted(left)

    def close(self):
        """End what a failed test has left."""
        for fd in self.watches.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def tree(*arguments):
    """A Tree that is gone afterwards."""
    made = Tree(*arguments)
    try:
        yield made
    finally:
        made.close()


def killed_tree(tries):
    """Kill `tries` supervisors; the seconds each took until all were gone."""
    times = []
    for number in range(tries):
        with tree() as family:
            begin = time.monotonic()
            family.process.kill()
            assert family.left(5) == [], f"try {number}"
            times.append(time.monotonic() - begin)
    times.sort()
    print(f"all gone after {times[len(times) // 2] * 1e3:.1f} ms (median), {times[-1] * 1e3:.1f} ms (most)")
    assert times[-1] < PROMISED, f"{[round(t, 3) for t in times if t >= PROMISED]} of {tries} tries were late"


def test_supervisor_killed():
    """SIGKILL to the supervisor, 20 times: a child with the GIL in C, a program, a grandchild, those of other sessions,
    and a supervisor in a worker with its own guard, all are gone within 100 ms."""
    killed_tree(20)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_supervisor_killed_200_times():
    """The same, 200 tries out of 200."""
    killed_tree(200)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
def test_supervisor_ends_by_another_signal(number):
    """Signals that end it without a chance to clean up have the same effect."""
    with tree() as family:
        family.process.send_signal(number)
        assert family.left(5) == []


def test_a_stopped_child_is_ended_too():
    """A child that is stopped (SIGSTOP) dies with the supervisor all the same."""
    with tree() as family:
        for kind, pid in family.watches:
            if kind != "guard":
                os.kill(pid, signal.SIGSTOP)
        family.process.kill()
        assert family.left(5) == []


def test_a_forked_copy_does_not_keep_them_alive():
    """A forked copy of the supervisor (multiprocessing makes some) holds no lifeline: its copies are closed in it."""
    with tree("fork") as family:
        supervisor = family.process.pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
        (copy,) = set(map(int, children.split())) - {family.guard}
        try:
            family.process.kill()
            assert family.left(5) == []
            os.kill(copy, 0)
        finally:
            os.kill(copy, signal.SIGKILL)


def test_guard_killed():
    """The guard killed alone: its children end, those of other sessions too; each is reported with -9; the next fork
    has a new guard."""
    with tree("again") as family:
        os.kill(family.guard, signal.SIGKILL)
        assert family.left(5) == []
        said = json.loads(family.process.stdout.readline())
        assert said["codes"] == [-9, -9, -9, -9]
        assert said["again"] == 0
        assert said["guard"] != family.guard
        assert family.process.wait(10) == 0


def environ_of(pid):
    """What it was started with. Empty for the moment between the end of the spawn and that of its exec."""
    ends = time.monotonic() + 10
    while not (text := Path(f"/proc/{pid}/environ").read_bytes()) and time.monotonic() < ends:
        os.sched_yield()
    return text


def both_killed():
    """Supervisor and guard end in the same instant, the guard without a chance to do anything: it is stopped first."""
    with tree() as family:
        environ = {pid: environ_of(pid) for _, pid in family.watches}
        os.kill(family.guard, signal.SIGSTOP)
        family.process.kill()
        os.kill(family.guard, signal.SIGKILL)
        assert family.left(5, but=("setsid",)) == []
        for kind, pid in family.watches:
            assert kind == "guard" or f"{reap.MARKER}=".encode() in environ[pid]


def test_both_killed():
    """Guard and supervisor in the same instant: only those that called setsid live, and they carry the marker."""
    for _ in range(3):
        both_killed()


def killed_in_a_storm(tries, seed):
    """Kill a supervisor that forks without end at some instant; none with its marker may be left."""
    rng = random.Random(seed)
    for number in range(tries):
        with tree("storm") as family:
            marker = next(
                entry
                for entry in Path(f"/proc/{family.guard}/environ").read_bytes().split(b"\0")
                if entry.startswith(reap.MARKER.encode())
            )
            select.select([], [], [], rng.random() * 0.05)  # the instant is the point
            family.process.kill()
            assert family.left(5) == [], f"try {number}"
            found = [pid for pid in reap._pids() if reap._carries(pid, marker)]
            watches = reap.watch(found)
            reap.await_deaths(watches, 2)
            assert not [pid for pid in found if reap._carries(pid, marker)], f"try {number}"


def test_killed_while_it_forks():
    """A supervisor killed at any instant of a fork leaves no half-made child: 5 seeded instants."""
    killed_in_a_storm(5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_killed_while_it_forks_100_times():
    """The same at 100 seeded instants."""
    killed_in_a_storm(100, seed=2)


SCRIPT = """
import os, sys, signal
from duodao.children import guard
out = int(sys.argv[1])
{body}
os.write(out, b"done")
"""


def script(body, *, prefix=(), wait=True, **options):
    """Run a program with `body`; what it writes to `out`, its exit code and stderr."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*prefix, sys.executable, "-W", "error", "-c", SCRIPT.format(body=body), str(writer)],
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        **options,
    )
    os.close(writer)
    text = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    errors = process.communicate()[1]
    return text.decode(), process.returncode, errors.decode()


def test_a_program_that_ends_normally_leaves_nothing():
    """At a normal end children are killed and the guard reaped, without a warning; no one holds the pipe any more."""
    said = script("print(guard.fork('posixpath:join', arg=b'a').wait()); guard.command(['sleep', '600'])")
    assert said == ("done", 0, said[2])
    assert "Warning" not in said[2]


def test_a_program_without_standard_streams():
    """With stdin, stdout and stderr closed everything works: no pipe of ours takes their numbers."""
    body = """
children = [guard.command(["sh", "-c", "echo x; echo y >&2; exit 3"]) for _ in range(3)]
for child in children:
    assert child.wait(10) == 3
os.write(out, repr(guard.fork("os:close", arg=b"").wait(10)).encode())
assert not [fd for fd in (0, 1, 2) if os.path.exists(f"/proc/self/fd/{fd}")]
"""
    text, code, _ = script(body, prefix=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    assert (text, code) == ("1done", 0)


def test_a_program_that_ignores_sigchld():
    """A program that ignores SIGCHLD, so that the kernel reaps for it, gets exit codes all the same."""
    body = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nassert guard.command(['sh', '-c', 'exit 3']).wait(10) == 3"
    assert script(body) == ("done", 0, "")


def test_a_forked_copy_starts_its_own():
    """A forked copy has no children of the original's, gets a guard of its own, and leaves the original's alone."""
    body = """
import warnings
warnings.simplefilter("ignore")
from duodao.errors import UsageError
child = guard.command(["sleep", "600"])
before = guard._home.get().pid
pid = os.fork()
if pid == 0:
    child.kill()
    try:
        child.wait()
    except UsageError:
        os.write(out, b"refused ")
    assert guard.command(["sh", "-c", "exit 3"]).wait(10) == 3
    assert guard._home.get().pid != before
    guard.shutdown()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert child.wait(0.01) is None
assert guard._home.get().pid == before
assert guard.command(["sh", "-c", "exit 4"]).wait(10) == 4
"""
    assert script(body) == ("refused done", 0, "")


def test_forks_go_on_while_guards_are_killed():
    """Threads fork while guard after guard is killed: every child that was started ends and is reported, nothing hangs,
    no descriptor is lost."""
    body = """
import random, threading
from duodao.children import wire
from duodao.errors import GuardDied
rng = random.Random(4)
assert guard.command(["true"]).wait(10) == 0
open_before = len(os.listdir("/proc/self/fd"))
codes, over = [], threading.Event()
def work():
    while not over.is_set():
        try:
            codes.append(guard.fork("operator:ne").wait(20))
        except GuardDied:
            codes.append("died")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(12):
    over.wait(rng.random() * 0.15)
    guard.ensure()
    os.kill(guard._home.get().pid, signal.SIGKILL)
over.set()
for thread in threads:
    thread.join()
assert set(codes) <= {1, -9, "died"}, set(codes)
assert 1 in codes
assert guard.command(["true"]).wait(10) == 0
assert len(os.listdir("/proc/self/fd")) == open_before, os.listdir("/proc/self/fd")
"""
    assert script(body) == ("done", 0, "")
