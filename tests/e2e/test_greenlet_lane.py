"""lane="greenlet": blocking code by the thousand, in a process of its own that gevent has patched. Source: M35."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

import greenlet_calls as calls
import pytest
from tests.conftest import need

import duodao
from duodao.children import guard
from duodao.errors import CallTimeout, SetupFailed, UsageError, WorkerDied
from duodao.lanes.seeds import derive

MANY = calls.TOGETHER


@pytest.fixture(autouse=True)
def gevent():
    """The lane's library."""
    need(importlib.util.find_spec("gevent"), "gevent")


@pytest.fixture
def gathering():
    """An HTTP server that answers nobody until `MANY` requests have come; its port."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need(hard == resource.RLIM_INFINITY or hard > 2 * MANY, "a limit of 2000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started, port, loop = threading.Event(), [], asyncio.new_event_loop()

    async def serve():
        everybody, came = asyncio.Event(), []

        async def answer(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            came.append(1)
            if len(came) == MANY:
                everybody.set()
            await everybody.wait()
            body = head.split()[1][1:]
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                writer.close()
                await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        port.append(server.sockets[0].getsockname()[1])
        stop.append(asyncio.Event())
        started.set()
        await stop[0].wait()
        server.close()

    stop: list[asyncio.Event] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(30)
    yield port[0]
    loop.call_soon_threadsafe(stop[0].set)
    thread.join(30)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(function, inputs, **options):
    return list(duodao.map(function, inputs, lane="greenlet", **options))


def program(text, *folders):
    """Run it as a program of its own, with these folders on its path."""
    path = [*map(str, folders), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("function", [calls.wait_for_all, calls.sleep_for_all])
def test_a_thousand_calls_wait_at_once(function):
    """A thousand calls that wait for each other, by an Event or time.sleep, all end: one process has them all."""
    assert run(function, range(MANY), workers=MANY) == list(range(MANY))


@pytest.mark.parametrize("function", [calls.talk, calls.open_url, calls.request])
def test_a_thousand_requests_at_once(function, gathering):
    """A server that answers when a thousand have asked answers a thousand blocking calls: socket, urllib, requests."""
    assert run(function, range(MANY), common={"port": gathering}) == [str(at) for at in range(MANY)]


def test_the_callers_modules_stay_as_they_are():
    """Before, while and after: this process's socket, threading, ssl and the rest are the originals, in all workers but
    the greenlets'; a class that a module took at its import is the patched one there and the original here."""
    before = calls.originals()
    with duodao.map(calls.homes, range(4), lane="greenlet") as results:
        assert [next(results)] == [("gevent._socket3", "gevent._socket3", "gevent.hub")]
        assert calls.originals() == before
        plain = ("socket", "socket", "time")
        assert list(duodao.map(calls.homes, range(2), lane="process")) == [plain] * 2
        assert list(duodao.map(calls.homes, range(2), lane="thread", workers=(1, 2))) == [plain] * 2
    assert calls.originals() == before
    assert calls.homes() == plain


def test_the_caller_never_loads_gevent():
    """A program that used the lane has no module of gevent's."""
    text = (
        "import duodao, greenlet_calls as calls, sys\n"
        "assert list(duodao.map(calls.pid, range(3), lane='greenlet'))\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('gevent', 'greenlet')])"
    )
    done = program(text)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_module_that_was_loaded_too_early_is_named(tmp_path):
    """A sitecustomize that takes the unpatched socket class, or makes a lock, ends the run, with its name."""
    for line, what in (
        ("from socket import socket", "socket.socket"),
        ("import threading; L = threading.Lock()", "lock"),
    ):
        (tmp_path / "sitecustomize.py").write_text("import early\nassert early\n")
        (tmp_path / "early.py").write_text(line + "\n")
        text = (
            "import duodao, greenlet_calls as calls\n"
            "try:\n    list(duodao.map(calls.pid, range(3), lane='greenlet'))\n"
            "except duodao.errors.SetupFailed as error:\n    print(error)"
        )
        done = program(text, tmp_path)
        assert "early." in done.stdout, done.stderr
        assert what in done.stdout
        assert "before gevent could patch it" in done.stdout


def test_widths_by_level():
    """(processes, greenlets): the calls of one stage run in as many processes."""
    pids = run(calls.pid, range(40), workers=(2, 10))
    assert len(set(pids)) == 2


# Time-outs, and who holds the hub


