"""What a task promises on every lane: one suite over processes, threads and coroutines."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import CancelledError

import pytest
import task_calls

import duodao
from duodao.errors import CallExited, Closed, Deadlock, RemoteTraceback, UsageError
from duodao.sync import Event

LANES = ("process", "thread", "coroutine")


@pytest.fixture(params=LANES)
def lane(request):
    """Each of the three."""
    return request.param


def hanging(lane):
    """A call that never ends by itself, and that its lane can end."""
    return task_calls.hang_async if lane == "coroutine" else task_calls.hang


def test_a_function_runs_with_its_arguments(lane):
    """start(fn, *args, kwargs=...) calls fn(*args, **kwargs), and result() is what it returned."""
    with duodao.Group() as group:
        task = group.start(task_calls.add, 1, kwargs={"b": 2}, lane=lane)
        assert task.result(timeout=10) == 3
    assert (task.exitcode, task.state, task.is_alive(), task.lane) == (0, "ended", False, lane)
    assert task.exception() is None
    assert task.join() is True


def test_an_object_with_run_runs(lane):
    """An object's run() is called, with the arguments."""
    with duodao.Group() as group:
        task = group.start(task_calls.Doubler(4), 1, 2, lane=lane)
    assert task.result() == 11


def test_lambdas_and_closures_run(lane):
    """What can't be imported runs, too."""
    seven = 7
    with duodao.Group() as group:
        task = group.start(lambda n: n + seven, 1, lane=lane)
    assert task.result() == 8


def test_an_error_arrives_in_a_group_with_its_task_named(lane):
    """A failure leaves the block in an ExceptionGroup, is the task's result, and has a note; exit code 1."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group("shop") as group:
        task = group.start(task_calls.refuse, 5, lane=lane, name="till")
    (error,) = caught.value.exceptions
    assert isinstance(error, task_calls.Refusal)
    assert error.code == 5
    (note,) = error.__notes__
    assert "task 'till'" in note
    assert lane in note
    assert "'shop'" in note
    assert task.exception() is error
    with pytest.raises(task_calls.Refusal):
        task.result()
    assert task.exitcode == 1
    if lane == "process":
        assert isinstance(error.__cause__, RemoteTraceback)
        assert "in refuse" in str(error.__cause__)


def test_the_first_failure_cancels_the_others(lane):
    """A failed task ends those that wait, whatever their lane; they are no failures, and have exit code -15."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        others = [group.start(hanging(each), lane=each) for each in LANES]
        group.start(task_calls.refuse, 1, lane=lane)
    assert len(caught.value.exceptions) == 1
    assert [task.exitcode for task in others] == [-15, -15, -15]
    for task in others:
        with pytest.raises(CancelledError):
            task.result()


def test_daemons_hold_nothing_open(lane):
    """The block does not wait for a daemon, and ends it."""
    with duodao.Group() as group:
        task = group.start(hanging(lane), lane=lane, daemon=True)
        assert task.daemon
    assert task.exitcode == -15


def test_terminate_ends_one_and_is_no_failure(lane):
    """A task that was asked to end ends alone: the group goes on, and result() says CancelledError."""
    with duodao.Group() as group:
        other = group.start(task_calls.add, 1, lane=lane)
        task = group.start(hanging(lane), lane=lane, restart="always")
        task.terminate()
        assert task.join(timeout=10)
        assert group.start(task_calls.add, 2, lane=lane).result(timeout=10) == 2
    assert task.exitcode == -15
    assert task.restarts == 0
    assert other.result() == 1
    with pytest.raises(CancelledError):
        task.exception()


def test_kill_ends_one(lane):
    """kill() ends a process with SIGKILL; a thread or coroutine by its next wait."""
    with duodao.Group() as group:
        task = group.start(hanging(lane), lane=lane)
        task.kill()
        assert task.join(timeout=10)
    assert task.exitcode == (-9 if lane == "process" else -15)


