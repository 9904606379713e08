"""progress=True in a Jupyter kernel: one bar in the cell, updated in place, and nothing left open after an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

CELL = """
import duodao
def f(x):
    if x == FAIL: raise ValueError("bad")
    return x
print(sum(duodao.map(f, range(100), lane="LANE", progress=True)))
"""
CELLS = [
    CELL.replace("LANE", "thread").replace("FAIL", "-1"),
    CELL.replace("LANE", "process").replace("FAIL", "-1"),
    CELL.replace("LANE", "thread").replace("FAIL", "50"),
]


@pytest.fixture(scope="module")
def outputs():
    """(kind, content) of every output message, per cell."""
    program = [sys.executable, str(Path(__file__).with_name("kernel_messages.py")), *CELLS]
    done = subprocess.run(program, capture_output=True, text=True, timeout=110, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("cell", [0, 1], ids=["thread", "process"])
def test_one_bar_updated_in_place(outputs, cell):
    """The cell gets one display, updates of it and no line on stderr; the last one says that all is done."""
    out = outputs[cell]
    shown = [content for kind, content in out if kind == "display_data"]
    updates = [content for kind, content in out if kind == "update_display_data"]
    assert len(shown) == 1
    assert "<progress" in shown[0]["data"]["text/html"]
    assert updates
    assert all(u["transient"]["display_id"] == shown[0]["transient"]["display_id"] for u in updates)
    assert "100 of 100, 0 failed" in updates[-1]["data"]["text/plain"]
    assert ["stream", {"name": "stdout", "text": "4950\n"}] in out
    assert not [content for kind, content in out if kind == "stream" and content["name"] == "stderr"]


def test_bar_of_a_run_that_raises(outputs):
    """An error reaches the cell as itself, and the bar keeps the state it had."""
    out = outputs[2]
    assert [content["ename"] for kind, content in out if kind == "error"] == ["ValueError"]
    assert len([kind for kind, _ in out if kind == "display_data"]) == 1
