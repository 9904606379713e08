"""The meter around a call, on real threads; bounds are wide, the machine may be busy."""

from __future__ import annotations

import os
import pickle
import threading
import time
import zlib
from contextlib import closing

import pytest

from duodao.cost.advise import figures
from duodao.cost.sample import Board, Metered, Sampled


def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def costs(function, item, times=5):
    """Measured on a thread of its own, as a lane does it."""
    got = []
    with closing(Metered(function, Board())) as metered:

        def run():
            got.extend(metered(item) for _ in range(times))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert all(type(one) is Sampled for one in got)
    return figures([one.cost for one in got])


def test_a_waiting_call_uses_no_cpu_and_holds_nothing():
    """sleep gives up the core and the GIL."""
    seen = costs(time.sleep, 0.01)
    assert seen.wall >= 0.01
    assert seen.share < 0.25
    assert seen.voluntary >= 1


def test_a_python_loop_holds_the_gil_and_zlib_does_not():
    """The probe tells pure Python from C code that lets go."""
    assert costs(burn, 0.01).hold > 0.35
    assert costs(zlib.compress, os.urandom(1 << 20)).hold < 0.35


def test_tiny_calls_are_measured_without_the_meter():
    """What reading the clocks takes is not charged to the call."""
    assert costs(len, "x", 50).wall < 2e-6


def test_a_call_that_still_runs_can_be_judged():
    """Its time and CPU stand on the board, readable from another thread; afterwards there is nothing on it."""
    board, inside, leave = Board(), threading.Event(), threading.Event()

    def call(_):
        burn(0.02)
        inside.set()
        leave.wait()

    with closing(Metered(call, board)) as metered:
        thread = threading.Thread(target=metered, args=(1,))
        assert board.running() is None
        thread.start()
        inside.wait()
        running = board.running()
        leave.set()
        thread.join()
    assert running.wall >= 0.02
    assert running.cpu >= 0.02
    assert board.running() is None


def test_an_exception_passes_with_its_own_traceback():
    """The user's exception is the user's: same object, and no frame of the meter is in its traceback."""
    error = ValueError("mine")

    def fail(_):
        raise error

    with closing(Metered(fail, Board())) as metered, pytest.raises(ValueError, match="mine") as caught:
        metered(1)
    assert caught.value is error
    assert not [entry for entry in caught.traceback if entry.path.name == "sample.py"]


def test_a_shared_board_travels_by_its_offset():
    """A pickled meter writes where the supervisor reads; the place is used again by the next one."""
    board = Board.shared()
    copy = pickle.loads(pickle.dumps(Metered(len, board)))
    assert copy.board.offset == board.offset
    copy.board.words[0] = 77
    assert board.words[0] == 77
    offset = board.offset
    board.release()
    again = Board.shared()
    assert again.offset == offset
    assert again.words[0] == 0
    again.release()


def test_closing_ends_the_probe():
    """No thread is left when a sampler is closed."""
    costs(time.sleep, 0.001)
    assert not [thread for thread in threading.enumerate() if thread.name == "duodao-gil-probe"]
