"""Servers: lines echoed over TCP, 10,000 connections in one process, and HTTP. Each server is a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario
from benchmarks.waiting import cpu_of, descendants

NAMES = ("serve_lines", "serve_crowd", "serve_http", "serve_http_two")
SECONDS = 2
ACTIVE = 100
APART: dict[str, Any] = {"start_new_session": True}
"""For what makes the load: the kernel shares processors out among sessions, and some servers have one of their own."""


def rate(_seconds: float, _n: int, result: Any) -> float:
    return float(result)


ABOUT = (
    "32 bytes a line, {0}one line outstanding on each of 100, every reply compared. The load comes from a program in C "
    "(benchmarks/load.c), so that Python's own cost is the server's alone. CPU: of the server, per message."
)
LINES = scenario("serve_lines", "TCP: echo of lines, one process", "messages/s", ACTIVE, figure=rate,
                 about=ABOUT.format(""))  # fmt: skip
CROWD = scenario("serve_crowd", "TCP: 10,000 connections open in one process, 100 of them active", "messages/s", 10_000,
                 figure=rate, about=ABOUT.format("10,000 connections, ") +
                 " Any error fails the run. Memory: resident, over that before the first connection.")  # fmt: skip
HTTP_ABOUT = (
    "wrk with one thread and 100 connections; the answer is 13 bytes of text; any status but 200 fails the run."
)
HTTP = scenario("serve_http", "HTTP: requests to one worker", "requests/s", 100, figure=rate, about=HTTP_ABOUT)
HTTP_TWO = scenario("serve_http_two", "HTTP: requests to two workers", "requests/s", 100, figure=rate, about=HTTP_ABOUT)


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A server in a session of its own, which is over when the block is left."""
    made = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield made
    finally:
        made.terminate()
        with made:
            pass


@contextmanager
def generator() -> Iterator[str]:
    """benchmarks/load.c, compiled; the program is there while the block is."""
    with tempfile.TemporaryDirectory() as folder:
        built = os.path.join(folder, "load")
        subprocess.run(["cc", "-O2", "-o", built, Path(__file__).with_name("load.c")], check=True)
        yield built


def resident(pids: set[int]) -> int:
    """KB of memory."""
    return sum(int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) for pid in pids)


def echo(bench: Bench, name: str, *, farewell: bool = False) -> None:
    """Load one of the servers of benchmarks/echoes.py with as many connections as the row has items.

    farewell: a connection comes and goes before.
    """
    with ExitStack() as stack:
        load = stack.enter_context(generator())
        server = stack.enter_context(program(sys.executable, "-m", "benchmarks.echoes", name))
        port = server.stdout.readline().strip()  # type: ignore[union-attr]
        if farewell:
            subprocess.run([load, "127.0.0.1", port, "1", "1", "0.1"], input=b"", capture_output=True, check=True)
        tree = descendants(server.pid)
        empty = resident(tree)
        words = [load, "127.0.0.1", port, str(bench.n), str(ACTIVE), str(SECONDS)]
        client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **APART)
        opened = client.stdout.readline()  # type: ignore[union-attr]
        if not opened.startswith("open"):
            raise RuntimeError(f"the load generator said {opened!r}")
        each = (resident(tree) - empty) / bench.n
        used = cpu_of(tree)
        said = json.loads(client.communicate("\n")[0])
        used = cpu_of(tree) - used
        if said["errors"]:
            raise RuntimeError(f"{said['errors']} errors, the first: {said['first_error']}")
        bench.time(lambda: said["rate"])
        bench.extra = f"p99 {said['p99'] * 1e3:.2g} ms, CPU {used / said['replies'] * 1e6:.3g} us"
        if bench.n > ACTIVE:
            bench.extra += f", {each:.2g} KB per connection, all open after {said['connect']:.2g} s"


def declare_echo(table: Scenario, *names: str) -> None:
    for name in names:
        label = name.replace("ours", "duodao.serve")
        table.row(label, ours=name.startswith("ours"), limit=name == "uvloop protocol", note=NOTES.get(name, ""))(
            lambda bench, name=name: echo(bench, name)
        )


NOTES = {
    "uvloop protocol": "sends back what comes and knows no lines: the least there is to do",
    "ours": "handler(bytes) -> bytes, every line a call",
    "ours, async": "async handler(bytes) -> bytes",
    "gevent": "StreamServer",
}
MALLOC = (
    "asyncio reads into 256 KB that it gives back at once, which is a call of mmap and munmap each until the first "
    "connection ends; then malloc keeps it"
)
declare_echo(LINES, "ours", "ours, async", "uvloop protocol", "uvloop streams", "asyncio protocol", "asyncio streams",
             "gevent")  # fmt: skip
LINES.row("asyncio streams, one connection ended before", note=MALLOC)(
    lambda bench: echo(bench, "asyncio streams", farewell=True)
)
declare_echo(CROWD, "ours", "uvloop protocol", "uvloop streams", "asyncio streams", "gevent")
for each_table in (LINES, CROWD):
    each_table.goal("0.9 of a bare uvloop protocol", "duodao.serve", 0.9, "=uvloop protocol")
    each_table.goal("2.5 times asyncio streams", "duodao.serve", 2.5, "=asyncio streams")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrk(bench: Bench, port: int, server: int) -> None:
    """Wait until the server answers, warm it up, and load it."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing: apt-get install wrk")
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    words = ["wrk", "-t1", f"-c{bench.n}", "--latency", f"http://127.0.0.1:{port}/"]
    subprocess.run([*words, "-d1"], capture_output=True, check=True)
    tree = descendants(server)
    used = cpu_of(tree)
    said = subprocess.run([*words, f"-d{SECONDS}"], capture_output=True, text=True, check=True, **APART).stdout
    used = cpu_of(tree) - used
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said[-300:])
    requests = int(re.findall(r"(\d+) requests in", said)[0])
    bench.time(lambda: float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0]))
    slow = re.findall(r"\n\s+99%\s+(\S+)", said)[0]
    bench.extra = f"p99 {slow}, CPU {used / requests * 1e6:.3g} us"


def declare_http(table: Scenario, workers: int) -> None:
    many = str(workers)

    def peer(*words: str) -> Any:
        def row(bench: Bench) -> None:
            port = free_port()
            with program(sys.executable, "-m", *(word.format(port=port, workers=many) for word in words)) as server:
                wrk(bench, port, server.pid)

        return row

    def ours(name: str) -> Any:
        def row(bench: Bench) -> None:
            with program(sys.executable, "-m", "benchmarks.echoes", name, many) as server:
                wrk(bench, int(server.stdout.readline()), server.pid)  # type: ignore[union-attr, arg-type]

        return row

    table.row("duodao.serve, ASGI", ours=True)(ours("asgi"))
    table.row("duodao.serve, handler(request)", ours=True)(ours("request"))
    table.row("granian, ASGI", limit=True, note="what serves our requests, by itself")(
        peer("granian", "--interface", "asgi", "--port", "{port}", "--workers", "{workers}", "--log-level", "critical",
             "benchmarks.echoes:app")
    )  # fmt: skip
    table.row("uvicorn", note="with uvloop and httptools")(
        peer("uvicorn", "--port", "{port}", "--workers", "{workers}", "--log-level", "critical", "--backlog", "4096",
             "benchmarks.echoes:app")
    )  # fmt: skip
    table.goal("0.9 of bare granian", "duodao.serve, ASGI", 0.9, "granian")


declare_http(HTTP, 1)
declare_http(HTTP_TWO, 2)
HTTP.goal("handler(request): 0.9 of bare granian", "duodao.serve, handler(request)", 0.9, "granian")
