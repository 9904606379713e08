"""What `guard` promises of a child: what it has, how it ends, who hears of it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import sys
import threading
import time

import pytest

from duodao.children import boot, guard, link
from duodao.errors import GuardDied, UsageError

RUN = "child_entries:run"
FOREVER = b"import signal\nwhile True: signal.pause()"


def read_all(fd):
    """Everything until the last writer is gone."""
    return b"".join(iter(lambda: os.read(fd, 65536), b""))


def run(source, *fds):
    """A worker that runs `source`."""
    return guard.fork(RUN, arg=source, fds=fds)


def output(source, pipe):
    """What the worker's `source` writes to fds[0]."""
    child = run(source, pipe[1])
    os.close(pipe[1])
    text = read_all(pipe[0])
    assert child.wait(10) is not None
    return text


def guard_pid():
    """The guard's."""
    return guard._home.get().pid


def status(pid, field):
    """A line of /proc/pid/status."""
    with open(f"/proc/{pid}/status") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith(field + ":"))


def wait_gone(pid, seconds=10):
    """Wait until the process has ended."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watch], [], [], seconds)[0], f"process {pid} is still there"
    finally:
        os.close(watch)


@pytest.mark.parametrize("size", [0, 1000, 49_152, 3_000_000])
def test_the_argument_arrives_whole(pipe, size):
    """An argument of any size reaches the entry, also one larger than a packet."""
    arg = os.urandom(size)
    child = guard.fork("child_entries:echo", arg=arg, fds=[pipe[1]])
    os.close(pipe[1])
    assert read_all(pipe[0]) == arg
    assert child.wait(10) == 0


def test_a_child_has_its_own_descriptors_only(pipe):
    """It has stdin, stdout, stderr, its lifeline, the arena and what it was given; nothing of its siblings."""
    null = os.open(os.devnull, os.O_RDONLY)
    sibling = run(FOREVER, null, null)
    os.close(null)
    source = b"import os; os.write(fds[0], repr((fds, sorted(map(int, os.listdir('/proc/self/fd'))))).encode())"
    text = output(source, pipe)
    sibling.kill()
    fds, have = eval(text)
    assert fds == [12]
    assert have == [0, 1, 2, 3, 10, 11, 12], "3 is the list's own"


def test_descriptors_keep_their_order(pipe):
    """The entry gets the descriptors in the order they were given, whatever numbers they had."""
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    mine = [*others[:10], pipe[1], *others[10:]]
    child = run(b"import os; os.write(fds[10], repr(fds).encode())", *mine)
    os.close(pipe[1])
    assert eval(read_all(pipe[0])) == list(range(12, 33))
    assert child.wait(10) == 0
    for fd in others:
        os.close(fd)


def test_too_many_descriptors_are_refused():
    """More descriptors than a message carries: a UsageError that names the limit, before anything starts."""
    with pytest.raises(UsageError, match="250"):
        guard.fork(RUN, fds=[0] * 251)


def test_a_bad_descriptor_is_an_error_and_no_more():
    """A closed descriptor is EBADF; the next fork works."""
    with pytest.raises(OSError, match="descriptor"):
        guard.fork(RUN, fds=[9999])
    assert run(b"code = 3").wait(10) == 3


def test_who_a_worker_is(pipe):
    """It leads its group in the guard's session, ignores SIGINT, obeys SIGTERM, reads nothing, dies first of memory."""
    text = output(
        b"import os, signal, sys\n"
        b"mask = [int(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)]\n"
        b"os.write(fds[0], repr((os.getpid() == os.getpgrp(), os.getsid(0), mask, os.read(0, 1),"
        b" int(open('/proc/self/oom_score_adj').read()), signal.pthread_sigmask(0, []), os.getppid(),"
        b" os.environ['DUODAO_GUARD'])).encode())",
        pipe,
    )
    leads, session, handlers, stdin, score, blocked, parent, marker = eval(text.replace(b"<", b"'").replace(b">", b"'"))
    assert leads
    assert session == parent == guard_pid()
    assert handlers == [signal.SIG_IGN, signal.SIG_DFL, signal.SIG_DFL, signal.SIG_DFL]
    assert stdin == b""
    assert score >= 500
    assert blocked == set()
    assert marker.startswith(f"{os.getpid()}-")


