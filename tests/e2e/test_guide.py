"""Each Python block of the guide is a program that runs as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    (page.stem, n, text)
    for page in sorted(GUIDE.glob("*.md"))
    for n, text in enumerate(FENCE.findall(page.read_text()))
]


@pytest.mark.parametrize(("page", "number", "text"), BLOCKS, ids=[f"{page}-{number}" for page, number, _ in BLOCKS])
def test_block(page: str, number: int, text: str, tmp_path: Path) -> None:
    """The block ends well in a fresh interpreter, and in no other way than the page says."""
    script = tmp_path / f"{page}_{number}.py"
    script.write_text(text)
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    env.pop("DUODAO_LOCKDEP", None)  # the page on deadlocks takes locks in two orders on purpose
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def test_there_are_pages() -> None:
    """The guide was found, with programs in it."""
    assert BLOCKS
