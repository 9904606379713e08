"""`duodao map --command`: programs as stages, interrupted, suspended and resumed on the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli_program import Gate, Program, duodao, gone

DOUBLE = """
import sys, json
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"error": "five"} if asked["input"] == "5" else {"output": asked["input"] * 2}
    print(json.dumps({"id": asked["id"], **answer}), flush=True)
"""
HELD = 'echo "$$" >started; head -c 1 <go >/dev/null; echo "$1 done"'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "n.txt").write_text("".join(f"{n}\n" for n in range(20)))
    return tmp_path


@pytest.fixture
def gate(folder):
    gate = Gate(folder)
    yield gate
    gate.close()


def values(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_and_a_list_of_words(folder):
    """A line is split into words and never given to a shell; words after `--command --` are taken as they are."""
    for name in ("a b.jpg", "c.jpg"):
        (folder / name).touch()
    done = duodao("map", "--command", "echo {/.}.png '$HOME;'", "--paths", "a b.jpg", "c.jpg", cwd=folder)
    assert (done.returncode, values(done.stdout)) == (0, ["a b.png $HOME;", "c.png $HOME;"])
    words = ("printf", "%s|", "--workers", "-o", "{}")
    done = duodao("map", "n.txt", "-o", "-", "--workers", "2", "--command", "--", *words, cwd=folder)
    assert values(done.stdout) == [f"--workers|-o|{n}|" for n in range(20)]


def test_shell_and_stdin(folder):
    """--shell gives the line to /bin/sh with the item quoted; --stdin-item gives the item to read."""
    (folder / "odd.txt").write_text("a b; exit 1\n$(x)'\"\n")
    done = duodao("map", "odd.txt", "--shell", "--command", "printf %s {} | tr a-z A-Z", cwd=folder)
    assert values(done.stdout) == ["A B; EXIT 1", "$(X)'\""]
    done = duodao("map", "odd.txt", "--stdin-item", "--command", "wc -c", cwd=folder)
    assert [int(value) for value in values(done.stdout)] == [11, 6]


def test_json_lines_and_failures(folder):
    """--protocol jsonl keeps workers; what fails is told with the program's own words and kept with its input."""
    argv = ("map", "n.txt", "-o", "out.jsonl", "--protocol", "jsonl", "--command", "--", sys.executable, "-c", DOUBLE)
    done = duodao(*argv, cwd=folder)
    assert done.returncode == 1
    assert "five" in done.stderr
    assert values((folder / "out.jsonl").read_text()) == [f"{n}{n}" for n in range(20) if n != 5]
    assert "five" in (folder / "out.failed.jsonl").read_text()


