"""The process lane on its good days; tests/faults has the others, tests/contract what all lanes share."""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from time import monotonic

import numpy as np
import process_functions as calls
import pytest

from duodao.lanes.base import Batch, Work
from duodao.lanes.fleet import FLEET
from duodao.lanes.process import Processes


@pytest.fixture(autouse=True)
def cold():
    """Each test starts and ends without idle workers."""
    FLEET.clear()
    yield
    FLEET.clear()


def run(function, batches, workers=2, together=True, **options):
    """The values of all batches, in order; together: all are started before the first is awaited."""
    lane = Processes(Work(function, function.__name__, **options), workers)
    inbox = queue.SimpleQueue()
    values = {}
    try:
        first = 0
        for items in batches:
            lane.start(Batch(range(first, first + len(items)), items), inbox.put)
            first += len(items)
            if not together:
                take(inbox, values, first)
        take(inbox, values, first)
    finally:
        lane.close(5.0)
    return [values[number] for number in range(first)]


def take(inbox, values, count):
    while len(values) < count:
        result = inbox.get(timeout=60)
        if result.fatal is not None:
            raise result.fatal
        where = range(len(result.values)) if result.positions is None else result.positions
        for at, position in enumerate(where):
            failure = (result.errors or {}).get(at)
            assert failure is None, failure
            values[result.batch.ids[position]] = result.values[at]


def test_whole_lists_on_the_fast_path():
    """A batch without errors is one delivery, without positions: nothing is done per item on this side."""
    lane = Processes(Work(calls.square, "square"), 1)
    inbox = queue.SimpleQueue()
    for _ in range(3):
        lane.start(Batch(range(1000), list(range(1000))), inbox.put)
    results = [inbox.get(timeout=60) for _ in range(3)]
    lane.close(1.0)
    for result in results[1:]:
        assert result.positions is None
        assert result.errors is None
        assert result.values == [n * n for n in range(1000)]
        assert result.seconds > 0


def test_pipes_of_4_kb(monkeypatch):
    """Both ends full of more than the pipes hold: nothing blocks for good. Users without privilege get such pipes."""
    from duodao.lanes import link

    made = link._pipe

    def small():
        reader, writer = made()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        return reader, writer

    monkeypatch.setattr(link, "_pipe", small)
    items = ["x" * 1000 for _ in range(500)]
    assert run(calls.echo, [items] * 6) == items * 6


def test_queued_batches_go_to_a_free_worker(tmp_path):
    """A batch behind a call that turns out long runs on the worker that is free."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hold = os.open(gate, os.O_RDWR)
    lane = Processes(Work(pass_gate, "pass_gate"), 2)
    inbox = queue.SimpleQueue()
    lane.start(Batch([0], [str(gate)]), inbox.put)  # the first worker waits in it
    lane.start(Batch([1], [None]), inbox.put)  # the second worker
    lane.start(Batch([2], [None]), inbox.put)
    lane.start(Batch([3], [None]), inbox.put)  # one of them is behind the gate
    done = {inbox.get(timeout=30).batch.ids[0] for _ in range(3)}
    assert done == {1, 2, 3}
    os.write(hold, b"x")
    assert inbox.get(timeout=30).batch.ids == [0]
    lane.close(1.0)
    os.close(hold)


def pass_gate(gate):
    if gate is not None:
        with open(gate, "rb", buffering=0) as file:
            file.read(1)
    return gate


def test_a_done_item_is_not_held_by_the_next(tmp_path):
    """In a batch, what is done arrives while the next call still runs, in both loops of the worker."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hold = os.open(gate, os.O_RDWR)
    lane = Processes(Work(pass_gate, "pass_gate"), 1)
    inbox = queue.SimpleQueue()
    for first in (0, 100):
        lane.start(Batch(range(first, first + 100), [None] * 99 + [str(gate)]), inbox.put)
        seen = 0
        while seen < 99:
            seen += len(inbox.get(timeout=30).values)
        assert seen == 99
        os.write(hold, b"x")
        assert len(inbox.get(timeout=30).values) == 1
        lane.start(Batch(range(100), [None] * 100), inbox.put)  # brings the worker into its fast loop
        assert len(inbox.get(timeout=30).values) == 100
    lane.close(1.0)
    os.close(hold)


BIG = 1 << 20


@pytest.mark.parametrize("together", [True, False])
def test_large_bytes_in(together):
    """bytes and bytearray of any size arrive as what they were, alone, in lists and among small ones."""
    items = [bytes([n]) * (BIG + n) for n in range(20)] + [bytearray(BIG), b"small", "text", bytearray(b"x")]
    values = run(calls.length, [items, items[:1], items], together=together)
    expected = [(type(item).__name__, len(item)) for item in items]
    assert values == expected + expected[:1] + expected


