"""One contract, all lanes: the invariants of lanes/base.py and what every call may rely on."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import traceback

import contract_calls
import pytest
from lane_cases import CASES, Gate, Inbox

from duodao.errors import CallExited, CallTimeout, Closed, SetupFailed
from duodao.lanes.base import Batch, Work
from duodao.lanes.seeds import derive


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def make(case):
    """Makes lanes; closes them, and holds invariant 5 for all of them together."""
    threads = set(threading.enumerate())
    made = []

    def factory(name_or_work, workers=2, **options):
        work = name_or_work if isinstance(name_or_work, Work) else case.work(name_or_work, **options)
        lane = case.make(work, workers=workers)
        made.append(lane)
        return lane, Inbox(lane)

    yield factory
    for lane in made:
        lane.close(5.0)
    if not case.remote:  # worker processes, and what watches over them, are kept for the next run on purpose
        left = [thread for thread in threading.enumerate() if thread not in threads]
        for thread in left:  # one that was given up ends when its call does, which by now it can
            thread.join(5.0)
        assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.close()


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 1000, 4096])
def test_each_position_exactly_once(make, size, careful):
    """Every position of a batch of any size, plain or careful, is delivered once and with its own value."""
    _, inbox = make("square")
    inbox.start(list(range(size)), careful=careful)
    inbox.finish()
    assert inbox.values == {i: i * i for i in range(size)}
    assert not inbox.failures


def test_many_batches_at_once(make):
    """Batches that overlap on more workers don't mix their outcomes."""
    _, inbox = make("square", workers=4)
    for first in range(0, 3000, 150):
        inbox.start(list(range(first, first + 150)), ids=range(first, first + 150))
    inbox.finish()
    assert inbox.values == {i: i * i for i in range(3000)}


def test_ids_with_gaps(make):
    """ids may be a list with gaps, as in a batch that is run again."""
    _, inbox = make("square")
    inbox.start([3, 5, 9], ids=[30, 7, 12])
    inbox.finish()
    assert inbox.values == {30: 9, 7: 25, 12: 81}


@pytest.mark.parametrize("size", [6, 100])
def test_errors_are_the_items_own(make, case, size):
    """An exception fails its own item, arrives with its type and arguments, and its traceback names the culprit."""
    _, inbox = make("odd_fails")
    inbox.start(list(range(size)))
    inbox.finish()
    assert inbox.values == {i: i for i in range(0, size, 2)}
    assert sorted(inbox.failures) == list(range(1, size, 2))
    for number, failure in inbox.failures.items():
        assert failure.kind == "error"
        assert type(failure.error) is contract_calls.Custom
        assert failure.error.args == ("odd", number)
        text = "".join(traceback.format_exception(failure.error))
        assert "in inner" in text
        if not case.remote:
            assert traceback.extract_tb(failure.error.__traceback__)[-1].name == "inner"


def test_an_error_is_no_cycle(make, case):
    """An error's traceback doesn't hold its batch: with the error gone, nothing is left for the collector."""
    if case.remote:
        pytest.skip("errors of another process are copies")
    _, inbox = make("odd_fails")
    inbox.start([1, 2, 3])
    inbox.finish()
    for failure in inbox.failures.values():
        names = [frame.name for frame in traceback.extract_tb(failure.error.__traceback__)]
        assert not set(names) & set(case.loops)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("exit", CallExited), ("generator", CallExited), ("timeout", TimeoutError), ("value", ValueError)],
)
def test_what_ends_programs_ends_its_item_only(make, kind, error):
    """SystemExit and GeneratorExit become the item's CallExited; a TimeoutError of its own is an ordinary error."""
    _, inbox = make("raises", timeout=None)
    inbox.start(["before", kind, "after"])
    inbox.finish()
    assert inbox.values == {0: "before", 2: "after"}
    assert inbox.failures[1].kind == "error"
    assert type(inbox.failures[1].error) is error


def test_stop_iteration_is_an_error(make, case):
    """StopIteration out of a function is that item's error and not the end of the batch."""
    _, inbox = make("raises")
    inbox.start(["before", "stop", "after"])
    inbox.finish()
    assert inbox.values == {0: "before", 2: "after"}
    assert type(inbox.failures[1].error) is (RuntimeError if case.is_async else StopIteration)


def test_interrupt_inside_a_call(make, case):
    """KeyboardInterrupt raised by a function ends its item, except on the inline lane, whose thread is the user's."""
    lane, inbox = make("raises")
    if case.blocking:
        with pytest.raises(KeyboardInterrupt):
            lane.start(Batch(range(1), ["interrupt"]), inbox.queue.put)
        return
    inbox.start(["before", "interrupt", "after"])
    inbox.finish()
    assert inbox.values == {0: "before", 2: "after"}
    assert type(inbox.failures[1].error) is CallExited


