"""README is a program: Python blocks run as scripts, console lines as commands, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "README.md").read_text()
BLOCKS = FENCE.findall(PAGE)


def run(command: list[str], folder: Path) -> str:
    """Run in `folder`, this interpreter's programs first on the path; must succeed without a traceback."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def serve(line: str, folder: Path) -> None:
    """Run a server, at any free port in place of the page's, until it says its address; SIGTERM must end it well."""
    words = shlex.split(re.sub(r":\d+(?= |$)", ":0", line))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path}
    with subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            assert re.search(r"(tcp|http)://127\.0\.0\.1:\d+", said), said
            server.terminate()
            assert server.wait(30) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks that name their file are there for the commands below them."""
    made = tmp_path_factory.mktemp("readme")
    for kind, text in BLOCKS:
        named = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and named:
            (made / named[1]).write_text(text)
    return made


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: f"{n}-{BLOCKS[n][0]}")
def test_block(number: int, folder: Path) -> None:
    """The block does what the page says, in a fresh interpreter, as a reader would run it."""
    kind, text = BLOCKS[number]
    if kind == "python":
        named = re.match(r"# (\w+\.py)\n", text)
        script = folder / (named[1] if named else f"block_{number}.py")
        script.write_text(text)
        run([sys.executable, script.name], folder)
        return
    assert kind == "console", f"a block of kind {kind} is not run by this test"
    for line in text.splitlines():
        if line.startswith("$ duodao serve "):
            serve(line[2:], folder)
        elif line.startswith("$ "):
            run(["sh", "-c", line[2:]], folder)


def test_commands_exist() -> None:
    """The make targets that the page names are in the Makefile, and the files it links to are there."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", PAGE)) - {"it", "a"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([\w./]+)\)", PAGE):
        assert (ROOT / link).exists(), link