def test_a_time_out_ends_a_waiting_call(tmp_path):
    """Its `finally` runs, its CallTimeout says where it was, and the other calls know nothing of it."""
    log = tmp_path / "log"
    outcomes = run(calls.sleep_some, range(20), common={"log": str(log)}, timeout=0.5, errors="collect")
    assert [outcome.value for outcome in outcomes[1:]] == list(range(1, 20))
    error = outcomes[0].error
    assert type(error) is CallTimeout
    assert "in lie_down" in "".join(traceback.format_exception(error))
    assert log.read_text() == "left\n"


def test_a_call_that_swallows_the_end_of_its_wait_is_given_up():
    """Its item fails with CallTimeout a second later, and the one place it had is another's."""
    outcomes = run(calls.swallow, range(3), workers=1, timeout=0.2, errors="collect")
    assert [outcome.value for outcome in outcomes[1:]] == [1, 2]
    assert type(outcomes[0].error) is CallTimeout


@pytest.mark.parametrize("function", [calls.compute, calls.compute_in_c, calls.block])
def test_a_call_that_holds_the_hub_is_named(function):
    """Python code, C code that keeps the GIL, and C code that waits: the warning has function, seconds and line."""
    with pytest.warns(RuntimeWarning) as caught:
        assert run(function, range(5)) == list(range(5))
    (text,) = {str(warning.message) for warning in caught}
    name = function.__name__
    assert re.match(rf"{name} held the hub of its worker for \d+\.\d s, in .*{name} \({calls.__file__}:\d+\)", text)


def test_a_call_that_holds_the_hub_for_long_is_named_meanwhile(capsys):
    """After two seconds the caller's stderr has it: the call may never end."""
    with pytest.warns(RuntimeWarning, match="compute_long held"):
        assert run(calls.compute_long, [1]) == [1]
    assert "duodao: compute_long has held the hub" in capsys.readouterr().err


def test_calls_that_only_wait_are_not_named():
    """Ten calls that sleep for half a second hold nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(calls.compute, range(1, 11)) == list(range(1, 11))


def test_a_call_that_never_lets_the_hub_go_is_ended():
    """Its time-out counts although nothing else runs there: the worker is killed, the item blamed, with its stack."""
    outcomes = run(calls.hang, range(10), timeout=0.5, errors="collect")
    assert [outcome.value for outcome in outcomes[1:]] == list(range(1, 10))
    assert type(outcomes[0].error) is CallTimeout
    assert outcomes[0].attempts == 1
    assert "in spin" in "".join(traceback.format_exception(outcomes[0].error))


def test_c_code_that_keeps_the_gil_is_ended():
    """So is a call in which not even a thread of its process can run."""
    outcome, *_ = run(calls.hang_in_c, range(1), timeout=0.2, errors="collect")
    assert type(outcome.error) is CallTimeout


@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("kill", -signal.SIGKILL)])
def test_a_call_that_ends_its_worker_is_blamed(how, code):
    """One item dies of it, the others that were in flight there have their results."""
    outcomes = run(calls.die, range(12), common={"how": how}, errors="collect")
    assert [outcome.value for outcome in outcomes if outcome.index != 3] == [x for x in range(12) if x != 3]
    assert type(outcomes[3].error) is WorkerDied
    assert outcomes[3].error.exitcode == code


@pytest.mark.parametrize(
    "where", [{"lane": "greenlet"}, {"lane": "thread", "workers": (1, 8)}, {"lane": "process", "workers": 1}]
)
def test_a_forked_copy_that_comes_back_ends(where):
    """os.fork() in a call that returns in both: the copy ends with exit code 1, its result is nobody's."""
    assert list(duodao.map(calls.come_back_twice, range(6), **where)) == [0, 1, 2, 1, 4, 5]


def test_a_forked_process_runs_only_what_it_is_for(tmp_path):
    """A child that multiprocessing forks may wait, and ends well; the calls beside it run in the worker alone."""
    log = tmp_path / "log"
    assert run(calls.fork_beside, range(6), common={"log": str(log)}) == [0, 1, 2, 0, 4, 5]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "4", "5", "copy"]


# Locks


@pytest.mark.parametrize("kind", ["threading.Lock", "threading.RLock", "Lock", "RLock", "Condition", "Semaphore"])
def test_one_greenlet_is_inside_a_lock(kind):
    """Thirty greenlets of one thread take a lock, sleep and leave it: never two at once."""
    assert run(calls.most_inside, [kind]) == [(30, 1)]