def test_content_of_large_items():
    """What goes through the arena comes back bit for bit, both ways."""
    items = [os.urandom(200_000 + n) for n in range(30)]
    assert run(calls.echo, [items[:15], items[15:]]) == items


def test_arrays_in():
    """Arrays arrive whole and read-only, in place of a copy."""
    arrays = [np.full(100_000, n, dtype=float) for n in range(40)]
    values = run(calls.total, [arrays[:20], arrays[20:]])
    assert values == [(n * 100_000.0, False) for n in range(40)]


def test_kept_arrays_stay_as_they_were():
    """A function may keep what it got: the memory is not used again while it looks at it."""
    arrays = [np.full(100_000, n, dtype=float) for n in range(40)]
    batches = [arrays[at : at + 4] for at in range(0, 40, 4)]
    values = run(calls.keep, batches, workers=1, together=False)
    assert values[-1] == [float(n) for n in range(40)]


@pytest.mark.parametrize("name", ["bytes", "bytearray", "array"])
def test_large_results(name):
    """Results of any size come back as what they were; arrays are writable and our own."""
    kinds = [(name, 300_000 + n, n) for n in range(60)]
    values = run(calls.make, [kinds[:30], kinds[30:]])
    for (_, size, fill), value in zip(kinds, values, strict=True):
        assert type(value).__name__ == {"array": "ndarray"}.get(name, name)
        assert len(value) == size
        assert value[0] == value[-1] == fill
        if name != "bytes":
            value[0] = 1


def test_larger_than_the_outbox():
    """A result that no slot can hold comes through the pipe."""
    from duodao.lanes import payload

    value = run(calls.make, [[("bytes", payload.OUTBOX + 1, 7)]], workers=1)[0]
    assert len(value) == payload.OUTBOX + 1


def test_common_is_shared_and_read_only():
    """What all calls share is there in every worker, and nobody can change it."""
    big = np.arange(500_000, dtype=float)
    values = run(calls.shared, [[1], [2], [3], [4]], common={"big": big, "name": "n"})
    assert [value[:2] for value in values] == [(1.0, "n"), (2.0, "n"), (3.0, "n"), (4.0, "n")]


def test_output_and_logging_reach_the_caller(capsys, caplog):
    """Whole lines reach the caller's sys.stdout and sys.stderr, records its loggers, before the call's outcome."""
    with caplog.at_level(logging.INFO):
        assert run(calls.talk, [[1]], workers=1) == [1]
    out, err = capsys.readouterr()
    assert out == "out 1\nno end bytes\n"
    assert err == "err 1\n"
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("talker", "log 1")]


def test_environment_of_a_run(monkeypatch, tmp_path):
    """A worker has the caller's directory and environment of now, and a random state of its own."""
    first = run(calls.where, [[0]], workers=1)[0]
    again = run(calls.where, [[0]], workers=1)[0]
    monkeypatch.setenv("DUODAO_TEST", "set")
    monkeypatch.chdir(tmp_path)
    other = run(calls.where, [[0]], workers=1)[0]
    assert again[0] == first[0], "the idle worker is used again"
    assert again[4] != first[4], "but not its random state"
    assert other[0] != first[0], "a changed environment needs a fresh one"
    assert other[1:3] == (str(tmp_path), "set")


def test_changed_module_needs_a_fresh_worker(tmp_path, monkeypatch):
    """A worker that has imported a file that changed since is not used again."""
    (tmp_path / "edited.py").write_text("def answer(x):\n    return 1\n")
    os.utime(tmp_path / "edited.py", (1, 1))
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited

    assert run(edited.answer, [[0]], workers=1) == [1]
    (tmp_path / "edited.py").write_text("def answer(x):\n    return 22\n")
    assert run(edited.answer, [[0]], workers=1) == [22]


def test_resources_open_and_close_once_per_worker(tmp_path):
    """setup= is entered before a worker's first call and closed at the end of the run, though the worker stays."""
    log = tmp_path / "log"
    values = run(calls.resource_of, [[n] for n in range(8)], setup={"db": calls.Database(str(log))})
    pids = {pid for _, pid in values}
    lines = log.read_text().split("\n")[:-1]
    assert Counter(lines) == Counter([f"{what} {pid}" for pid in pids for what in ("open", "close")])


def test_module_that_workers_cannot_import():
    """A function of a module that was made by hand travels by value, after a worker could not import it."""
    import types

    module = types.ModuleType("made_by_hand")
    exec("def triple(x):\n    return 3 * x\n", module.__dict__)
    sys.modules["made_by_hand"] = module
    try:
        assert run(module.triple, [[1, 2], [3]]) == [3, 6, 9]
    finally:
        del sys.modules["made_by_hand"]