def test_a_command_in_a_file(folder):
    """FILE.py:NAME may name a duodao.Command; it runs on its lane without being told."""
    (folder / "work.py").write_text("import duodao\ndouble = duodao.Command('echo {}{}')\n")
    done = duodao("map", "work.py:double", "n.txt", cwd=folder)
    assert values(done.stdout) == [f"{n}{n}" for n in range(20)]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--command", "true", "--lane", "thread"), "--lane command"),
        (("--shell",), "it needs --command"),
        (("--protocol", "jsonl"), "it needs --command"),
        (("--command", "true", "--command", "--", "true"), "twice"),
        (("--command", "--"), "empty"),
        (("--command", "echo 'a"), "split into words"),
        (("--shell", "--command", 'echo "{}"'), "--shell line"),
        (("--command", "true", "--common", "a=1"), "--common"),
    ],
)
def test_refusals(folder, argv, said):
    """What can't be meant ends with 2 and one line, before anything starts."""
    done = duodao("map", "n.txt", *argv, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_program_that_is_missing(folder):
    """One line says that there is no such program."""
    done = duodao("map", "n.txt", "--command", "no-such-program-of-ours", "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1
    assert "no such program in the folders of PATH" in done.stderr.splitlines()[-1]


def test_ctrl_c_once_finishes_what_runs(folder, gate):
    """After the first Ctrl-C programs that run end as they like, and no further one is started."""
    argv = ("map", "n.txt", "-o", "out.jsonl", "--workers", "2", "--command", "--", "sh", "-c", HELD, "sh")
    with Program(*argv, cwd=folder) as program:
        gate.wait(2)
        program.process.send_signal(signal.SIGINT)
        program.until("finishing what is in flight")
        gate.let_go(20)
        assert program.end() == 130
    found = values((folder / "out.jsonl").read_text())
    assert found == [f"{n} done" for n in range(len(found))]
    assert 2 <= len(found) < 20


def test_ctrl_c_twice_ends_all_groups(folder, gate):
    """The second Ctrl-C kills what runs, with all that it started; the exit code is 130."""
    script = "sleep 1000 & echo $! >started; " + HELD
    argv = ("map", "n.txt", "-o", "out.jsonl", "--workers", "2", "--command", "--", "sh", "-c", script, "sh")
    with Program(*argv, cwd=folder) as program:
        fds = [os.pidfd_open(int(pid)) for pid in gate.wait(4)]
        program.process.send_signal(signal.SIGINT)
        program.until("once more stops at once")
        program.process.send_signal(signal.SIGINT)
        assert program.end() == 130
        assert gone(fds)
        for fd in fds:
            os.close(fd)


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def await_state(pid, wanted):
    """The kernel acts on a stop or a continue soon; there is nothing to wait on. D: its vfork'd child was stopped."""
    ends = time.monotonic() + 20
    while (state(pid) in "TD") is not wanted:
        assert time.monotonic() < ends, f"process {pid} is in state {state(pid)}"
        os.sched_yield()


@pytest.mark.parametrize("progress", ["--progress", "--no-progress"])
def test_ctrl_z_and_fg(folder, gate, progress):
    """Ctrl-Z stops the running programs too, and fg continues them; their stop is no failure and no time-out."""
    argv = ["map", "n.txt", "-o", "out.jsonl", "--workers", "2", "--timeout", "50", progress]
    argv += ["--command", "--", "sh", "-c", HELD, "sh"]
    # A group of its own in this session, as a shell makes it: an orphaned group ignores SIGTSTP.
    with subprocess.Popen([sys.executable, "-m", "duodao", *argv], cwd=folder, process_group=0) as process:
        try:
            pids = [int(pid) for pid in gate.wait(2)]
            for _ in range(2):
                process.send_signal(signal.SIGTSTP)
                assert os.waitid(os.P_PID, process.pid, os.WSTOPPED).si_status == signal.SIGTSTP
                for pid in pids:
                    await_state(pid, wanted=True)
                process.send_signal(signal.SIGCONT)
                for pid in pids:
                    await_state(pid, wanted=False)
            gate.let_go(20)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
    assert values((folder / "out.jsonl").read_text()) == [f"{n} done" for n in range(20)]


def test_a_run_goes_on_and_notices_another_command(folder):
    """With a journal finished items don't run again; another command is noticed as changed code is."""
    command = ("--command", "--", "sh", "-c", 'echo $1 >>calls; test -e ok -o $1 != 7 && echo "$1"', "sh")
    argv = ("map", "n.txt", "-o", "out.jsonl", "--journal", "j", "--errors", "raise", "--workers", "1")
    assert duodao(*argv, *command, cwd=folder).returncode == 1
    (folder / "ok").touch()
    done = duodao("journal", "j", "--retry-failed", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert values((folder / "out.jsonl").read_text()) == [str(n) for n in range(20)]
    calls = (folder / "calls").read_text().split()
    assert sorted(set(calls), key=int) == [str(n) for n in range(20)]
    assert calls.count("0") == 1
    done = duodao(*argv, *command[:-1], "other", cwd=folder)
    assert done.returncode == 2
    assert "--accept-code" in done.stderr