def test_locks_that_the_guard_has_loaded_before():
    """A program that has used tasks, for which the guard loads our locks unpatched, has the right ones in greenlets."""
    guard.ensure()
    for module in ("duodao.lanes.solo", "duodao.sync.lock", "duodao.channel.memory"):
        guard.preload(module)
    assert run(calls.most_inside, ["RLock"]) == [(30, 1)]


def test_who_waits_for_a_lock_lets_the_hub_go_on():
    """While one greenlet waits for a lock of duodao.sync, others run."""
    assert run(calls.wait_while_others_run, [0]) == [5]


def test_a_circle_of_greenlets_is_broken():
    """Two greenlets that wait for each other: one gets Deadlock, with locks, holders and stacks; the other goes on."""
    ((both, deadlock),) = run(calls.circle, [0])
    assert both == "had both"
    assert "held by greenlet" in deadlock
    assert deadlock.count("in take") == 2


def test_a_lock_whose_greenlet_has_ended():
    """Who waits for it gets OwnerDied."""
    assert run(calls.left_locked, [0]) == ["OwnerDied"]


def test_a_lock_belongs_to_its_greenlet():
    """Another can't release it, nor take it; its own may take an RLock again."""
    assert run(calls.not_mine, [0]) == [("RuntimeError", True, False)]


@pytest.mark.parametrize("via", ["memory", "pipe"])
def test_queues_between_greenlets(via):
    """A bounded queue between two greenlets: whoever waits lets the other run."""
    assert run(calls.through_a_queue, [via]) == [sum(range(200))]


@pytest.mark.parametrize("kind", ["lock", "queue", "state"])
def test_what_processes_share_is_refused(kind):
    """Their owner is a thread: two greenlets would both be it."""
    with pytest.raises(UsageError, match="lane='thread' or 'process'"):
        run(calls.share, [kind])


@pytest.mark.parametrize("lane", ["inline", "thread", "process"])
def test_a_run_inside_of_a_call(lane):
    """A call may use threads and processes of ours, in which nothing is patched but the threads."""
    assert run(calls.run_inside, [lane, lane]) == [9900, 9900]


def test_a_loop_inside_of_a_call_is_refused():
    """There are no threads in which an event loop could run beside the hub."""
    with pytest.raises(UsageError, match="event loop"):
        run(calls.run_inside, ["coroutine"])


# The rest of what calls rely on


def test_a_session_for_all_calls_is_closed_at_the_end(gathering, tmp_path):
    """setup= opens one requests.Session per process, shared by a thousand calls, and closes it."""
    log = tmp_path / "log"
    setup = {"session": Opened(str(log))}
    found = run(calls.with_session, range(MANY), setup=setup, common={"port": gathering})
    assert found == [str(at) for at in range(MANY)]
    assert log.read_text().split() == ["open", "close"]


class Opened:
    """A factory that travels."""

    def __init__(self, log):
        self.log = log

    def __call__(self):
        return calls.Session(self.log)


def test_random_state_and_common():
    """With a seed each call draws from a generator of its own; common= arrives."""
    found = run(calls.dice, range(50), seed=7, common={"scale": 2})
    assert found == [(at, random.Random(derive(7, at)).random() * 2) for at in range(50)]


def test_retries_rate_and_journal(tmp_path):
    """A call that fails once is run again; the journal keeps what is done from running a second time."""
    flaky, log, journal = tmp_path / "flaky", tmp_path / "log", tmp_path / "run.journal"
    assert run(calls.flaky, range(20), common={"log": str(flaky)}, retries=2, rate=1000) == list(range(20))
    for skipped in (0, 20):
        report = duodao.run(calls.note, range(20), lane="greenlet", common={"log": str(log)}, journal=str(journal))
        assert (report.succeeded, report.skipped) == (20, skipped)
    assert sorted(map(int, log.read_text().split())) == list(range(20))


def test_refusals(monkeypatch):
    """An async function is refused with the lane that fits; without gevent, what to install, before anything starts."""
    with pytest.raises(UsageError, match="lane='coroutine'"):
        duodao.map(calls.wait_async, [1], lane="greenlet")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gevent" else found(name, *rest)
    )
    with pytest.raises(UsageError, match=r"pip install 'duodao\[greenlet\]'"):
        duodao.map(calls.pid, [1], lane="greenlet")


def test_setup_that_fails():
    """It ends the run with SetupFailed, as on other lanes."""
    with pytest.raises(SetupFailed, match="'session'"):
        run(calls.with_session, [1], setup={"session": calls.lie_down_not}, common={"port": 1})
