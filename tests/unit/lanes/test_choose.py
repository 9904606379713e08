"""Names, widths, and the lane that measures first: on real lanes, and on fake ones where the machine would matter."""

from __future__ import annotations

import ast
import contextvars
import functools
import hashlib
import json
import os
import queue
import signal
import socket
import threading
import time
import zlib

import numpy as np
import pytest

import duodao
from duodao.cost import limits
from duodao.errors import UsageError, WorkerDied
from duodao.lanes import choose
from duodao.lanes.base import LANES, Batch, Result, Work
from duodao.lanes.choose import Auto, default_workers, make, nested
from duodao.lanes.nested import Nested
from duodao.lanes.program import Command

HERE = os.getpid()
LOCK = threading.Lock()
ANSWER = contextvars.ContextVar("ANSWER", default=0)


def square(x):
    return x * x


def burn(x):
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        sum(range(50))
    return x


def fetch(port):
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"x")
        got = b""
        while part := s.recv(4096):
            got += part
    return len(got)


async def later(x):
    return x


def work(function, **more):
    return Work(function, getattr(function, "__name__", "f"), **more)


class Engine:
    """Feeds a lane as the engine does: reads its attributes each time, keeps workers x depth batches out."""

    def __init__(self, lane, items):
        self.lane, self.items, self.inbox = lane, list(items), queue.SimpleQueue()
        self.values, self.errors, self.wakes = {}, {}, 0
        self.size, self.given, self.out = 1, 0, {}

    def run(self):
        while len(self.values) < len(self.items):
            width = self.lane.workers * self.lane.depth
            while self.given < len(self.items) and len(self.out) < width:
                ids = range(self.given, min(self.given + self.size, len(self.items)))
                batch = Batch(ids, [self.items[i] for i in ids])
                self.given = ids.stop
                self.out[batch] = len(ids)
                self.lane.start(batch, self.inbox.put)
            self.take(self.inbox.get(timeout=60))
        return [self.values[i] for i in range(len(self.items))]

    def take(self, result):
        if result.fatal is not None:
            raise result.fatal
        if not result.values:
            self.wakes += 1
            return
        self.size = min(256, 2 * len(result.values))
        positions = range(len(result.values)) if result.positions is None else result.positions
        for at, position in enumerate(positions):
            number = result.batch.ids[position]
            assert number not in self.values, "a result came twice"
            self.values[number] = result.values[at]
            if result.errors and at in result.errors:
                self.errors[number] = result.errors[at]
        self.out[result.batch] -= len(result.values)
        if not self.out[result.batch]:
            del self.out[result.batch]


def auto(function, items, expected=None, workers=None, **more):
    """Run items through a lane="auto"; returns (values, lane, engine)."""
    lane = Auto(work(function, **more), workers)
    lane.expected = expected
    engine = Engine(lane, items)
    try:
        return engine.run(), lane, engine
    finally:
        lane.close(5.0)


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(limits, "cpus", lambda root="/": 2)


# -- names and widths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LANES if name not in ("auto", "coroutine")])
def test_each_name_is_a_lane(name):
    """Every documented name makes the lane that says this name."""
    lane = make(name, work(Command("true") if name == "command" else square), 2)
    assert lane.name == name
    lane.close(0.0)


def test_wrong_lanes_are_refused_with_the_right_ones():
    """A wrong name lists the valid ones; a plain function on the loop, or an async one off it, is told where to go."""
    with pytest.raises(UsageError, match="valid: auto, inline, thread, process, coroutine"):
        make("tread", work(square))
    with pytest.raises(UsageError, match="lane='coroutine'"):
        make("process", work(later, is_async=True))
    with pytest.raises(UsageError, match="lane='thread'"):
        make("coroutine", work(square))
    with pytest.raises(UsageError, match="max_memory"):
        make("auto", work(later, is_async=True, max_memory=1))


def test_default_widths(monkeypatch):
    """The table of `default_workers`, M30."""
    monkeypatch.setattr(limits, "cpus", lambda root="/": 4)
    names = ("inline", "process", "thread", "coroutine")
    assert [default_workers(name, inside=False) for name in names] == [1, 4, 32, 1000]
    assert [default_workers(name, inside=True) for name in names] == [1, 1, 8, 250]
    monkeypatch.setattr(limits, "cpus", lambda root="/": 128)
    assert default_workers("thread", inside=False) == 64


def test_a_worker_knows_that_it_is_one(monkeypatch):
    """The marker of another supervisor in the environment means we share its CPUs; our own doesn't."""
    monkeypatch.setenv("DUODAO_GUARD", f"{os.getpid() + 1}-abc")
    assert nested()
    monkeypatch.setenv("DUODAO_GUARD", f"{os.getpid()}-abc")
    assert not nested()
    monkeypatch.delenv("DUODAO_GUARD")
    assert not nested()


