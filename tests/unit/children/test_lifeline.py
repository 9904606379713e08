"""Lifelines: the group dies with the write end, and nobody but us holds one."""

from __future__ import annotations

import os
import select
import signal

from duodao.children import lifeline
from duodao.children.lifeline import Lifeline


def forked(function):
    """A fork that leads its group, runs `function`, and pauses; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            function()
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return pid


def armed(line, ready):
    """A process with the lifeline armed, as the guard would make it: it keeps the read end through the fork."""
    reader = os.dup(line.reader)

    def arm():
        lifeline.arm(reader)
        os.write(ready, b"r")

    pid = forked(arm)
    os.close(reader)
    return pid


def test_drop_kills(pipe):
    """Dropping the lifeline kills the process, and dropping it again does nothing."""
    line = Lifeline()
    pid = armed(line, pipe[1])
    line.sent()
    assert os.read(pipe[0], 1) == b"r"
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    line.drop()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    line.drop()
    line.sent()


def test_dropped_before_armed(pipe):
    """A lifeline that was dropped before the child armed it kills the child as it arms it."""
    line = Lifeline()
    reader = os.dup(line.reader)
    line.drop()
    pid = forked(lambda: lifeline.arm(reader))
    os.close(reader)
    line.sent()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_forked_copies_hold_no_write_end(pipe):
    """A forked copy of ours that goes on living doesn't keep the lifeline up; `drop` in it is harmless."""
    line = Lifeline()
    reader = os.dup(line.reader)
    copy = forked(line.drop)
    line.sent()
    line.drop()
    poll = select.poll()
    poll.register(reader, 0)
    assert poll.poll(10_000) == [(reader, select.POLLHUP)]
    os.kill(copy, signal.SIGKILL)
    os.waitpid(copy, 0)
    os.close(reader)


def test_second_drop_spares_a_reused_number():
    """Calling `drop` and `sent` again doesn't close a descriptor that got the same number since."""
    line = Lifeline()
    numbers = line.reader, line._writer
    line.sent()
    line.drop()
    again = os.pipe()
    assert set(again) == set(numbers)
    line.sent()
    line.drop()
    for fd in again:
        os.close(fd)


def test_low_numbers_are_left_alone():
    """A descriptor that got a standard stream's number is moved above them, close-on-exec; others stay."""
    high = os.open(os.devnull, os.O_RDONLY)
    assert lifeline.lift(high) == high
    saved = os.dup(0)
    os.close(0)
    low = os.open(os.devnull, os.O_RDONLY)
    lifted = lifeline.lift(low)
    os.dup2(saved, 0)
    os.close(saved)
    assert low == 0
    assert lifted > 2
    assert not os.get_inheritable(lifted)
    os.close(lifted)
    os.close(high)