def test_star(make):
    """star=True makes arguments of tuple inputs."""
    _, inbox = make("add", star=True, common={"z": 100})
    inbox.start([(1, 2), (3, 4)])
    inbox.finish()
    assert inbox.values == {0: 103, 1: 107}


def test_star_with_a_wrong_tuple(make):
    """An input that doesn't fit the function is that item's TypeError."""
    _, inbox = make("add", star=True)
    inbox.start([(1, 2), (3,), (4, 5)])
    inbox.finish()
    assert inbox.values == {0: 3, 2: 9}
    assert type(inbox.failures[1].error) is TypeError


def test_common(make):
    """common= reaches every call as keyword arguments."""
    _, inbox = make("scaled", common={"factor": 3, "offset": 1})
    inbox.start([1, 2, 3])
    inbox.finish()
    assert inbox.values == {0: 4, 1: 7, 2: 10}


def test_setup_opens_and_closes_once_per_worker(make, case, tmp_path):
    """A resource is opened before the first call, shared by the worker's calls, and closed when the lane is."""
    log = tmp_path / "log"
    factory = contract_calls.logged_async if case.is_async else contract_calls.logged
    lane, inbox = make("with_resource", workers=1, setup={"thing": factory(str(log))})
    for first in (0, 3):
        inbox.start([1, 2, 3], ids=range(first, first + 3))
        inbox.finish()
    assert log.read_text().split() == ["open"]
    assert inbox.values[0] == ("thing", 1)
    lane.close(5.0)
    assert log.read_text().split() == ["open", "close"]


def test_setup_is_lazy(make, case, tmp_path):
    """A lane that never runs a call opens nothing."""
    log = tmp_path / "log"
    lane, _ = make("with_resource", setup={"thing": contract_calls.logged(str(log))})
    lane.close(1.0)
    assert not log.exists()


def test_setup_that_fails_is_fatal(make):
    """A factory that raises ends the run: a fatal SetupFailed that names it, the factory's own error as its cause."""
    _, inbox = make("with_resource", setup={"thing": contract_calls.broken_resource})
    inbox.start([1, 2])
    result = inbox.next()
    assert type(result.fatal) is SetupFailed
    assert "'thing'" in str(result.fatal)
    assert "no database" in "".join(traceback.format_exception(result.fatal))


def test_seed_gives_each_call_its_own_rng(make):
    """With seed, what a call draws depends on the seed and its id alone."""
    _, inbox = make("dice", seed=7, wants_rng=True, workers=3)
    inbox.start([0] * 3, ids=[4, 90, 2])
    inbox.start([0] * 100, ids=range(100, 200))
    inbox.finish()
    expected = {i: random.Random(derive(7, i)).random() for i in [4, 90, 2, *range(100, 200)]}
    assert inbox.values == expected


def test_a_slow_call_is_delivered_when_it_completes(make, case, gate):
    """A call of 20 ms or more doesn't wait for the rest of its batch."""
    _, inbox = make("gated", common=gate.common)
    inbox.start([1000, -1], apart=case.blocking)
    while 0 not in inbox.values:
        inbox.next()
    assert 1 not in inbox.values
    gate.begun()
    gate.open()
    inbox.finish()
    assert inbox.values == {0: 1000, 1: -1}


def test_a_call_that_hangs_holds_up_no_other_worker(make, case, gate):
    """While one call waits, the rest of other batches ends on the other worker."""
    if case.blocking:
        pytest.skip("one worker")
    _, inbox = make("gated", common=gate.common)
    inbox.start([-1])
    gate.begun()
    inbox.start([1, 2, 3], ids=[1, 2, 3])
    while len(inbox.values) < 3:
        inbox.next()
    gate.open()
    inbox.finish()
    assert inbox.values == {0: -1, 1: 1, 2: 2, 3: 3}


def test_workers_run_at_the_same_time(make, case, gate):
    """`workers` calls are in flight together, and not one more."""
    if case.blocking:
        pytest.skip("one worker")
    _, inbox = make("gated", workers=3, common=gate.common)
    for number in range(4):
        inbox.start([-1 - number], ids=[number])
    begun = gate.begun(3)
    assert len(begun) == 3
    gate.open()
    inbox.next()
    assert begun | gate.begun() == {-1, -2, -3, -4}
    gate.open(3)
    inbox.finish()