# -- what is chosen ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(10)
                time.sleep(0.003)
                connection.sendall(b"x" * 1000)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    ("function", "item", "count", "lanes"),
    [
        (square, 3, 400, {"inline"}),
        (json.loads, '{"a": [1, 2, 3]}', 5000, {"inline", "process"}),  # more than are over before it is measured
        (burn, 1, 40, {"process"}),
        (zlib.compress, os.urandom(1 << 20), 8, {"thread"}),
        (functools.partial(time.sleep), 0.001, 40, {"thread"}),
        (functools.partial(time.sleep), 0.01, 10, {"thread"}),
        (functools.partial(np.sum), np.ones(1 << 20), 60, {"thread", "inline"}),  # within 15 % of each other
    ],
)
def test_each_function_finds_its_lane(two_cpus, function, item, count, lanes):
    """The functions of the benchmark, really run; on a busy machine a second try may decide."""
    for _ in range(3):
        values, lane, _ = auto(function, [item] * count)
        assert len(values) == count
        if lane.name in lanes:
            break
    assert lane.name in lanes, lane.why
    assert lane.why


def half(x):
    """Computes 2 ms under the GIL, waits 2 ms."""
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        sum(range(50))
    time.sleep(0.002)
    return x


def test_mixed_calls_go_to_threads_in_processes(two_cpus):
    """Where calls compute and wait, `auto` becomes the thread lane in two processes; a second try may decide."""
    for _ in range(3):
        values, lane, _ = auto(half, range(150))
        assert values == list(range(150))
        if lane.workers > 2 and type(lane._inner) is Nested:
            break
    assert type(lane._inner) is Nested, lane.why
    assert lane.name == "thread"
    assert "it waits" in lane.why


def test_a_fetch_waits(two_cpus, server):
    """A page from a local server that takes its time goes to threads."""
    values, lane, _ = auto(fetch, [server] * 20)
    assert values == [1000] * 20
    assert lane.name == "thread"


def test_an_async_function_needs_no_sample():
    """It runs on the loop at once, and says why."""
    lane = Auto(work(later, is_async=True))
    assert (lane.name, lane.why) == ("coroutine", "it is an async function")
    lane.close(1.0)


def test_nothing_is_left_in_the_way_after_the_choice():
    """`start` is then the chosen lane's own method."""
    _, lane, _ = auto(square, range(200))
    assert lane.start == lane._inner.start


def test_workers_is_the_width_of_the_chosen_lane(two_cpus):
    """workers=3 means three threads, while one worker samples."""
    _, lane, _ = auto(time.sleep, [0.003] * 12, workers=3)
    assert (lane.name, lane.workers) == ("thread", 3)


def test_a_long_call_does_not_hold_up_the_choice(two_cpus):
    """After 50 ms the running call decides, goes on, and the rest starts: all wait at the same time."""
    gate = threading.Barrier(4)  # passes only when four calls are in it at once

    values, lane, engine = auto(lambda x: gate.wait(30) >= 0, range(4))
    assert values == [True] * 4
    assert (lane.name, engine.wakes) == ("thread", 1)


# -- samples are calls like any other ----------------------------------------------------------------------------------


