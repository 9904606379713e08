"""The real command in a process of its own, and a gate that its calls wait at, so that a test knows what runs."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

WORK = r'''
import os, time

def square(x):
    return int(x) ** 2

def echo(x):
    return x

def held(x):
    """Says that it runs, then waits for leave."""
    _say(x)
    _wait()
    return x

def held_at_ten(x):
    """Notes each call; 10 waits for leave, unless the file `free` is there."""
    with open("calls", "a") as file:
        file.write(f"{x}\n")
    if str(x) == "10" and not os.path.exists("free"):
        _say(x)
        _wait()
    return x

def pid_held(x):
    _say(os.getpid())
    _wait()
    return x

def _say(text):
    fd = os.open("started", os.O_WRONLY)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)

def _wait():
    fd = os.open("go", os.O_RDONLY)
    os.read(fd, 1)
    os.close(fd)

def prints(x):
    print("printed", x)
    return x

def add(a, b):
    return a + b

def scale(x, factor):
    return int(x) * factor

def unjson(x):
    return {1, 2} if x == "2" else x

def tell(x, db):
    return f"{db} {x}"

class database:
    def __enter__(self):
        return "db"
    def __exit__(self, *exc):
        pass

def broken_setup():
    raise OSError("no route to the database")

async def later(x):
    import asyncio
    await asyncio.sleep(0)
    return x

NUMBER = 3
'''


def duodao(*argv: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Run the command to its end. stdout and stderr as text; bytes that don't decode as surrogates."""
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    if options["stdin"] is None:
        del options["stdin"]
    return subprocess.run(
        [sys.executable, "-m", "duodao", *argv], cwd=cwd, text=True, errors="surrogateescape", timeout=60,
        capture_output=True, check=False, **options,
    )  # fmt: skip


class Program:
    """The command while it runs; its stderr is read line by line. Killed at the end of the `with`, if it must be."""

    def __init__(self, *argv: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "duodao", *argv], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.said = ""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def until(self, text: str, seconds: float = 30) -> None:
        """Read stderr until `text` was said."""
        while text not in self.said:
            chunk = read_some(self.process.stderr.fileno(), seconds)
            assert chunk, f"ended without saying {text!r}: {self.said}"
            self.said += chunk.decode("utf-8", "replace")

    def end(self, seconds: float = 30) -> int:
        """Its exit code, once it has ended by itself; the rest of what it said."""
        while chunk := read_some(self.process.stderr.fileno(), seconds):
            self.said += chunk.decode("utf-8", "replace")
        return self.process.wait(seconds)


def read_some(fd: int, seconds: float) -> bytes:
    """What is there, waiting for it at most `seconds`; b"" at the end."""
    assert select.select([fd], [], [], seconds)[0], "nothing came in time"
    try:
        return os.read(fd, 65536)
    except OSError:  # the other side of a terminal is closed
        return b""


class Gate:
    """Calls of `held` say that they run and wait until they are let go."""

    def __init__(self, folder: Path) -> None:
        for name in ("started", "go"):
            os.mkfifo(folder / name)
        # Both ends: no open() of a call ever waits, and nothing that is written is lost.
        self._started = os.open(folder / "started", os.O_RDWR)
        self._go = os.open(folder / "go", os.O_RDWR)
        self._lines: list[str] = []
        self._rest = ""

    def wait(self, count: int = 1, seconds: float = 30) -> list[str]:
        """What the next `count` calls said when they started."""
        while len(self._lines) < count:
            text = self._rest + read_some(self._started, seconds).decode()
            *lines, self._rest = text.split("\n")
            self._lines += lines
        out, self._lines = self._lines[:count], self._lines[count:]
        return out

    def waiting(self) -> list[str]:
        """What further calls have said until now."""
        while select.select([self._started], [], [], 0)[0]:
            self._rest += os.read(self._started, 65536).decode()
        *lines, self._rest = self._rest.split("\n")
        lines, self._lines = self._lines + lines, []
        return lines

    def let_go(self, count: int = 1) -> None:
        """Let `count` calls go on."""
        os.write(self._go, b"x" * count)

    def close(self) -> None:
        for fd in (self._started, self._go):
            with contextlib.suppress(OSError):
                os.close(fd)


def gone(fds: list[int], seconds: float = 5) -> bool:
    """Whether the processes of these pidfds have all ended within `seconds`."""
    poll = select.poll()
    left = set(fds)
    for fd in fds:
        poll.register(fd, select.POLLIN)
    while left:
        ready = poll.poll(seconds * 1000)
        if not ready:
            return False
        for fd, _ in ready:
            poll.unregister(fd)
            left.discard(fd)
    return True
