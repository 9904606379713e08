"""Programs that fail, hang, stop, flood, lie and die: each is an error of its item that says so; nothing is left."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading

import pytest

import duodao
from duodao import Command
from duodao.errors import CallTimeout, CommandFailed, NotPicklable
from duodao.lanes import programs
from duodao.lanes.base import Batch, Work
from duodao.lanes.command import Commands

PYTHON = (sys.executable, "-I", "-S", "-c")
LINES = """
import json, os, signal, sys, time
def answer(id, **what):
    print(json.dumps({"id": id, **what}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    id, x = asked["id"], asked["input"]
"""


def run(command, items, **options):
    return list(duodao.map(command, items, lane="command", errors="collect", **options))


def sh(script, **options):
    return Command(["sh", "-c", script, "sh"], **options)


def lines(body, before="", **options):
    """A JSON-lines worker that runs `body` per item."""
    text = LINES.replace("for line", f"{before}\nfor line") + "".join(f"    {line}\n" for line in body.splitlines())
    return Command([*PYTHON, text], protocol="jsonl", **options)


def only(outcomes):
    """The error of the one that failed."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert len(failed) == 1, outcomes
    return failed[0].error


def test_what_a_failure_says():
    """The error has exit code or signal by name, the end of stderr, what was printed, and the command with its item."""
    error = only(run(sh("echo out; echo 'no such image' >&2; exit 3"), ["a b"]))
    assert type(error) is CommandFailed
    assert (error.exitcode, error.stdout, error.stderr) == (3, b"out\n", b"no such image\n")
    assert "exit code 3: no such image" in str(error)
    assert "sh 'a b'" in str(error)
    error = only(run(sh("kill -SEGV $$"), [1]))
    assert error.exitcode == -signal.SIGSEGV
    assert "SIGSEGV" in str(error)


def test_stdout_is_the_result():
    """Text without its last line end, bytes as they are, and what isn't UTF-8 comes back by os.fsencode."""
    assert list(duodao.map("printf %s\\\\n\\\\n", ["a"], lane="command")) == ["a\n"]
    assert list(duodao.map(sh("printf '\\377\\n'", text=False), [1], lane="command")) == [b"\xff\n"]
    assert [os.fsencode(text) for text in duodao.map(sh("printf '\\377\\n'"), [1], lane="command")] == [b"\xff"]


def test_env_cwd_and_stdin(tmp_path):
    """Variables are added to ours, cwd is where it starts, stdin is empty or the item."""
    command = sh("echo $A $HOME; pwd; cat; echo $1", env={"A": "1"}, cwd=tmp_path)
    home = os.environ.get("HOME", "")
    assert run(command, ["x"])[0].value == f"1 {home}\n{tmp_path}\nx"
    big = "é" * 3_000_000
    assert run(Command("cat", stdin="item"), [big])[0].value == big
    assert run(Command("true", stdin="item"), [big])[0].value == "", "a program need not read it"


def test_a_timeout_kills_the_whole_group(tmp_path):
    """After a time-out the program and what it started are gone, and the other items are not touched."""
    command = sh(f"test $1 = 1 || exit 0; sleep 1000 & echo $! >{tmp_path}/pid; wait")
    outcomes = run(command, [0, 1, 2], timeout=2.0)
    error = only(outcomes)
    assert type(error) is CallTimeout
    assert "time-out of 2 s" in str(error)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_that_is_missing_ends_the_run(tmp_path):
    """One clear error at once, not one per item; it names where was looked."""
    made = []

    def items():
        for number in range(1_000_000):
            made.append(number)
            yield number

    with pytest.raises(CommandFailed, match="no such program in the folders of PATH") as caught:
        run("no-such-program-of-ours {}", items())
    assert caught.value.exitcode == 127
    assert len(made) < 10_000
    (tmp_path / "plain").write_text("text")
    with pytest.raises(CommandFailed, match="Permission denied") as caught:
        run([str(tmp_path / "plain")], [1])
    assert caught.value.exitcode == 126
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    with pytest.raises(CommandFailed, match="its first line"):
        run([str(tmp_path / "script")], [1])
    with pytest.raises(CommandFailed, match="cwd='/no/such/folder'"):
        run(Command("true", cwd="/no/such/folder"), [1])


def test_a_program_named_by_the_item():
    """Where the item names the program, a missing one is that item's error."""
    outcomes = run(["{}"], ["true", "no-such-program-of-ours", "true"])
    assert type(only(outcomes)) is FileNotFoundError


def test_items_that_can_not_be_given():
    """A NUL, a list and an argument longer than the system takes fail their own items."""
    outcomes = run("echo {}", ["a\0b", ["x"], "y" * 5_000_000, "z"])
    assert [outcome.error is None for outcome in outcomes] == [False, False, False, True]
    assert "NUL" in str(outcomes[0].error)
    assert "Argument list too long" in str(outcomes[2].error)
    outcomes = run(lines("answer(id, output=x)"), [{1}, 2])
    assert type(only(outcomes)) is NotPicklable


def test_output_over_its_limit():
    """A program that prints without end is killed at max_output."""
    error = only(run(Command("yes", max_output=100_000), ["x"]))
    assert "max_output=100000" in str(error)
    assert error.stdout.startswith(b"x\n")


@pytest.mark.parametrize("name", ["STOP", "TSTP", "TTIN", "TTOU"])
def test_a_stopped_program_is_an_error(name):
    """A program that stops, for a terminal it can't have or by anyone's signal, is killed; the error says which."""
    error = only(run(sh(f"test $1 = 1 && kill -{name} $$; true"), [0, 1, 2]))
    assert f"SIG{name}" in str(error)
    error = only(run(lines(f"os.kill(os.getpid(), signal.SIG{name}) if x == 1 else answer(id, output=x)"), [0, 1, 2]))
    assert f"SIG{name}" in str(error)


def test_a_grandchild_that_keeps_stdout_open():
    """What a program leaves running, even outside of its group, holds nothing up; all it had printed is there."""
    assert run(sh("echo $1; setsid sleep 1000 & sleep 1000 &"), ["x"])[0].value == "x"


def test_stdout_closed_early():
    """A program may close its stdout and go on: its exit decides. A worker that does so is of no use."""
    assert run(sh("echo $1; exec >&- 2>&-; sleep 0.1"), ["x"])[0].value == "x"
    error = only(run(sh("echo said; exec >&-; echo why >&2; exit 2"), ["x"]))
    assert (error.exitcode, error.stdout, error.stderr) == (2, b"said\n", b"why\n")
    error = only(run(lines('sys.stderr.write("bye\\n"); sys.stderr.flush(); os.close(1); time.sleep(1000)'), [1]))
    assert "closed its stdin or stdout" in str(error)
    assert "bye" in str(error)


def test_stderr_without_end_is_read_and_bounded():
    """A program that floods stderr is not held up by it; 64 kB are kept."""
    error = only(run(sh("head -c 5000000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1"), [1]))
    assert len(error.stderr) == 64 << 10
    assert str(error).endswith("end")
    outcomes = run(lines('sys.stderr.write("x" * 500_000); answer(id, output=x)'), range(20))
    assert [outcome.value for outcome in outcomes] == list(range(20))


def test_programs_in_a_pipeline():
    """Programs that follow each other are stages of their own; values go from one's stdout to the other's argument."""
    both = duodao.Pipeline("echo {}a", lane="command").then("echo {}b", lane="command").then(len, lane="thread")
    assert list(duodao.map(both, ["x", "yy"])) == [3, 4]


def test_no_descriptor_is_left_for_more_programs():
    """Where the limit of open files allows fewer programs than asked for, the run goes on with fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        outcomes = run("sh -c 'sleep 0.05; echo $1' sh", range(60), workers=40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [outcome.value for outcome in outcomes] == [str(n) for n in range(60)]


# -- JSON lines -------------------------------------------------------------------------------------------------------


def test_answers_in_any_order_and_errors():
    """Answers may come in another order; "error" fails its item with the text."""
    body = """
waiting = globals().setdefault("waiting", [])
waiting.append((id, x))
if len(waiting) == 2 or x in (0, 1, 9):
    for id, x in reversed(waiting):
        answer(id, error="seven") if x == 7 else answer(id, output=x)
    waiting.clear()
"""
    outcomes = run(lines(body), range(1), workers=1)
    outcomes = run(lines("answer(id, error='seven') if x == 7 else answer(id, output=[x])"), range(10))
    assert "seven" in str(only(outcomes))
    assert [outcome.value for outcome in outcomes if outcome.error is None] == [[x] for x in range(10) if x != 7]


def test_unicode_and_large_values():
    """Text of any script, lines of 10 MB both ways, and a value that is null arrive whole."""
    command = lines("answer(id, output=x)")
    items = ["ü😀\u2028\n", None, "x" * 10_000_000, {"a": [1.5, "b"]}]
    assert [outcome.value for outcome in run(command, items)] == items


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('print("Traceback: oh no", flush=True)', "no JSON 'Traceback: oh no'"),
        ('print("[1]", flush=True)', "no answer"),
        ("answer(id)", "no answer"),
        ("answer(id, output=1, error=2)", "no answer"),
        ("answer(10**9, output=1)", "what it was not asked"),
        ('answer("7", output=1)', "what it was not asked"),
        ('sys.stdout.buffer.write(b"\\xff\\n"); sys.stdout.flush()', "xff"),
        ('print("[" * 100_000, flush=True)', "no JSON"),
        ("sys.stdout.write('{\"id\": '); sys.stdout.flush(); os._exit(3)", "in the middle of the line"),
        ("os._exit(4)", "exit code 4"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ('sys.stdout.write("x" * 3_000_000); sys.stdout.flush()', "max_output=1000000"),
        ("os.close(1); time.sleep(1000)", "closed its stdin or stdout"),
    ],
)
def test_the_guilty_item_is_named(bad, said):
    """Whatever a worker does at one item of many, that item fails with what it said; all others have their value."""
    body = f"if x == 57:\n    {bad}\nelse:\n    answer(id, output=x)"
    outcomes = run(lines(body, max_output=1_000_000), range(120))
    error = only(outcomes)
    assert outcomes[57].error is error
    assert said in str(error)
    assert [outcome.value for outcome in outcomes if outcome.error is None] == [x for x in range(120) if x != 57]


def test_answers_twice_ends_the_run():
    """After two answers to one id none can be trusted: the run ends, and the error quotes it."""
    with pytest.raises(CommandFailed, match="answered twice"):
        run(lines("answer(id, output=x); answer(id, output=x)"), range(100))
    late = "answer(id, output=x)\nif x == 500: answer(id, output=x)"
    with pytest.raises(CommandFailed, match="answered twice"):
        run(lines(late), range(1000), workers=1)


def test_never_answers():
    """With a time-out an unanswered item fails, its worker is killed, and another goes on."""
    outcomes = run(lines("time.sleep(1000) if x == 1 else answer(id, output=x)"), range(4), timeout=2.0, workers=1)
    assert type(only(outcomes)) is CallTimeout
    assert outcomes[1].error is not None


def test_both_pipes_full():
    """A worker that writes much before it reads on, and is sent much meanwhile, is no deadlock."""
    outcomes = run(lines('answer(id, output="y" * 300_000)'), ["x" * 300_000] * 40, workers=1)
    assert all(len(outcome.value) == 300_000 for outcome in outcomes)


def test_a_worker_that_ends_after_some_items_is_replaced():
    """A worker may end when it likes: what it has not read is given to the next, and nobody is blamed."""
    body = "answer(id, output=x)\nn = globals()['n'] = globals().get('n', 0) + 1\nif n == 5: os._exit(0)"
    outcomes = run(lines(body), range(40), timeout=60.0)
    assert [(outcome.value, outcome.attempts) for outcome in outcomes] == [(x, 1) for x in range(40)]


def test_a_worker_that_never_reads_ends_the_run():
    """A program that ends before it reads anything is started three times, then the run ends with its words."""
    with pytest.raises(CommandFailed, match=r"3 times.*not today"):
        run(Command(["sh", "-c", "echo not today >&2"], protocol="jsonl"), range(1000))


@pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_workers_that_do_not_end_with_their_stdin(tmp_path, stubborn):
    """A worker that goes on after the end of its stdin gets SIGTERM, and is killed in the end; one that ends is not."""
    note = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'term')!r}, 'w'), os._exit(0)))"
    command = lines("answer(id, output=os.getpid())", stubborn or note)
    command = Command([*command.argv[:-1], command.argv[-1] + "while True: time.sleep(1000)\n"], protocol="jsonl")
    pid = run(command, [1])[0].value
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (tmp_path / "term").exists() == (not stubborn)


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path):
    """A lane with a time-out of 60 s in which one program waits at a FIFO; its results, and the way to let it go."""
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    command = sh(f"echo ready >&2; read x <{tmp_path}/gate; echo $x")
    lane = Commands(Work(command, "sh", timeout=60.0), 1)
    results, came = [], threading.Event()

    def deliver(result):
        results.append(result)
        came.set()

    def let_go():
        os.write(gate, b"passed\n")
        assert came.wait(30)
        return results[0]

    lane.start(Batch(range(1), [1]), deliver)
    yield lane, let_go
    lane.close(0)
    os.close(gate)


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def running(lane):
    """The one program's process, once there is one."""
    while True:
        lane._ask("resume")  # its thread has had a turn
        for program in list(lane._programs.running):
            if program.child.pid:
                return program.child


def test_time_stands_still_while_suspended(held, monkeypatch):
    """Between suspend and resume the program stands, its stop is no error, and its time-out doesn't come nearer."""
    lane, let_go = held
    child = running(lane)
    lane.suspend()
    for _ in range(1000):
        if state(child.pid) == "T":
            break
        lane._ask("suspend")
    assert state(child.pid) == "T"
    program = next(iter(lane._programs.running))
    due, later = program.due, programs.monotonic() + 30
    monkeypatch.setattr(programs, "monotonic", lambda: later)
    lane.resume()
    assert program.due > due + 29
    assert let_go().values == ["passed"]


def test_a_timeout_noticed_late_is_not_believed(held, monkeypatch):
    """When we were stopped ourselves and the time has passed meanwhile, the program gets its time once more."""
    lane, let_go = held
    running(lane)
    later = programs.monotonic() + 1000
    monkeypatch.setattr(programs, "monotonic", lambda: later)
    lane._ask("resume")
    lane._ask("resume")
    result = let_go()
    assert result.errors is None
    assert result.values == ["passed"]