@pytest.mark.parametrize(
    ("entry", "arg", "code"),
    [
        (RUN, b"code = 7", 7),
        (RUN, b"code = 'text'", 0),
        (RUN, b"import os; os._exit(9)", 9),
        (RUN, b"import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV),
        ("child_entries:leave", b"5", 5),
        ("child_entries:leave", b"", 1),
        ("child_entries:fail", b"as it should", 1),
        ("child_entries:nothing", b"", 1),
        ("no_such_module:main", b"", 1),
    ],
)
def test_exit_codes(entry, arg, code):
    """The exit code tells how it ended: its int, 0, 1 after an exception or SystemExit text, or minus the signal."""
    child = guard.fork(entry, arg=arg)
    assert child.wait(10) == code
    assert child.exitcode == code
    assert repr(child) == f"<Child {child.pid} ended with {code}>"


def test_exit_functions_run_and_output_is_flushed(pipe):
    """A worker that ends normally runs its exit functions, and what it printed is not lost."""
    text = output(
        b"import atexit, os, sys\nsys.stdout = open(fds[0], 'w', closefd=False)\n"
        b"atexit.register(print, 'at exit')\nprint('printed')",
        pipe,
    )
    assert text == b"printed\nat exit\n"


def test_kill_ends_what_holds_the_gil():
    """`kill` ends a worker whose C code holds the GIL, and may be called again."""
    child = run(b"import ctypes; ctypes.PyDLL(None).sleep(60)")
    assert child.exitcode is None
    child.kill()
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    child.kill()
    child.terminate()


def test_terminate_at_once_is_not_lost():
    """A SIGTERM sent right after the fork, when the child has not set its handlers yet, still ends it."""
    for _ in range(30):
        child = run(FOREVER)
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM


def test_terminate_can_be_handled(pipe):
    """A worker with a handler for SIGTERM chooses how it ends."""
    child = run(
        b"import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        b"os.write(fds[0], b'r')\nwhile True: signal.pause()",
        pipe[1],
    )
    assert os.read(pipe[0], 1) == b"r"
    child.terminate()
    assert child.wait(10) == 4


def test_wait_ends_in_time():
    """`wait` with a time-out returns None when the child goes on."""
    child = run(FOREVER)
    assert child.wait(0.01) is None
    child.kill()
    assert child.wait() == -9


def test_on_exit_is_called_once_each_way():
    """Every callback is called exactly once, whether it came before or after the end; one that raises harms nobody."""
    heard = []
    seen = []
    hook, threading.excepthook = threading.excepthook, lambda args: seen.append(args.exc_value)
    try:
        child = run(b"import os; os.read(fds[0], 1)", *(ends := os.pipe()))
        child.on_exit(lambda child: 1 / 0)
        child.on_exit(lambda child: heard.append((child.exitcode, threading.current_thread().name)))
        os.write(ends[1], b"x")
        assert child.wait(10) == 0
        child.on_exit(lambda child: heard.append((child.exitcode, threading.current_thread().name)))
        assert run(b"").wait(10) == 0
    finally:
        threading.excepthook = hook
        for end in ends:
            os.close(end)
    assert sorted(heard) == [(0, "MainThread"), (0, "duodao-guard-reader")]
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_a_callback_may_fork():
    """A callback that starts the successor of a dead child, on the very thread that reads the guard, doesn't hang."""
    done = threading.Event()
    ends = []

    def again(child):
        ends.append(child.exitcode)
        if len(ends) < 20:
            for _ in range(2):
                run(b"code = 2").on_exit(again)
        else:
            done.set()

    run(b"code = 2").on_exit(again)
    assert done.wait(20)
    assert set(ends) == {2}


def test_the_rest_of_the_group_goes_with_its_leader(pipe):
    """What a worker started in its group and left running is killed when the worker ends."""
    text = output(
        b"import os, subprocess, warnings; warnings.simplefilter('ignore')\n"
        b"os.write(fds[0], str(subprocess.Popen(['sleep', '60']).pid).encode())",
        pipe,
    )
    wait_gone(int(text))


@pytest.mark.parametrize("end", [b"", b"import signal\nwhile True: signal.pause()"])
def test_a_worker_may_be_a_supervisor(pipe, end):
    """A worker that starts children has a guard of its own; both end with it, whether it returns or is killed."""
    child = run(
        b"import os\nfrom duodao.children import guard\nchild = guard.command(['sleep', '60'])\n"
        b"os.write(fds[0], f'{guard._home.get().pid} {child.pid}'.encode())\n" + end,
        pipe[1],
    )
    inner, grandchild = map(int, os.read(pipe[0], 100).split())
    assert inner != guard_pid()
    if end:
        child.kill()
    assert child.wait(10) == (-9 if end else 0)
    wait_gone(inner)
    wait_gone(grandchild)


def test_ensure_does_not_wait():
    """`ensure` returns while the guard still starts, and a second call starts no second one."""
    begin = time.perf_counter()
    guard.ensure()
    took = time.perf_counter() - begin
    pid = guard_pid()
    guard.ensure()
    assert guard_pid() == pid
    begin = time.perf_counter()
    assert run(b"code = 1").wait(10) == 1
    assert took < time.perf_counter() - begin + 0.05


def test_shutdown_ends_everything():
    """`shutdown` returns when the guard and all its children are gone; on_exit has been called; a fork starts anew."""
    heard = []
    children = [run(FOREVER) for _ in range(3)] + [guard.command(["sleep", "60"])]
    for child in children:
        child.on_exit(heard.append)
    pid = guard_pid()
    guard.shutdown()
    assert [child.exitcode for child in children] == [-9] * 4
    assert sorted(heard, key=id) == sorted(children, key=id)
    for gone in (pid, *(child.pid for child in children)):
        with pytest.raises(ProcessLookupError):
            os.kill(gone, 0)
    guard.shutdown()
    assert run(b"code = 6").wait(10) == 6
    assert guard_pid() != pid


def test_shutdown_keeps_exit_codes():
    """A child that ended by itself just before a shutdown keeps its exit code."""
    reader, writer = os.pipe()
    child = run(b"code = 5", writer)
    os.close(writer)
    assert os.read(reader, 1) == b""
    guard.shutdown()
    os.close(reader)
    assert child.exitcode in (5, -9)
    assert child.wait(0) == child.exitcode


def test_threads_fork_at_once():
    """Many threads fork at the same time; each gets its own child."""
    results = []

    def work(number):
        results.extend((code, run(b"code = %d" % code).wait(20)) for code in range(number * 10, number * 10 + 10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(number, number) for number in range(80)]


def test_the_guard_has_one_thread():
    """After all that is preloaded and a fork, the guard has one thread; in its own session, with its name."""
    assert run(b"").wait(10) == 0
    assert status(guard_pid(), "Threads") == "1"
    assert status(guard_pid(), "Name") == "duodao-guard"
    assert os.getsid(guard_pid()) == guard_pid()


def test_signals_to_the_guard_are_not_its_business():
    """SIGINT, SIGTERM and SIGHUP, which reach a whole service or terminal, leave the guard working."""
    pid = guard_pid()
    assert run(b"").wait(10) == 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(pid, number)
    assert run(b"code = 8").wait(10) == 8
    assert guard_pid() == pid


def test_a_guard_out_of_descriptors_says_so():
    """When the guard can open no more files the fork fails with EMFILE and names the guard; later ones work again."""
    assert run(b"").wait(10) == 0
    pid = guard_pid()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (12, before[1]))
    try:
        for arg in (b"", bytes(100_000)):
            with pytest.raises(OSError, match="guard") as caught:
                guard.fork(RUN, arg=arg, fds=[0] * 20)
            assert caught.value.errno == errno.EMFILE
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert run(b"code = 2").wait(10) == 2
    assert guard_pid() == pid


def test_a_guard_that_can_not_start_says_why(monkeypatch, tmp_path):
    """A guard that fails while it starts: GuardDied with its traceback, after three tries; and a later fork works."""
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(link, "PRELOAD", ("starts_a_thread",))
        with pytest.raises(GuardDied, match="starts_a_thread started a thread"):
            run(b"")
        with pytest.raises(GuardDied, match="starts_a_thread started a thread"):
            guard.command(["true"])
    guard.shutdown()
    assert run(b"code = 2").wait(10) == 2


def test_no_interpreter_is_said(monkeypatch):
    """Without sys.executable, and with one that isn't there, the error says so."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "")
        with pytest.raises(GuardDied, match="sys.executable is empty"):
            guard.ensure()
        patch.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(GuardDied, match="/no/such/python"):
            guard.ensure()
    assert run(b"code = 2").wait(10) == 2


def test_an_interrupted_fork_leaves_no_child(monkeypatch, pipe):
    """A KeyboardInterrupt while a fork is waited for: nobody holds that child, so it is ended."""

    def interrupted(self, request):
        request.done.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(link.Link, "_await", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            run(FOREVER, pipe[1])
    os.close(pipe[1])
    assert os.read(pipe[0], 1) == b"", "the pipe ends with the child"
    assert run(b"code = 2").wait(10) == 2


def test_the_interpreters_options_are_passed_on(monkeypatch):
    """Workers run under the options that change what code does (-O, -W, -X utf8), not under -X importtime."""
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    monkeypatch.setattr(sys, "_xoptions", {"utf8": "1", "importtime": True, "dev": True})
    flags = boot.interpreter_flags()
    assert "-Werror" in flags
    assert ["utf8=1" in flags, "dev" in flags, "importtime" in flags] == [True, True, False]


def test_a_module_is_preloaded_once_it_is_asked_for():
    """`preload` has later children begin with a module imported; a new guard is asked again."""
    said = b"import os, sys; os.write(fds[0], b'%d' % ('colorsys' in sys.modules))"
    for _ in range(2):
        guard.preload("colorsys")
        guard.preload("colorsys")
        reader, writer = os.pipe()
        assert output(said, (reader, writer)) == b"1"
        os.close(reader)
        guard.shutdown()
