"""`duodao map` and `duodao run`: what goes in, what comes out, where, and with which exit code."""

from __future__ import annotations

import json
import os

import pytest
from cli_program import WORK, duodao


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "n.txt").write_text("1\n2\n3\n")
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("lane", ["auto", "inline", "thread", "process"])
def test_one_json_line_per_input_in_order(folder, lane):
    """OUT holds the function's own values, in input order, on every lane; exit code 0; nothing on stdout."""
    (folder / "many.txt").write_text("".join(f"{n}\n" for n in range(500)))
    done = duodao("map", "work.py:square", "many.txt", "-o", "out.jsonl", "--lane", lane, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert lines(folder / "out.jsonl") == [n * n for n in range(500)]
    assert not (folder / "out.failed.jsonl").exists()


def test_async_function(folder):
    """An async function runs on the coroutine lane by itself."""
    done = duodao("map", "work.py:later", "n.txt", cwd=folder)
    assert (done.returncode, done.stdout) == (0, '"1"\n"2"\n"3"\n')
    assert "coroutine" in done.stderr


def test_failures_are_collected(folder):
    """A failed input costs its own line only: it is in OUT.failed.jsonl with its error, and the exit code is 1."""
    (folder / "n.txt").write_text("1\nx\n3\n")
    done = duodao("map", "work.py:square", "n.txt", "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == [1, 9]
    (failed,) = lines(folder / "out.failed.jsonl")
    assert (failed["index"], failed["input"], failed["error"], failed["attempts"]) == (1, "x", "ValueError", 1)
    assert "input 1 (x): ValueError: invalid literal" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_raise(folder):
    """--errors raise writes what came before the first failure, names it, and stops with 1."""
    (folder / "n.txt").write_text("1\nx\n3\n")
    done = duodao("map", "work.py:square", "n.txt", "-o", "out.jsonl", "--errors", "raise", cwd=folder)
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == [1]
    assert "input 1 (x): ValueError" in done.stderr
    assert "Traceback" not in done.stderr


def test_max_failures(folder):
    """--max-failures ends a run that fails too much, with 3."""
    (folder / "n.txt").write_text("x\n" * 50)
    done = duodao("map", "work.py:square", "n.txt", "--max-failures", "3", "--lane", "inline", cwd=folder)
    assert done.returncode == 3
    assert "--max-failures 3: " in done.stderr


def test_records(folder):
    """--records gives each line its index, input, value, attempts, seconds and lane."""
    done = duodao("map", "work.py:square", "n.txt", "--records", "--lane", "thread", cwd=folder)
    first = json.loads(done.stdout.splitlines()[0])
    assert (first["index"], first["input"], first["value"], first["attempts"], first["lane"]) == (
        0,
        "1",
        1,
        1,
        "thread",
    )
    assert first["seconds"] >= 0


def test_results_that_json_cannot_hold(folder):
    """A result that is no JSON goes to the failed file, and the exit code says that not all went well."""
    done = duodao("map", "work.py:unjson", "n.txt", "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == ["1", "3"]
    assert lines(folder / "out.failed.jsonl")[0]["index"] == 1
    assert "JSON can't hold 1 result" in done.stderr


@pytest.mark.parametrize("lane", ["inline", "thread", "process"])
def test_stdout_holds_results_alone(folder, lane):
    """With OUT on stdout, what the function and its file print is on stderr."""
    (folder / "loud.py").write_text("from work import prints\nprint('loaded')\n")
    done = duodao("map", "loud.py:prints", "n.txt", "--lane", lane, cwd=folder)
    assert done.stdout == '"1"\n"2"\n"3"\n'
    assert "printed" in done.stderr
    assert "loaded" in done.stderr


def test_plain_lines_in_a_pipe(folder):
    """Without a terminal there are a line at the start and the summary with lane and reason, and no control codes."""
    done = duodao("map", "work.py:square", "n.txt", "--lane", "thread", "--workers", "2", cwd=folder)
    assert "duodao: started 3 inputs: square\n" in done.stderr
    assert "duodao: 3 of 3, 0 failed in " in done.stderr
    assert "square: thread x 2" in done.stderr
    assert "\x1b" not in done.stderr
    assert duodao("map", "work.py:square", "n.txt", "--no-progress", cwd=folder).stderr == ""


def test_stdin_lines(folder):
    """`-` reads items from stdin, line by line."""
    assert duodao("map", "work.py:square", "-", input="4\n5", cwd=folder).stdout == "16\n25\n"


def test_stdin_nul_separated(folder):
    """`-0` reads what `find -print0` writes: newlines belong to the items."""
    done = duodao("map", "work.py:echo", "-0", input="a\nb\0c\0", cwd=folder)
    assert [json.loads(line) for line in done.stdout.splitlines()] == ["a\nb", "c"]


def test_undecodable_paths_round_trip(folder):
    """A path that isn't UTF-8 reaches the function, and comes back from OUT, as the same file."""
    os.mkdir(folder / "d")
    name = b"caf\xe9.txt"
    with open(os.fsencode(folder) + b"/d/" + name, "w"):
        pass
    done = duodao("map", "work.py:echo", "--paths", "d", "--lane", "process", cwd=folder)
    assert done.returncode == 0
    assert os.fsencode(json.loads(done.stdout)) == b"d/" + name
    done = duodao("map", "work.py:square", "--paths", os.fsdecode(b"d/" + name), "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1
    assert "input 0 (d/caf\\udce9.txt): ValueError" in done.stderr
    assert os.fsencode(lines(folder / "out.failed.jsonl")[0]["input"]) == b"d/" + name


def test_paths_leave_out_the_runs_own_files(folder):
    """OUT, its failures and the journal are no inputs, also when they lie in the folder that is the INPUT."""
    argv = ["map", "work.py:echo", "--paths", ".", "-o", "out.jsonl", "--journal", "j", "--match", "*"]
    first = duodao(*argv, cwd=folder)
    assert first.returncode == 0
    found = lines(folder / "out.jsonl")
    again = duodao(*argv, cwd=folder)
    assert again.returncode == 0
    wrote = {"./out.jsonl", "./j", "./j-lock", "./j-wal", "./j-shm", "./out.failed.jsonl"}
    assert not wrote & set(found)
    assert not wrote & set(lines(folder / "out.jsonl"))


def test_malformed_line(folder):
    """A line that is no JSON is that input's failure, with file and line; the others run; `raise` stops there."""
    (folder / "n.jsonl").write_text('1\n{"a"\n3\n')
    done = duodao("map", "work.py:square", "n.jsonl", "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == [1, 9]
    assert "n.jsonl:2: not JSON" in done.stderr
    (failed,) = lines(folder / "out.failed.jsonl")
    assert (failed["index"], failed["input"]) == (1, '{"a"')
    done = duodao("map", "work.py:square", "n.jsonl", "-o", "out.jsonl", "--errors", "raise", cwd=folder)
    assert done.returncode == 1
    assert lines(folder / "out.jsonl") == [1]
    assert "n.jsonl:2: not JSON" in done.stderr


def test_arguments_of_the_function(folder):
    """--star spreads a list, --common gives constants, --setup a resource."""
    (folder / "pairs.jsonl").write_text("[1, 2]\n[3, 4]\n")
    assert duodao("map", "work.py:add", "pairs.jsonl", "--star", cwd=folder).stdout == "3\n7\n"
    assert duodao("map", "work.py:scale", "n.txt", "--common", "factor=10", cwd=folder).stdout == "10\n20\n30\n"
    done = duodao("map", "work.py:tell", "n.txt", "--setup", "db=work.py:database", "--lane", "thread", cwd=folder)
    assert done.stdout == '"db 1"\n"db 2"\n"db 3"\n'


def test_setup_that_fails(folder):
    """A factory that raises ends the run with one line that tells why."""
    done = duodao("map", "work.py:tell", "n.txt", "--setup", "db=work.py:broken_setup", "--lane", "thread", cwd=folder)
    assert done.returncode == 1
    assert "no route to the database" in done.stderr
    assert "Traceback" not in done.stderr


def test_pipeline(folder):
    """`duodao run` sends the items through a Pipeline's stages."""
    (folder / "pipe.py").write_text(
        "import duodao\nfrom work import square\ndef half(x): return x / 2\n"
        "p = duodao.Pipeline(square, lane='thread', workers=2).then(half, lane='process')\n"
    )
    done = duodao("run", "pipe.py:p", "n.txt", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "0.5\n2.0\n4.5\n")
    assert "square: thread x 2" in done.stderr
    assert "half: process x " in done.stderr


def test_reader_that_goes_away(folder):
    """`| head`: the run ends without a word of complaint, with the exit code of a closed pipe."""
    from cli_program import Program

    (folder / "many.txt").write_text("".join(f"{n}\n" for n in range(100_000)))
    with Program("map", "work.py:square", "many.txt", "--lane", "inline", "--no-progress", cwd=folder) as program:
        program.process.stdout.readline()
        program.process.stdout.close()
        assert program.end() == 141
        assert program.said == ""


def test_disk_that_is_full(folder):
    """An output that can't be written any more ends the run with one line."""
    done = duodao("map", "work.py:square", "n.txt", "-o", "/dev/full", cwd=folder)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_file_with_a_name_of_the_standard_library(folder):
    """A file called json.py is the user's, also in a worker, and the real json goes on to work."""
    (folder / "sub").mkdir()
    (folder / "sub" / "json.py").write_text("def f(x): return {'len': g(x)}\ndef g(x): return len(x)\n")
    done = duodao("map", "sub/json.py:f", "n.txt", "--lane", "process", cwd=folder)
    assert (done.returncode, done.stdout) == (0, '{"len": 1}\n' * 3)


@pytest.mark.parametrize("name", ["logging", "numbers", "resource", "string"])
def test_neighbour_with_a_name_of_the_standard_library(folder, name):
    """A file of the user's doesn't stand in front of a module that Duodao itself loads later."""
    (folder / "sub").mkdir()
    (folder / "sub" / f"{name}.py").write_text("")
    (folder / "sub" / "work_beside.py").write_text("def f(x): return len(x)\n")
    done = duodao("map", "sub/work_beside.py:f", "n.txt", "--lane", "thread", "--progress", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "1\n" * 3)


def test_function_that_closes_stdout(folder):
    """On a thread that is our own stdout: no traceback, the results stay."""
    (folder / "closes.py").write_text("import sys\ndef f(x):\n    sys.stdout.close()\n    return x\n")
    done = duodao("map", "closes.py:f", "n.txt", "--lane", "thread", "-o", "closed.jsonl", cwd=folder)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert len((folder / "closed.jsonl").read_text().splitlines()) == 3


def test_measure(folder):
    """`duodao measure` tells what a call costs and where it should run."""
    done = duodao("measure", "work.py:square", "n.txt", cwd=folder)
    assert done.returncode == 0
    assert "advice: " in done.stdout
    (folder / "n.txt").write_text("x\n")
    done = duodao("measure", "work.py:square", "n.txt", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("duodao: work.py:square failed with an item of the sample: ValueError: ")
    assert done.stderr.count("\n") == 1


def test_help_is_quick_and_names_every_command(folder):
    """--help lists the commands; the version is told."""
    text = duodao("--help", cwd=folder).stdout
    for name in ("map", "run", "resume", "journal", "measure"):
        assert f"\n  {name} " in text
    assert duodao("--version", cwd=folder).stdout.startswith("duodao ")
