"""mypy --strict and pyright agree on what a user of Duodao sees: every assert_type of this folder holds in both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLES = sorted(p for p in HERE.glob("*.py") if not p.name.startswith("test_"))
Checker = Callable[[list[Path], Path], list[str]]
BROKEN = """
from typing import assert_type
import duodao

def double(x: int) -> float:
    return x * 2.0

for value in duodao.map(double, [1]):
    assert_type(value, str)
"""


def mypy(paths: list[Path], folder: Path) -> list[str]:
    """What mypy --strict says, one line each; of the package itself nothing, `make lint` reports that."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--follow-imports=silent", "--no-pretty"]
    command += ["--cache-dir", str(folder), "--config-file", os.devnull, "--enable-error-code=unused-ignore"]
    env = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode in {0, 1}, done.stderr
    return [line for line in done.stdout.splitlines() if "note:" not in line]


def pyright(paths: list[Path], folder: Path) -> list[str]:
    """What pyright in strict mode says, one line each."""
    config = {
        "include": [str(p) for p in paths],
        "extraPaths": [str(ROOT / "src")],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": True,
        "enableTypeIgnoreComments": False,
        "pythonVersion": f"{sys.version_info[0]}.{sys.version_info[1]}",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(folder), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode in {0, 1}, done.stderr + done.stdout
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [f"{Path(d['file']).name}:{d['range']['start']['line'] + 1} {d['message']}" for d in found]


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])


@CHECKERS
def test_inference(checker: Checker, tmp_path: Path) -> None:
    """The element type of a map, a pipeline and an Outcome is inferred, and wrong calls are refused."""
    assert checker(SAMPLES, tmp_path) == []


@CHECKERS
def test_a_wrong_claim_is_seen(checker: Checker, tmp_path: Path) -> None:
    """The check above is no empty promise: a false assert_type is reported by both."""
    sample = tmp_path / "sample.py"
    sample.write_text(BROKEN)
    found = checker([sample], tmp_path)
    assert len(found) == 1, found
    assert "float" in found[0]
