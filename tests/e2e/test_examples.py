"""The examples do what they show, on a small part of what `make demo` runs them on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from cli_program import duodao

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return EXAMPLES


def test_demo(tmp_path):
    """The demo runs both jobs, tells both lanes with their reasons, and leaves results and journals in demo-out."""
    folder = os.path.join(sysconfig.get_path("stdlib"), "json")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), folder], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {"index.jsonl", "index.journal", "pages.jsonl", "pages.journal", "urls.txt"}
    assert names <= set(os.listdir(tmp_path / "demo-out"))
    modules = [json.loads(line) for line in (tmp_path / "demo-out" / "index.jsonl").read_text().splitlines()]
    assert "JSONDecoder" in next(m for m in modules if m["module"] == "decoder")["classes"]
    assert "  index: " in done.stderr
    assert "  fetch: " in done.stderr


def test_fetch_plain_async_and_as_a_pipeline(tmp_path, examples):
    """Pages come from the small server through the plain function, the async one, and a Pipeline."""
    from fetch import serving

    (tmp_path / "a.py").write_text("spam spam eggs\n")
    (tmp_path / "b & c.txt").write_text("ham\n")
    with serving(tmp_path, latency=0) as base:
        (tmp_path / "urls.txt").write_text(f"{base}/a.py\n{base}/b%20%26%20c.txt\n{base}/gone\n")
        for function in ("fetch", "afetch"):
            done = duodao("map", f"{EXAMPLES}/fetch.py:{function}", "urls.txt", "-o", "out.jsonl", cwd=tmp_path)
            assert done.returncode == 1
            pages = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
            assert [page["title"] for page in pages] == ["a.py", "b & c.txt"]
            assert "404" in (tmp_path / "out.failed.jsonl").read_text()
        done = duodao("run", f"{EXAMPLES}/pipeline.py:words", "urls.txt", cwd=tmp_path)
        assert json.loads(done.stdout.splitlines()[0])["spam"] == 2
