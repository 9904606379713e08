"""--journal, `resume` and `journal` on the real command: killed runs go on, failures are listed and retried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from cli_program import WORK, Gate, Program, duodao

FLAKY = """
import os

def f(x):
    with open("calls", "a") as file:
        file.write(f"{x}\\n")
    if x in ("3", "5") and not os.path.exists("mended"):
        raise KeyError(x)
    return int(x)
"""
MAP = ["map", "flaky.py:f", "n.txt", "-o", "out.jsonl", "--journal", "j"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "flaky.py").write_text(FLAKY)
    (tmp_path / "n.txt").write_text("".join(f"{n}\n" for n in range(60)))
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_killed_run_goes_on(folder, lane):
    """After kill -9 the same command finishes: OUT is whole, in order, and what was committed did not run again."""
    gate = Gate(folder)
    argv = [
        "map",
        "work.py:held_at_ten",
        "n.txt",
        "-o",
        "out.jsonl",
        "--journal",
        "j",
        "--lane",
        lane,
        "--workers",
        "2",
    ]
    with Program(*argv, cwd=folder) as program:
        gate.wait(1)
        os.killpg(program.process.pid, signal.SIGKILL)
        assert program.process.wait(10) == -signal.SIGKILL
    gate.close()
    (folder / "free").touch()
    done = duodao(*argv, cwd=folder)
    assert done.returncode == 0
    assert lines(folder / "out.jsonl") == [str(n) for n in range(60)]
    calls = (folder / "calls").read_text().split()
    twice = len(calls) - 60
    assert set(calls) == {str(n) for n in range(60)}
    known = (
        int(done.stderr.partition(" already in the journal")[0].rpartition(" ")[2]) if "already" in done.stderr else 0
    )
    assert known + twice <= 60
    again = duodao(*argv, cwd=folder)
    assert "60 already in the journal" in again.stderr
    assert len((folder / "calls").read_text().split()) == len(calls)


def test_resume_in_another_directory(folder, tmp_path_factory):
    """`resume` needs the journal alone: command and directory are noted in it; --fresh is not repeated."""
    assert duodao(*MAP, "--fresh", cwd=folder).returncode == 1
    (folder / "n.txt").write_text("1\n61\n3\n")
    done = duodao("resume", str(folder / "j"), cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == [1, 61]
    assert "2 already in the journal" in done.stderr
    assert "gone" in done.stderr


def test_summary(folder):
    """`duodao journal` tells command, directory and counts, for people and as JSON."""
    duodao(*MAP, cwd=folder)
    text = duodao("journal", "j", cwd=folder).stdout
    for part in ("duodao map flaky.py:f n.txt -o out.jsonl --journal j", "succeeded  58", "failed     2", str(folder)):
        assert part in text
    facts = json.loads(duodao("journal", "j", "--json", cwd=folder).stdout)
    assert (facts["succeeded"], facts["failed"], facts["command"]) == (58, 2, MAP)


def test_dead_letters(folder):
    """--failed lists input, error, traceback and attempts of each failed input, for people and as JSON lines."""
    duodao(*MAP, "--retries", "1", "--retry-first", "0", cwd=folder)
    text = duodao("journal", "j", "--failed", cwd=folder).stdout
    assert "input 3: 3\n" in text
    assert "KeyError: '3' (after 2 attempts)" in text
    assert "raise KeyError(x)" in text
    first, second = map(json.loads, duodao("journal", "j", "--failed", "--json", cwd=folder).stdout.splitlines())
    assert (first["index"], first["input"], first["attempts"]) == (3, "3", 2)
    assert (second["index"], second["error"]) == (5, "KeyError: '5'")
    assert "Traceback" in second["traceback"]


def test_retry_failed(folder):
    """--retry-failed runs what failed and nothing else, also with mended code, and OUT is in input order."""
    duodao(*MAP, cwd=folder)
    assert len(lines(folder / "out.jsonl")) == 58
    (folder / "flaky.py").write_text(FLAKY.replace("raise KeyError(x)", "pass"))
    (folder / "calls").unlink()
    done = duodao("journal", "j", "--retry-failed", cwd=folder)
    assert done.returncode == 0
    assert lines(folder / "out.jsonl") == list(range(60))
    assert sorted((folder / "calls").read_text().split()) == ["3", "5"]
    assert not (folder / "out.failed.jsonl").exists()
    assert "failed     0" in duodao("journal", "j", cwd=folder).stdout


def test_changed_code_needs_a_word(folder):
    """A journal of other code is refused in one line that names the options; with --accept-code the run goes on."""
    duodao(*MAP, cwd=folder)
    before = (folder / "out.jsonl").read_bytes()
    (folder / "flaky.py").write_text(FLAKY + "\n# changed\nX = 1\n")
    for argv in (MAP, ["resume", "j"]):
        done = duodao(*argv, cwd=folder)
        assert done.returncode == 2
        assert "--accept-code" in done.stderr
        assert "accept_code=" not in done.stderr
        assert done.stderr.count("\n") == 1
        assert (folder / "out.jsonl").read_bytes() == before
    assert "60 already in the journal" in duodao("resume", "j", "--accept-code", cwd=folder).stderr


def test_journal_of_another_function_is_refused(folder):
    """A journal never gives one function the results of another."""
    duodao(*MAP, cwd=folder)
    done = duodao("map", "work.py:echo", "n.txt", "-o", "out.jsonl", "--journal", "j", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert lines(folder / "out.jsonl")[0] == 0


def test_key_by_mtime(folder):
    """--key mtime runs a file again when it has changed, and not otherwise."""
    (folder / "d").mkdir()
    for name in "abc":
        (folder / "d" / name).write_text(name)
    argv = ["map", "work.py:echo", "--paths", "d", "-o", "o.jsonl", "--journal", "k", "--key", "mtime"]
    assert duodao(*argv, cwd=folder).returncode == 0
    (folder / "d" / "b").write_text("changed")
    assert "2 already in the journal" in duodao(*argv, cwd=folder).stderr


def test_two_runs_on_one_journal(folder):
    """A journal in use is refused, and neither run is harmed."""
    gate = Gate(folder)
    argv = ["map", "work.py:held_at_ten", "n.txt", "-o", "out.jsonl", "--journal", "j", "--lane", "thread"]
    with Program(*argv, cwd=folder) as program:
        gate.wait(1)
        done = duodao(*argv, cwd=folder)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert duodao("journal", "j", cwd=folder).returncode == 0
        gate.let_go()
        assert program.end() == 0
    gate.close()
    assert lines(folder / "out.jsonl") == [str(n) for n in range(60)]


def test_resume_of_a_run_that_read_stdin(folder):
    """The same inputs, piped in again, go on with the run."""
    argv = ["map", "flaky.py:f", "-", "-o", "out.jsonl", "--journal", "j"]
    assert duodao(*argv, cwd=folder, input="1\n2\n").returncode == 0
    done = duodao("resume", "j", cwd=folder, input="1\n2\n4\n")
    assert done.returncode == 0
    assert lines(folder / "out.jsonl") == [1, 2, 4]
    assert "2 already in the journal" in done.stderr


def test_journal_of_a_program_has_no_command(folder):
    """A journal that a Python program wrote can be read, and says that there is no command to repeat."""
    code = "import duodao; duodao.run(abs, [1, -2], journal='k', lane='inline')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert "succeeded  2" in duodao("journal", "k", cwd=folder).stdout
    done = duodao("resume", "k", cwd=folder)
    assert done.returncode == 2
    assert "not written by a `duodao` command" in done.stderr
