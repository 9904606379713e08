"""Children that are stopped: by a signal of their own or another's, which is told, or by us, which is not."""

from __future__ import annotations

import os
import queue
import signal

import pytest

from duodao.children import guard

SECONDS = 20
ECHO = "kill -STOP $$; echo on"


def program(script, pipe):
    """A shell with that script; the queue of the signals that stopped it."""
    heard = queue.SimpleQueue()
    child = guard.command(["sh", "-c", f"read go; {script}"], stdin=pipe[0], stdout=pipe[2])
    child.on_stop(lambda child: heard.put(child.stop_signal))
    os.write(pipe[1], b"\n")
    return child, heard


@pytest.fixture
def pipes():
    """Two pipes: reader, writer, and another writer, reader."""
    (reader, writer), (answers, out) = os.pipe(), os.pipe()
    yield reader, writer, out, answers
    for fd in (reader, writer, out, answers):
        os.close(fd)


@pytest.mark.parametrize("name", ["STOP", "TSTP", "TTIN", "TTOU"])
def test_a_stop_is_told(pipes, name):
    """A program that is stopped, by whatever signal, is reported with it; it lives on and ends as it likes."""
    child, heard = program(f"kill -{name} $$; exit 3", pipes)
    assert heard.get(timeout=SECONDS) == getattr(signal, f"SIG{name}")
    assert child.exitcode is None
    child.resume()
    assert child.wait(SECONDS) == 3


def test_each_stop_is_told(pipes):
    """One that goes on and is stopped again is reported again, and can be killed where it stands."""
    child, heard = program("while :; do kill -STOP $$; done", pipes)
    for _ in range(3):
        assert heard.get(timeout=SECONDS) == signal.SIGSTOP
        os.kill(child.pid, signal.SIGCONT)
    child.kill()
    assert child.wait(SECONDS) == -signal.SIGKILL


def test_a_stop_of_ours_is_not_told(pipes):
    """`suspend` stops the whole group and `resume` lets it go on; neither is reported, a later stop is."""
    child, heard = program("cat & echo ready; read line; kill -TSTP $$; wait", pipes)
    assert os.read(pipes[3], 100) == b"ready\n"
    child.suspend()
    for _ in range(1000):
        assert (
            guard.command(["true"]).wait(SECONDS) == 0
        )  # the guard has reaped, so it has seen the stop if there is one
        with open(f"/proc/{child.pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                break
    else:
        pytest.fail("it was not stopped")
    assert heard.empty()
    child.resume()
    os.write(pipes[1], b"line\n")
    assert heard.get(timeout=SECONDS) == signal.SIGTSTP
    assert heard.empty()
    child.kill()
    assert child.wait(SECONDS) == -signal.SIGKILL


def test_stops_and_deaths_at_once(pipes):
    """A child that is killed while it is stopped is reported as ended, and nothing of it comes after that."""
    child, heard = program(ECHO, pipes)
    assert heard.get(timeout=SECONDS) == signal.SIGSTOP
    ended = queue.SimpleQueue()
    child.on_exit(ended.put)
    os.kill(child.pid, signal.SIGKILL)
    assert ended.get(timeout=SECONDS) is child
    assert heard.empty()


def test_a_stop_before_anyone_listens(pipes):
    """A program that stops itself before `on_stop` is called is told of then."""
    child, heard = program(ECHO, pipes)
    assert heard.get(timeout=SECONDS) == signal.SIGSTOP
    child.on_stop(heard.put)
    assert heard.get(timeout=SECONDS) is child
    child.kill()
    assert child.wait(SECONDS) == -signal.SIGKILL


def test_others_are_reaped_meanwhile(pipes):
    """A stopped child doesn't keep the guard from reaping and starting others."""
    child, heard = program(ECHO, pipes)
    assert heard.get(timeout=SECONDS) == signal.SIGSTOP
    for _ in range(20):
        assert guard.command(["true"]).wait(SECONDS) == 0
    child.kill()
    assert child.wait(SECONDS) == -signal.SIGKILL