def dies(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x, os.getpid()


def test_a_crash_in_a_sample_is_its_items_error(two_cpus):
    """An untrusted function is tried out elsewhere; after a death only processes will do."""
    values, lane, engine = auto(dies, range(20))
    failure = engine.errors[2]
    assert (failure.kind, type(failure.error)) in (("died", WorkerDied), ("lost", type(None)))
    assert lane.name == "process"
    assert HERE not in {value[1] for value in values if value}


def test_through_the_engine_a_killer_costs_nothing_else(two_cpus):
    """With the engine's second try the killer is named and every other item has its value."""
    report = duodao.run(dies, range(20), errors="collect", into=[])
    assert (report.succeeded, report.failed) == (19, 1)
    assert isinstance(report.failures[0].error, WorkerDied)


def test_a_hang_in_a_sample_is_its_items_error():
    """The time-out of a sampled call is kept."""
    report = duodao.run(lambda x: time.sleep(60 * (x == 1)), range(8), timeout=0.2, errors="collect", into=[])
    assert (report.succeeded, report.failed) == (7, 1)
    assert isinstance(report.failures[0].error, TimeoutError)


def fails(x):
    raise ValueError(x)


def test_exceptions_of_samples_arrive():
    """A function that only fails is not measured, and each input gets its own error."""
    _, lane, engine = auto(fails, range(12))
    assert [engine.errors[i].error.args for i in range(12)] == [(i,) for i in range(12)]
    assert "failed" in lane.why


def test_what_cannot_travel_stays_and_says_so(two_cpus):
    """A function that holds a lock computes here, however long it takes."""

    def locked(x):
        with LOCK:
            return burn(x)

    LOCKED = threading.Lock()
    values, lane, _ = auto(lambda x: (LOCKED.locked(), locked(x))[1], range(30))
    assert values == list(range(30))
    assert lane.name in ("inline", "thread")
    assert "can't travel" in lane.why


def unsendable(x):
    os.getppid()
    burn(x)
    return threading.Lock()


def test_results_that_cannot_come_back_are_made_here(two_cpus):
    """The sample runs again on a thread, and so does the rest."""
    values, lane, engine = auto(unsendable, range(12))
    assert {type(value) for value in values} == {type(threading.Lock())}
    assert not engine.errors
    assert "result can't travel" in lane.why


class Opened:
    def __enter__(self):
        return 5

    def __exit__(self, *_):
        pass


def add(x, five, more):
    return x + five + more


def test_setup_and_common_reach_samples():
    """Sampled calls have their resources and constants."""
    values, _, _ = auto(add, range(40), setup={"five": Opened}, common={"more": 100})
    assert values == [x + 105 for x in range(40)]


def test_star_reaches_samples():
    """Tuples become arguments while sampling too."""
    values, _, _ = auto(divmod, [(7, 2)] * 20, star=True)
    assert values == [(3, 1)] * 20


def dice(x):
    import random

    return random.random()


def test_a_seed_gives_the_same_dice_as_every_lane():
    """Sampled or not, the value depends on the seed and the input alone."""
    assert duodao.run(dice, range(30), seed=4, into=(one := [])).ok
    assert duodao.run(dice, range(30), seed=4, lane="process", into=(two := [])).ok
    assert one == two


def test_context_variables_reach_samples_and_the_chosen_lane():
    """The lane is made on another thread than the caller's, and calls still see the caller's context."""
    token = ANSWER.set(42)
    try:
        values, lane, _ = auto(lambda x: (time.sleep(0.003), ANSWER.get())[1], range(12))
    finally:
        ANSWER.reset(token)
    assert (values, lane.name) == ([42] * 12, "thread")


def test_ast_is_parsed_in_processes(two_cpus):
    """The main job: parsing source is CPU that holds the GIL and could overflow the stack: never tried out here."""
    text = "x = [1, (2, 3), {'a': f(b)}]\n" * 200
    values, lane, _ = auto(lambda source: (len(ast.dump(ast.parse(source))), os.getpid())[1], [text] * 12)
    assert lane.name == "process"
    assert HERE not in values


def test_a_small_known_input_is_not_worth_processes(two_cpus):
    """Eight calls of 1 ms are over before a process has started."""
    _, lane, _ = auto(burn, range(8), expected=8)
    assert lane.name == "inline"


def test_closing_in_the_middle_leaves_no_thread():
    """A run that is dropped while it samples ends its judge and its sampler."""
    lane = Auto(work(time.sleep))
    inbox: queue.SimpleQueue[Result] = queue.SimpleQueue()
    batch = Batch([0], [0.01])
    lane.start(batch, inbox.put)
    lane.cancel(batch)
    lane.close(5.0)
    lane.close(5.0)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name in ("duodao-judge", "duodao-gil-probe")]


# -- measure -----------------------------------------------------------------------------------------------------------


def test_measure_tells_cost_and_gain():
    """M19: how long it holds the GIL, what two threads and what two processes gain, in a table that can be read."""
    profile = choose.measure(burn, [1, 2], seconds=0.4)
    assert profile.cpu >= 0.0009
    assert profile.gil > 0.35
    assert profile.two_threads > 0
    assert profile.two_processes > 0
    text = str(profile)
    assert "GIL held" in text
    assert f"advice: {profile.advice.lane}" in text


def test_measure_of_what_cannot_travel_says_so():
    """No gain of processes is claimed for a function that holds a lock."""
    lock = threading.Lock()
    profile = choose.measure(lambda x: lock.locked(), [1], seconds=0.1)
    assert profile.two_processes is None
    assert "can't travel" in profile.notes[0]


def test_measure_of_an_async_function():
    """Its calls run on a loop of their own."""
    assert choose.measure(later, [1], seconds=0.1).advice.lane == "coroutine"


def test_measure_refuses_nonsense():
    """No input, no function, no time."""
    for arguments in ((square, []), (3, [1])):
        with pytest.raises(UsageError):
            choose.measure(*arguments)
    with pytest.raises(UsageError):
        choose.measure(square, [1], seconds=0)
    with pytest.raises(ValueError, match="1"):
        choose.measure(fails, [1], seconds=0.1)


def test_hashing_goes_to_threads(two_cpus):
    """hashlib lets go of the GIL."""
    _, lane, _ = auto(lambda data: hashlib.sha256(data).hexdigest(), [bytes(2_000_000)] * 10)
    assert lane.name == "thread", lane.why


def test_arithmetic_is_run_at_once_and_chosen_inline():
    """A function that names nothing and never loops needs no samplers; one that loops, or odd items, still do."""
    _is_arithmetic = choose._is_arithmetic

    def square(x):
        return x * x

    def loops(x):
        while x:
            x -= 1
        return x

    assert _is_arithmetic(Work(square, "square"))
    assert not _is_arithmetic(Work(loops, "loops"))
    assert not _is_arithmetic(Work(lambda x: abs(x), "names"))
    assert not _is_arithmetic(Work(square, "square", timeout=1.0))
    results = duodao.map(square, range(1000))
    assert list(results) == [x * x for x in range(1000)]
    assert results.report.stages[0].lane == "inline"

    class Odd:
        def __mul__(self, other):
            return "odd"

    assert list(duodao.map(square, [1, Odd(), 2])) == [1, "odd", 4]
