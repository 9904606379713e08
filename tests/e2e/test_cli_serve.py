"""`duodao serve`: the real command, its address, its figures, its signals and exit codes."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serve_programs import ask, port_of, until

HANDLERS = '''
import os, time

def shout(message: str) -> str:
    return message.upper()

def web(request):
    return f"{request.method} {request.path}"

def held(message: bytes) -> bytes:
    open("held", "w").close()
    while not os.path.exists("free"):
        time.sleep(0.01)
    return message

def dies(message: bytes) -> bytes:
    os._exit(3)

class App:
    """An ASGI application, an instance that holds what can't be pickled."""

    def __init__(self):
        import threading
        self.lock = threading.Lock()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

app = App()
'''


class Command:
    """The running command. address: what it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send a signal, and wait: exit code and stderr."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        assert out == ""
        return self.process.returncode, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With handlers.py."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


@contextlib.contextmanager
def serving(folder: Path, *words: str) -> Iterator[Command]:
    """The command, killed in the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "duodao", "serve", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Command(process)
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_a_signal_drains(folder: Path, number: int, processes: str) -> None:
    """The address comes first, alone on stdout; a signal drains: exit code 0 and figures of every process."""
    with serving(folder, "handlers.py:shout", "tcp://127.0.0.1:0", "--processes", processes) as command:
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", command.address)
        assert ask(command.address, b"hello") == b"HELLO"
        code, err = command.end(number)
    assert code == 0
    counts = [int(found) for found in re.findall(r"process \d+: (\d+) messages?", err)]
    assert len(counts) == int(processes)
    assert sum(counts) == 1


def test_calls_in_flight_are_answered_first(folder: Path) -> None:
    """A call that runs when SIGTERM comes is answered; while it runs nobody else gets in."""
    with serving(folder, "handlers.py:held", "tcp://127.0.0.1:0", "--lane", "thread") as command:
        with socket.create_connection(port_of(command.address), 10) as sock:
            sock.sendall(b"late\n")
            with until() as waiting:
                while not (folder / "held").exists():
                    waiting()
            command.process.send_signal(signal.SIGTERM)
            with until() as waiting, contextlib.suppress(OSError):
                while waiting():
                    socket.create_connection(port_of(command.address), 0.5).close()
            (folder / "free").touch()
            assert sock.makefile("rb").readline() == b"late\n"
        assert command.end()[0] == 0


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    """Ctrl-C twice: 130, whatever still runs."""
    with serving(folder, "handlers.py:held", "tcp://127.0.0.1:0", "--processes", "2", "--lane", "thread") as command:
        with socket.create_connection(port_of(command.address), 10) as sock:
            sock.sendall(b"never\n")
            with until() as waiting:
                while not (folder / "held").exists():
                    waiting()
            command.process.send_signal(signal.SIGINT)
            assert command.process.stderr is not None
            while "once more stops at once" not in command.process.stderr.readline():
                pass
            code, err = command.end(signal.SIGINT)
    assert code == 130
    assert "stopped at once" in err


def test_http_and_a_request_for_figures(folder: Path) -> None:
    """A handler over http; SIGUSR1 prints figures while it serves on."""
    with serving(folder, "handlers.py:web", "http://127.0.0.1:0", "--max-body", "1K") as command:
        assert requests.get(f"{command.address}/a", timeout=10).text == "GET /a"
        assert requests.post(f"{command.address}/a", data=b"x" * 2000, timeout=10).status_code == 413
        command.process.send_signal(signal.SIGUSR1)
        assert command.process.stderr is not None
        while "2 messages" not in (line := command.process.stderr.readline()):
            assert line
        assert "1 overrun" in line
        assert requests.get(f"{command.address}/b", timeout=10).text == "GET /b"
        assert command.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("name", ["handlers.py", "no-module.py"])
def test_an_application_that_cant_be_pickled(folder: Path, name: str) -> None:
    """An instance that holds a lock is found by its name in every process; a killed one is replaced."""
    (folder / "no-module.py").write_text(HANDLERS)
    with serving(folder, f"{name}:app", "http://127.0.0.1:0", "--processes", "2") as command:
        pids = {int(requests.get(command.address, timeout=10).text) for _ in range(30)}
        assert len(pids) == 2
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        with until() as waiting:
            while len(pids) < 2:
                waiting()
                with contextlib.suppress(requests.ConnectionError, http.client.HTTPException):
                    pids |= {int(requests.get(command.address, timeout=10).text)} - {victim}
        assert command.end(signal.SIGTERM)[0] == 0


def test_a_server_that_ends_by_itself(folder: Path) -> None:
    """Processes that die in a row end the command with 1 and the reason."""
    with serving(folder, "handlers.py:dies", "tcp://127.0.0.1:0", "--processes", "2", "--lane", "thread") as command:
        while command.process.poll() is None:
            with contextlib.suppress(OSError):
                ask(command.address)
        code, err = command.end()
    assert code == 1
    assert "5 processes of the server died one after the other" in err


ONCE = """
import sys

async def app(scope, receive, send):
    await send({"type": "lifespan.startup.failed"})

if sys.argv[-2:-1] == ["--processes"]:
    sys.argv.append("loaded")
elif sys.argv[-1] == "loaded" and "once.py:shout" in sys.argv:
    raise ValueError("once")
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["handlers.py:nothing", "tcp://127.0.0.1:0"], 2, "has no 'nothing'"),
        (["handlers.py:shout", "udp://127.0.0.1:0"], 2, "no address to serve at"),
        (["handlers.py:shout", "tcp://127.0.0.1:0", "--idle", "soon"], 2, "'soon' is no time"),
        (["handlers.py:shout", "tcp://127.0.0.1:0", "--cert", "x.pem"], 2, "belong together"),
        (["handlers.py:shout", "tcp://127.0.0.1:0", "--proxy-from", "here"], 2, "--proxy-from"),
        (["handlers.py:web", "https://127.0.0.1:0"], 2, "needs tls"),
        (["handlers.py:shout", "tcp://192.0.2.1:7"], 1, "can't listen at tcp://192.0.2.1:7"),
        (
            ["once.py:shout", "tcp://127.0.0.1:0", "--processes", "2"],
            1,
            "once.py:shout can't be served: ValueError",
        ),
        (["once.py:app", "http://127.0.0.1:0", "--processes", "2"], 1, "lifespan startup failed\n"),
    ],
)
def test_mistakes(folder: Path, words: list[str], code: int, said: str) -> None:
    """One line on stderr, nothing on stdout; also for what goes wrong only in the server's processes."""
    (folder / "once.py").write_text(HANDLERS + ONCE)
    ended = subprocess.run(
        [sys.executable, "-m", "duodao", "serve", *words],
        cwd=folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


SLOW = """
import asyncio, os, threading

def load():
    if not os.path.exists("loaded"):
        return open("loaded", "w").close()  # here; in the server's processes it takes for ever
    open("begun", "w").close()
    threading.Event().wait()

async def app(scope, receive, send):
    open("begun", "w").close()
    await asyncio.Event().wait()
"""


@pytest.mark.parametrize(
    "words", [["slow.py:shout", "tcp://127.0.0.1:0", "--processes", "2"], ["slow.py:app", "http://127.0.0.1:0"]]
)
def test_a_signal_while_it_starts_ends_it(folder: Path, words: list[str]) -> None:
    """What never finishes loading, in a process or as a lifespan, is ended by the first signal, in one sentence."""
    (folder / "slow.py").write_text(f"{HANDLERS}\n{SLOW}\nload()\n")
    with subprocess.Popen(
        [sys.executable, "-m", "duodao", "serve", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        with until() as waiting:
            while not (folder / "begun").exists():
                waiting()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "duodao: stopped at once: it did not serve yet\n")


@pytest.mark.parametrize("full", [True, False])
def test_who_reads_what_it_says_may_go(folder: Path, full: bool) -> None:
    """With stdout and stderr on a full disk, or nobody at the other end, it serves on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*free.getsockname())
    if full:
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "duodao", "serve", "handlers.py:shout", address, "--figures", "10ms"],
        cwd=folder, stdout=out, stderr=out,
    ) as process:  # fmt: skip
        os.close(out)
        with until() as waiting:
            while waiting():
                with contextlib.suppress(ConnectionRefusedError):
                    ask(address, b"a")
                    break
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)  # figures have been due
        assert ask(address, b"a") == b"A"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
