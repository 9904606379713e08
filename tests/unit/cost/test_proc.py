"""Readers of /proc, on made-up trees and on this process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from duodao.cost import proc
from duodao.cost.proc import Times


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "proc/7/task/8"
    folder.mkdir(parents=True)
    (folder / "schedstat").write_text("3000000000 500000000 42\n")
    (folder / "stat").write_text("8 (a) R (b) S 1 7 7 0 -1\n")
    (folder / "wchan").write_text("futex_wait_queue")
    (folder / "status").write_text("Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n")
    (tmp_path / "proc/7/statm").write_text("900 250 10 1 0 200 0\n")
    return str(tmp_path)


def test_a_thread_is_read_whole(root):
    """Times, state and wait channel of a thread whose name holds brackets."""
    now = proc.times(7, 8, root)
    assert (now.on_cpu, now.queued, now.letter, now.wchan) == (3.0, 0.5, "S", "futex_wait_queue")
    assert proc.switches(7, 8, root) == (12, 3)
    assert proc.threads(7, root) == [8]
    assert proc.thread_cpu(7, 8, root) == 3.0
    assert proc.rss(7, root) == 250 * os.sysconf("SC_PAGE_SIZE")


def test_what_is_gone_says_so(root):
    """A process that ended between two looks is a ProcessLookupError, not a FileNotFoundError from deep inside."""
    for read in (lambda: proc.times(9, root=root), lambda: proc.threads(9, root), lambda: proc.rss(9, root)):
        with pytest.raises(ProcessLookupError):
            read()
    assert proc.queued(9, 9, root) == 0.0


@pytest.mark.parametrize(
    ("on_cpu", "queued", "letter", "expected"),
    [
        (0.09, 0.0, "R", ("running", "")),
        (0.01, 0.08, "R", ("ready", "")),
        (0.001, 0.0, "S", ("blocked", "futex")),
        (0.0, 0.0, "R", ("ready", "")),
        (0.0, 0.0, "Z", ("zombie", "")),
        (0.0, 0.0, "T", ("stopped", "")),
    ],
)
def test_three_states_from_two_looks(on_cpu, queued, letter, expected):
    """Running, ready and blocked, 100 ms apart; M6."""
    before = Times(10.0, 1.0, 1.0, "S", "")
    assert proc.state(before, Times(10.1, 1.0 + on_cpu, 1.0 + queued, letter, "futex")) == expected


def test_the_cpu_clock_of_another_thread_and_process():
    """CPU of a thread is read from outside; a thread that has ended is a ProcessLookupError, not a crash."""
    tids, go, done = [], threading.Event(), threading.Event()

    def work():
        tids.append(threading.get_native_id())
        go.wait()
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        tids.append(time.thread_time())
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    go.set()
    while len(tids) < 2:
        thread.join(0.005)
    assert proc.thread_cpu(os.getpid(), tids[0]) >= 0.02
    done.set()
    thread.join()
    while True:  # the kernel's end of a thread comes a moment after Python's
        try:
            proc.thread_cpu(os.getpid(), tids[0])
        except ProcessLookupError:
            break
    child = subprocess.run([sys.executable, "-c", "pass"], check=True)
    assert child.returncode == 0
    assert proc.process_cpu(os.getpid()) == pytest.approx(time.process_time(), abs=0.5)