PROGRAM = """
import enum, sys
from dataclasses import dataclass
import duodao

@dataclass
class Point:
    x: int

class Colour(enum.Enum):
    RED = 1

class Mine(Exception):
    pass

def swap(p):
    if p.x == 2:
        raise Mine("two")
    return Point(-p.x), Colour.RED

def nested(n):
    return sum(duodao.map(lambda x: x * n, range(10), lane="process", workers=2))

out = list(duodao.map(swap, [Point(n) for n in range(4)], lane="process", workers=2, errors="collect"))
assert out[1].value == (Point(-1), Colour.RED) and out[1].value[1] is Colour.RED
assert type(out[2].error) is Mine
k = 3
assert list(duodao.map(lambda x: x + k, range(5), lane="process")) == [3, 4, 5, 6, 7]
assert list(duodao.map(nested, range(3), lane="process")) == [0, 45, 90]
print("done")
"""


def test_functions_and_classes_of_main():
    """Functions, classes, enums and exceptions of a script work without a `__main__` guard; so does a nested map."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "done", done.stderr
    assert done.stderr == ""


def test_idle_lane_uses_no_cpu():
    """A lane that waits wakes up for nothing: a poll without a time-out."""
    lane = Processes(Work(calls.square, "square"), 2)
    inbox = queue.SimpleQueue()
    lane.start(Batch(range(2), [1, 2]), inbox.put)
    inbox.get(timeout=30)
    from duodao.lanes import deadlines

    assert deadlines.due(lane._links, lane._work, None, lane._again) is None
    lane.close(1.0)


def test_close_is_quick_and_idempotent():
    """An idle lane closes at once, also twice, also when it never ran; no thread is left."""
    lane = Processes(Work(calls.square, "square"), 2)
    lane.close(1.0)
    lane = Processes(Work(calls.square, "square"), 2)
    inbox = queue.SimpleQueue()
    lane.start(Batch([0], [2]), inbox.put)
    inbox.get(timeout=30)
    began = monotonic()
    lane.close(30.0)
    lane.close(30.0)
    assert monotonic() - began < 5
    assert "duodao-process-lane" not in {thread.name for thread in threading.enumerate()}


def test_imports_of_a_program_stay_with_it():
    """The lane's modules load nothing of other people's at import."""
    code = textwrap.dedent("""
        import sys
        import duodao.lanes.process
        assert "cloudpickle" not in sys.modules and "numpy" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_interrupted_write_is_not_made_again(monkeypatch):
    """After a Ctrl-C between the writing of a frame and our note of it, the worker is ended, not sent it twice."""
    lane = Processes(Work(calls.square, "square"), 1)
    inbox = queue.SimpleQueue()
    lane.start(Batch(range(1), [2]), inbox.put)
    assert inbox.get(timeout=30).values == [4]
    genuine = os.writev

    def interrupted(fd, pieces):
        genuine(fd, pieces)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "writev", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lane.start(Batch(range(1, 2), [3]), inbox.put)
    lane.start(Batch(range(2, 3), [4]), inbox.put)  # nothing of ours does so; it must not hang for all that
    assert lane._links[0].killed == ("torn", 0, 0)
    lane.close(0.0)
    assert not lane._thread.is_alive()


def test_fewer_descriptors_mean_fewer_workers(monkeypatch):
    """Where the descriptors don't suffice for all workers the run goes on with those there are."""
    genuine, made = os.pipe, []

    def pipe():
        made.append(1)
        if len(made) > 4:  # the dispatcher's own, one worker's two, and half of another's
            raise OSError(24, "Too many open files")
        return genuine()

    monkeypatch.setattr(os, "pipe", pipe)
    assert run(calls.square, [[n] for n in range(20)], workers=8) == [n * n for n in range(20)]


def test_a_fault_of_the_dispatcher_ends_the_run(monkeypatch):
    """Should the lane's own thread fail, the run ends with that error; it does not wait for ever."""
    import duodao

    def broken(*_):
        raise OSError("poll broke")

    monkeypatch.setattr("duodao.lanes.process.Processes._poll", broken)
    with pytest.raises(OSError, match="poll broke"):
        list(duodao.map(abs, range(10), lane="process"))


def test_pipes_of_four_kilobytes_will_do(monkeypatch):
    """Where the kernel grants no larger pipes, long lists and large items pass all the same."""
    import duodao
    from duodao.lanes.fleet import FLEET

    FLEET.clear()
    monkeypatch.setattr("duodao.lanes.link._PIPE", 4096)
    texts = [b"x" * n for n in (0, 10, 5000, 60_000, 200_000)] * 20
    assert list(duodao.map(lambda b: b + b"y", texts, lane="process")) == [b + b"y" for b in texts]
    assert list(duodao.map(lambda x: x * x, range(100_000), lane="process")) == [x * x for x in range(100_000)]
    FLEET.clear()