def test_timeout(make, case, gate):
    """A call that runs too long fails with CallTimeout; its mates, before and after it, succeed."""
    if case.blocking:
        pytest.skip("the engine refuses time-outs on the inline lane")
    _, inbox = make("gated", timeout=0.3, common=gate.common)
    inbox.start([1, -1, 3, 4])
    inbox.finish()
    gate.begun()
    gate.open()  # for a thread that was given up
    assert inbox.values == {0: 1, 2: 3, 3: 4}
    failure = inbox.failures[1]
    assert failure.kind == "timeout"
    assert isinstance(failure.error, CallTimeout)
    assert failure.seconds >= 0.3


def test_own_timeout_error_under_a_timeout(make, case):
    """A TimeoutError that the function raises itself stays its own error where a time-out is set."""
    if case.blocking:
        pytest.skip("the engine refuses time-outs on the inline lane")
    _, inbox = make("raises", timeout=30.0)
    inbox.start(["timeout", "fine"])
    inbox.finish()
    assert inbox.failures[0].kind == "error"
    assert type(inbox.failures[0].error) is TimeoutError


def test_cancel_stops_what_has_not_begun(make, case, gate):
    """After cancel the rest of the batch doesn't run, and the lane goes on with others."""
    if case.blocking:
        pytest.skip("start returns when all has run")
    lane, inbox = make("gated", workers=1, common=gate.common)
    first = inbox.start([-1, -2, -3])
    gate.begun()
    lane.cancel(first)
    if not case.stops:
        gate.open(1 if case.cuts else 3)
    second = inbox.start([5], ids=[7])
    while 7 not in inbox.values:
        result = inbox.queue.get(timeout=30)
        if result.batch is second:
            inbox.values[7] = result.values[0]
    if case.cuts:
        lane.close(5.0)
        gate.mark()
        assert gate.begun() == {0}, "an item that had not begun was run"


def test_cancel_of_what_is_over_or_unknown(make):
    """cancel is a no-op for a batch that has ended and for one the lane never saw."""
    lane, inbox = make("square")
    batch = inbox.start([1])
    inbox.finish()
    lane.cancel(batch)
    lane.cancel(Batch(range(1), [1]))
    inbox.start([2], ids=[5])
    inbox.finish()
    assert inbox.values == {0: 1, 5: 4}


def test_close_twice_and_before_use(make):
    """close is idempotent, also for a lane that never ran anything."""
    lane, _ = make("square")
    lane.close(1.0)
    lane.close(1.0)


def test_start_after_close(make):
    """start on a closed lane says so."""
    lane, inbox = make("square")
    inbox.start([1])
    inbox.finish()
    lane.close(1.0)
    with pytest.raises(Closed):
        inbox.start([2], ids=[9])


def test_close_with_work_in_flight(make, case, gate):
    """close(0) returns while calls hang; what can be stopped is, and nothing runs after what can't."""
    if case.blocking:
        pytest.skip("start returns when all has run")
    lane, inbox = make("gated", workers=2, common=gate.common)
    inbox.start([-1, -5, -6])
    inbox.start([-2], ids=[3])
    gate.begun(2)
    lane.close(0.0)
    gate.open(2)


def test_descriptors_are_given_back(make, case):
    """Lanes made, used and closed leave no descriptor open."""
    if case.remote:
        pytest.skip("idle workers are kept for the next run")
    lane, inbox = make("square")
    inbox.start([1, 2, 3])
    inbox.finish()
    lane.close(5.0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(5):
        lane, inbox = make("square")
        inbox.start([1, 2, 3])
        inbox.finish()
        lane.close(5.0)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("options", [{}, {"common": {}}, {"timeout": 60.0}])
def test_frames_between_the_loop_and_the_function(make, case, size, options):
    """At most two frames stand between a worker's loop and the user's function."""
    if case.blocking and options.get("timeout"):
        pytest.skip("the engine refuses time-outs on the inline lane")
    _, inbox = make("stack", **options)
    inbox.start([0] * size)
    inbox.finish()
    for frames in inbox.values.values():
        names = [name for _, name in frames]
        distance = min(names.index(loop) for loop in case.loops if loop in names)
        assert distance <= 2


def test_times_are_told(make):
    """The seconds of a delivery cover its calls: where `each` is told, they sum up to no more."""
    _, inbox = make("gated", common={"gate": "", "started": ""})
    inbox.start([1000, 1, 2])
    inbox.finish()
    assert sum(result.seconds for result in inbox.results) >= 0.029  # a timer may be a millisecond early
    for result in inbox.results:
        if result.each is not None:
            assert sum(result.each) <= result.seconds * 1.01 + 0.001


def test_a_case_for_every_lane():
    """The suite runs over every lane that a user can name."""
    from duodao.lanes.base import LANES

    covered = {case.name for case in CASES}
    assert covered >= {name for name in LANES if name not in ("auto", "command")}  # test_command_contract.py has that
