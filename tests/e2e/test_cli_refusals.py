"""Bad usage: one clear line on stderr, exit code 2, and nothing was started or written."""

from __future__ import annotations

import os
import socket

import pytest
from cli_program import WORK, duodao

MAP = ["map", "work.py:square", "n.txt"]

BAD = [
    ([], "Usage: duodao"),
    (["fly"], "no such command 'fly'"),
    (["map"], "missing argument 'FILE.py:FUNC'"),
    (["map", "gone.py:f", "n.txt"], "no such file: gone.py"),
    (["map", "work.py", "n.txt"], "'work.py' names no function: write FILE.py:FUNC"),
    (["map", "work.py:sqare", "n.txt"], "work.py has no 'sqare'; did you mean 'square'?"),
    (["map", "work.py:NUMBER", "n.txt"], "work.py:NUMBER is no function but a value of type int"),
    (["map", "broken.py:f", "n.txt"], "broken.py can't be loaded: line 1: ZeroDivisionError: division by zero"),
    (["map", "pipe.py:p", "n.txt"], "pipe.py:p is a Pipeline: run it with `duodao run`"),
    (
        ["run", "work.py:square", "n.txt"],
        "work.py:square is no duodao.Pipeline but a function: run it with `duodao map`",
    ),
    (["run", "work.py:NUMBER", "n.txt"], "work.py:NUMBER is no duodao.Pipeline but a value of type int"),
    (["run", "pipe.py:p", "n.txt", "--lane", "thread"], "a Pipeline's stages carry their own options"),
    (["map", "work.py:add", "n.txt"], "add takes 2 arguments (a, b)"),
    (["map", "work.py:square"], "no INPUT"),
    (["map", "work.py:square", "gone.txt"], "no such file: gone.txt"),
    (["map", "work.py:square", "a.xml", "b.xml"], "add --paths"),
    (["map", "work.py:square", "d"], "d is a directory: --paths makes every file in it an item"),
    (["map", "work.py:square", "twice.csv"], "twice.csv:1: the header names 'a' more than once"),
    ([*MAP, "--match", "*.x"], "--match needs --paths"),
    ([*MAP, "--lane", "fast"], "there is no such lane"),
    ([*MAP, "--lane", "coroutine"], "square is a plain function"),
    (["map", "work.py:later", "n.txt", "--lane", "process"], "later is an async function"),
    ([*MAP, "--workers", "0"], "'--workers': '0' is no width from 1"),
    ([*MAP, "--workers", "x"], "'--workers': 'x' is no width from 1"),
    ([*MAP, "--workers", "2,0"], "'--workers': '2,0' is no width from 1"),
    ([*MAP, "--workers", "2,2"], "--lane 'auto' has one width"),
    ([*MAP, "--timeout", "-1"], "'--timeout': '-1' is no time over 0"),
    ([*MAP, "--timeout", "soon"], "'--timeout': 'soon'"),
    ([*MAP, "--retries", "-1"], "'--retries': -1"),
    ([*MAP, "--retry-first", "1"], "need --retries"),
    ([*MAP, "--rate", "0"], "'--rate': '0' is no rate over 0"),
    ([*MAP, "--max-memory", "big"], "'--max-memory': 'big' is no size"),
    ([*MAP, "--max-failures", "100%"], "'--max-failures': '100%'"),
    ([*MAP, "--window", "0"], "'--window': 0"),
    ([*MAP, "--errors", "ignore"], "'--errors': 'ignore'"),
    ([*MAP, "--common", "x"], "--common x: NAME=… is needed"),
    ([*MAP, "--common", "factor=ten"], "--common factor: 'ten' is not JSON"),
    ([*MAP, "--common", "factor=10"], "takes no argument 'factor'"),
    ([*MAP, "--setup", "db=work.py:gone"], "--setup db: work.py has no 'gone'"),
    ([*MAP, "--lane", "inline", "--timeout", "1"], "can't stop a call"),
    ([*MAP, "--key", "mtime"], "--key says how to use a journal: it needs --journal"),
    ([*MAP, "--fresh"], "--fresh says how to use a journal"),
    ([*MAP, "--journal", "j", "--key", "size"], "--key size: content, mtime or FILE.py:FUNC is needed"),
    ([*MAP, "--journal", "n.txt"], "n.txt"),
    ([*MAP, "--journal", "j", "-o", "j"], "j is given as"),
    ([*MAP, "-o", "nowhere/out.jsonl"], "there is no directory nowhere"),
    ([*MAP, "-o", "d"], "the output d is a directory"),
    ([*MAP, "-o", ""], "the output has an empty name"),
    ([*MAP, "--failed", ""], "the output has an empty name"),
    ([*MAP, "--journal", ""], "the journal has an empty name"),
    ([*MAP, "--journal", "-"], "a journal is a file"),
    ([*MAP, "--journal", "fifo"], "is no regular file"),
    (["map", "work.py:square", "socket"], "can't read socket: it is a socket"),
    ([*MAP, "-o", "n.txt"], "n.txt is an INPUT and an output of this run"),
    ([*MAP, "--wrokers", "2"], "--workers"),
    (["resume", "gone"], "there is no journal"),
    (["resume", "n.txt"], "n.txt"),
    (["journal", "gone"], "there is no journal"),
    (["journal", "gone", "--failed", "--retry-failed"], "give one of them"),
    (["measure", "work.py:square", "empty.txt"], "the sample holds no item"),
    (["measure", "work.py:gone", "n.txt"], "work.py has no 'gone'"),
    (["measure", "work.py:add", "n.txt"], "add takes 2 arguments (a, b)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("refusals")
    (path / "work.py").write_text(WORK)
    (path / "broken.py").write_text("1 / 0\n")
    (path / "pipe.py").write_text("import duodao\nfrom work import square\np = duodao.Pipeline(square)\n")
    (path / "n.txt").write_text("1\n2\n")
    (path / "twice.csv").write_text("a,a\n1,2\n")
    for name in ("a.xml", "b.xml", "empty.txt"):
        (path / name).touch()
    (path / "d").mkdir()
    os.mkfifo(path / "fifo")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(path)  # the path of a socket may be no longer than some 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    monkeypatch.undo()
    return path


@pytest.mark.parametrize(("argv", "says"), BAD, ids=[" ".join(argv) or "(nothing)" for argv, _ in BAD])
def test_bad_usage(folder, argv, says):
    """The line names what is wrong; no traceback; no output, journal or failed file comes to be."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = duodao(*argv, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if argv:
        assert done.stderr.startswith("duodao: ")
        assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_unreadable_input_and_unwritable_output(folder):
    """A file that may not be read or written is named before anything starts."""
    (folder / "secret.txt").write_text("1\n")
    (folder / "secret.txt").chmod(0)
    assert (
        "can't read secret.txt: Permission denied" in duodao("map", "work.py:square", "secret.txt", cwd=folder).stderr
    )
    done = duodao(*MAP, "-o", "secret.txt", cwd=folder)
    assert done.returncode == 2
    assert "permission denied" in done.stderr