def test_sys_exit_is_the_exit_code(lane):
    """sys.exit(0) is a success; sys.exit(3) a failure with exit code 3."""
    with duodao.Group() as group:
        good = group.start(task_calls.leave, 0, lane=lane)
    assert (good.exitcode, good.result()) == (0, None)
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        bad = group.start(task_calls.leave, 3, lane=lane)
    assert bad.exitcode == 3
    assert isinstance(caught.value.exceptions[0], CallExited)


def test_join_and_result_have_time_outs(lane):
    """join(timeout) is False and result(timeout) raises TimeoutError while the task runs."""
    with duodao.Group() as group:
        task = group.start(hanging(lane), lane=lane)
        assert task.join(timeout=0) is False
        assert task.join(timeout=0.01) is False
        with pytest.raises(TimeoutError):
            task.result(timeout=0.01)
        with pytest.raises(TimeoutError):
            task.exception(timeout=0.01)
        assert task.is_alive()
        assert task.exitcode is None
        task.terminate()


def test_callbacks_are_called_once_with_the_task(lane):
    """add_done_callback: called at the end, in this process, and at once when it has ended before."""
    seen = []
    with duodao.Group() as group:
        gate = Event()
        task = group.start(task_calls.add, 1, lane=lane)
        task.add_done_callback(lambda done: (seen.append((done, done.result(), os.getpid())), gate.set()))
        assert gate.wait(10)
    task.add_done_callback(lambda done: seen.append((done, "late", os.getpid())))
    assert seen == [(task, 1, os.getpid()), (task, "late", os.getpid())]


@pytest.mark.parametrize("kind", [task_calls.Frozen, task_calls.OddNotes, task_calls.Closed])
def test_errors_that_refuse_to_be_touched(lane, kind):
    """An exception whose class allows no notes (a frozen dataclass), or no look at it, is a failure like any other."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        task = group.start(task_calls.fail_with, kind, lane=lane)
    (error,) = caught.value.exceptions
    if lane != "process" and kind is not task_calls.Closed:
        assert type(error) is kind
    assert (task.exitcode, task.state) == (1, "ended")


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_a_callback_that_raises_what_ends_threads(lane, kind, caplog):
    """It is logged as well; those after it are called, and the block ends."""
    seen = []
    with duodao.Group() as group:
        task = group.start(hanging(lane), lane=lane)
        task.add_done_callback(lambda _: task_calls.fail_with(kind))
        task.add_done_callback(seen.append)
        task.terminate()
        assert group.start(task_calls.add, 1, 2, lane=lane).result(timeout=10) == 3  # whoever sees ends still does
    assert seen == [task]
    assert kind.__name__ in caplog.text


def test_a_callback_must_be_callable(lane):
    """It is refused at once."""
    with duodao.Group() as group:
        task = group.start(task_calls.add, 1, 2, lane=lane)
        with pytest.raises(UsageError, match="a function that takes the task"):
            task.add_done_callback(5)


def test_a_raising_callback_is_logged(lane, caplog):
    """What a callback raises goes to the log, and harms nobody."""

    def broken(task):
        raise ValueError("in the callback")

    with caplog.at_level(logging.ERROR, "duodao"), duodao.Group() as group:
        task = group.start(hanging(lane), lane=lane, daemon=True)
        task.add_done_callback(broken)
    assert "in the callback" in caplog.text
    assert not task.is_alive()


def test_names_and_numbers(lane):
    """A task has a name, a pid where it has a process, and a thread's number where it has one."""
    with duodao.Group() as group:
        named = group.start(hanging(lane), lane=lane, name="Ada", daemon=True)
        plain = group.start(task_calls.add, 1, lane=lane)
        if lane == "process":
            assert named.pid not in (None, os.getpid())
            assert named.native_id == named.pid
        elif lane == "thread":
            assert named.pid == os.getpid()
            assert named.native_id != threading.get_native_id()
        else:
            assert named.pid is None
            assert named.native_id is None
    assert named.name == "Ada"
    assert plain.name.startswith("add-")


