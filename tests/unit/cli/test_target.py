"""FILE.py:NAME: how a file is loaded, and what is said when it can't be."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle
import pytest

from duodao.cli import target
from duodao.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_function_of_a_file(folder):
    """The file is imported under its own name, once, with its folder on sys.path."""
    (folder / "work_a.py").write_text(
        "def double(x):\n    return 2 * x\n\nclass C:\n    @staticmethod\n    def m(x): return x\n"
    )
    double = target.load_function("work_a.py:double")
    assert double(4) == 8
    assert double.__module__ == "work_a"
    assert target.load_function("./work_a.py:double") is double
    assert target.load_function("work_a.py:C.m")(3) == 3


def test_neighbours_can_be_imported(folder):
    """What lies beside the file can be imported by it, as with `python FILE.py`."""
    (folder / "sub").mkdir()
    (folder / "sub" / "neighbour_b.py").write_text("N = 5\n")
    (folder / "sub" / "work_b.py").write_text("import neighbour_b\ndef f(x): return x + neighbour_b.N\n")
    assert target.load_function("sub/work_b.py:f")(1) == 6


@pytest.mark.parametrize("name", ["json.py", "2024-run.py", "no_ending"])
def test_name_that_is_taken_or_none(folder, name):
    """A file whose name means another module, or none, is loaded apart and travels by value."""
    import json

    (folder / name).write_text("def f(x): return g(x)\ndef g(x): return x + 1\n")
    function = target.load_function(f"{name}:f")
    assert function(1) == 2
    assert sys.modules["json"] is json
    code = "import sys, pickle; print(pickle.load(sys.stdin.buffer)(41))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(function), capture_output=True, check=True, cwd="/"
    )
    assert done.stdout == b"42\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("work.py", "'work.py' names no function: write FILE.py:FUNC"),
        ("gone.py:f", "no such file: gone.py"),
        (".:f", ". is a directory"),
        ("good.py:doble", "good.py has no 'doble'; did you mean 'double'?"),
        ("good.py:zzz", "good.py has no 'zzz'; it defines double"),
        ("good.py:double.x.y", "good.py has no 'double.x.y'"),
        ("good.py:N", "good.py:N is no function but a value of type int"),
        ("syntax.py:f", "line 2: SyntaxError: "),
        ("raises.py:f", "line 3: ZeroDivisionError: division by zero"),
        ("exits.py:f", "line 1: SystemExit: 3"),
    ],
)
def test_refused(folder, text, says):
    """Every way a target can be wrong is one line that says which and, in the user's file, where."""
    (folder / "work.py").write_text("")
    (folder / "good.py").write_text("N = 1\ndef double(x): return 2 * x\n")
    (folder / "syntax.py").write_text("x = 1\ndef f(:\n")
    (folder / "raises.py").write_text("def f():\n    pass\n1 / 0\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError) as caught:
        target.load_function(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_neighbour_never_stands_in_for_a_module_of_ours(folder):
    """A queue.py or rich.py beside the file is never loaded where Duodao loads its own."""
    (folder / "rich").mkdir()
    (folder / "rich" / "__init__.py").write_text("raise AssertionError('the wrong one')\n")
    (folder / "uvloop.py").write_text("")
    (folder / "work_c.py").write_text("def f(x): return x\n")
    code = (
        "from duodao.cli import target; target.load_file('work_c.py'); import rich.console, sys; "
        "assert 'site-packages' in rich.console.__file__"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
