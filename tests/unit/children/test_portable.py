"""The keeper for platforms without the Linux mechanisms keeps the same promises."""

from __future__ import annotations

import os
import select
import signal

import pytest

from duodao.children import guard
from duodao.children.portable import Portable

RUN = "child_entries:run"


@pytest.fixture(autouse=True)
def portable(fresh_guard):
    """Children are made by the portable keeper."""
    guard._home.keeper = Portable()
    yield
    guard.shutdown()


def test_a_worker(pipe):
    """The entry gets its argument and descriptors; the exit code comes back; the callback is called once."""
    heard = []
    child = guard.fork("child_entries:echo", arg=b"x" * 100_000, fds=[pipe[1]])
    child.on_exit(heard.append)
    os.close(pipe[1])
    assert b"".join(iter(lambda: os.read(pipe[0], 65536), b"")) == b"x" * 100_000
    assert child.wait(10) == 0
    guard.shutdown()
    assert heard == [child]


def test_exit_codes():
    """Exit codes and signals are those of the worker, and of the program, not of the interpreter around it."""
    assert guard.fork(RUN, arg=b"code = 3").wait(10) == 3
    assert guard.command(["sh", "-c", "exit 4"]).wait(10) == 4
    assert guard.command(["sh", "-c", "kill -9 $$"]).wait(10) == -9
    with pytest.raises(FileNotFoundError, match="no-such-program-of-ours"):
        guard.command(["no-such-program-of-ours"])


def test_a_worker_maps_the_arena(pipe):
    """It maps the same arena."""
    from duodao import arena

    offset = arena.get().allocate(100)
    arena.get().view(offset, 2)[:] = b"ok"
    source = f"import os; from duodao import arena; os.write(fds[0], bytes(arena.get().view({offset}, 2)))"
    assert guard.fork(RUN, arg=source.encode(), fds=[pipe[1]]).wait(10) == 0
    assert os.read(pipe[0], 10) == b"ok"
    arena.get().free(offset)


def test_the_end_of_the_lifeline(pipe):
    """A dropped lifeline (as when we are killed) ends a worker in a Python loop, a program, and what that started."""
    source = b"import os\nos.write(fds[0], b'r')\nwhile True: pass"
    children = [
        guard.fork(RUN, arg=source, fds=[pipe[1]]),
        guard.command(["sh", "-c", "echo r; sleep 60"], stdout=pipe[1]),
    ]
    os.close(pipe[1])
    seen = b""
    while seen.count(b"r") < 2:
        seen += os.read(pipe[0], 10)
    for child in children:
        child.kill()
    assert [child.wait(10) for child in children] == [-9, -9]
    assert select.select([pipe[0]], [], [], 10)[0]
    assert os.read(pipe[0], 10).strip() == b"", "sleep is gone, too"


def test_terminate():
    """SIGTERM reaches the program."""
    child = guard.command(["sleep", "60"])
    child.terminate()
    assert child.wait(10) == -signal.SIGTERM