def test_blocked_on_one_of_our_primitives_is_said(lane):
    """A task that waits for an Event is "blocked", on that Event by name."""

    async def wait_for_it():
        await Event(name="dawn")

    def wait_in_thread():
        Event(name="dawn").wait()

    with duodao.Group() as group:
        task = group.start(wait_for_it if lane == "coroutine" else wait_in_thread, lane=lane, daemon=True)
        deadline = time.monotonic() + 10
        while not (task.state == "blocked" and "dawn" in (task.blocked_on or "")):  # state waits 10 ms itself
            assert time.monotonic() < deadline
        assert task.blocked_on == "Event 'dawn'"
    assert task.blocked_on is None


def test_output_and_logs_arrive_here(lane, capsys, caplog):
    """What a task prints and logs comes out as if it had been printed and logged here."""

    def speak():
        task_calls.say("hello")
        logging.getLogger("choir").warning("a note")

    with duodao.Group() as group:
        group.start(speak, lane=lane)
    captured = capsys.readouterr()
    assert captured.out == "hello\n"
    assert captured.err == "aside\n"
    assert "a note" in caplog.text


def test_context_variables_are_inherited(lane):
    """Threads and coroutines see the starter's context variables; a process has its own."""
    token = task_calls.MODE.set("set")
    try:
        with duodao.Group() as group:
            task = group.start(task_calls.mode, lane=lane)
    finally:
        task_calls.MODE.reset(token)
    assert task.result() == ("unset" if lane == "process" else "set")


def test_a_failed_task_is_restarted(lane, tmp_path):
    """restart="on-failure" runs it again until it returns; the failures before are no failures of the group."""
    log = tmp_path / "attempts"

    def third_time_lucky():
        with open(log, "a+") as file:
            file.write("x")
            file.seek(0)
            if len(file.read()) < 3:
                raise OSError("not yet")
        return "up"

    with duodao.Group() as group:
        task = group.start(third_time_lucky, lane=lane, restart=duodao.Restart(delay=0.001))
    assert task.result() == "up"
    assert task.restarts == 2


def test_a_limit_of_restarts(lane):
    """After the limit the failure counts, and says how often it was restarted."""
    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        task = group.start(task_calls.refuse, 1, lane=lane, restart=duodao.Restart(limit=2, delay=0.001))
    assert task.restarts == 2
    assert "restarted 2 times" in "".join(caught.value.exceptions[0].__notes__)


def test_tasks_start_tasks(lane):
    """A callback, which runs while the block's end waits, starts another task: the block waits for that, too."""
    made = []
    with duodao.Group() as group:
        task = group.start(task_calls.add, 1, lane=lane)
        task.add_done_callback(lambda _: made.append(group.start(task_calls.add, 2, lane=lane)))
    assert made[0].result() == 2


@pytest.mark.parametrize("lane", ["thread", "coroutine"])  # a process has no handle of itself: a Task isn't pickled
def test_a_task_that_waits_for_itself_gives_way(lane):
    """join() inside of the task itself can't end: Deadlock, at once."""
    box = []
    ready = threading.Event()

    def wait_for_me():
        ready.wait(10)
        box[0].join()

    async def await_me():
        await box[0]

    with pytest.raises(ExceptionGroup) as caught, duodao.Group() as group:
        box.append(group.start(await_me if lane == "coroutine" else wait_for_me, lane=lane, name="me"))
        ready.set()
    assert isinstance(caught.value.exceptions[0], Deadlock)
    assert "'me'" in str(caught.value.exceptions[0])


def test_a_group_ends_once(lane):
    """After its block a group starts nothing: Closed. Before it, and for a second block: UsageError."""
    group = duodao.Group()
    with pytest.raises(UsageError, match="with"):
        group.start(task_calls.add, 1, lane=lane)
    with group:
        pass
    with pytest.raises(Closed, match="has ended"):
        group.start(task_calls.add, 1, lane=lane)
    with pytest.raises(UsageError, match="one block"), group:
        pass
