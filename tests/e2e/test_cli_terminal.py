"""The live display on a real pseudo-terminal, as an emulator shows it; Ctrl-Z and fg under a real shell."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from cli_program import WORK, Gate, read_some

pyte = pytest.importorskip("pyte")

ROWS, COLUMNS = 30, 100


class Terminal:
    """A pseudo-terminal with a program on it, and what an emulator makes of its output."""

    def __init__(self, argv, cwd, stdout=None):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        env = {**os.environ, "TERM": "xterm-256color", "PS1": "$ "}
        env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - there is one thread
        )
        os.close(slave)

    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, *parts, seconds=30):
        """Read until the screen shows all of these."""
        while not all(part in self.text() for part in parts):
            data = read_some(self.master, seconds)
            assert data, f"ended without showing {parts}:\n{self.text()}"
            self._stream.feed(data)

    def rest(self, seconds=30):
        """Read to the end."""
        while data := read_some(self.master, seconds):
            self._stream.feed(data)

    def type(self, text):
        os.write(self.master, text.encode())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "n.txt").write_text("".join(f"{n}\n" for n in range(40)))
    return tmp_path


@pytest.fixture
def gate(folder):
    gate = Gate(folder)
    yield gate
    gate.close()


def command(*argv):
    return [sys.executable, "-m", "duodao", *argv]


def test_live_display(folder, gate):
    """One sees rate, in flight, failed, lane and width, and the input that is waited for; then a summary."""
    argv = command("map", "work.py:held_at_ten", "n.txt", "-o", "out.jsonl", "--lane", "thread", "--workers", "2")
    with Terminal(argv, folder) as terminal:
        gate.wait(1)
        terminal.until("39 of 40", "/s", "1 in flight", "0 failed", "held_at_ten", "thread x 2", "waiting for input 10")
        assert terminal.screen.cursor.hidden
        gate.let_go()
        terminal.until("40 of 40, 0 failed in")
        terminal.rest()
        assert terminal.process.wait(10) == 0
        assert not terminal.screen.cursor.hidden
        assert "in flight" not in terminal.text()


@pytest.mark.parametrize("lane", ["inline", "process"])
def test_prints_stand_above_the_bar(folder, lane):
    """What the function prints is left on the screen in whole lines, with the display gone at the end."""
    argv = command("map", "work.py:prints", "n.txt", "-o", "out.jsonl", "--lane", lane)
    with Terminal(argv, folder) as terminal:
        terminal.rest()
        assert terminal.process.wait(10) == 0
        shown = ["".join(char.data for _, char in sorted(row.items())) for row in terminal.screen.history.top]
        shown += terminal.text().split("\n")
        assert {f"printed {n}" for n in range(40)} <= {line.rstrip() for line in shown}
        assert "in flight" not in terminal.text()


def test_interrupt_gives_the_terminal_back(folder, gate):
    """Ctrl-C typed twice: the line about it, the cursor shown, no bar left."""
    argv = command("map", "work.py:held", "n.txt", "-o", "out.jsonl", "--lane", "thread", "--workers", "2")
    with Terminal(argv, folder) as terminal:
        gate.wait(2)
        terminal.until("in flight")
        terminal.type("\x03")
        terminal.until("interrupted: finishing what is in flight", "draining")
        terminal.type("\x03")
        terminal.rest()
        assert terminal.process.wait(10) == 130
        assert not terminal.screen.cursor.hidden
        assert "stopped at once" in terminal.text()
        assert "draining" not in terminal.text()


def test_results_on_the_terminal_without_a_bar(folder):
    """When OUT is the terminal itself there is no display that would tear the results."""
    with Terminal(command("map", "work.py:echo", "n.txt", "--lane", "inline"), folder) as terminal:
        terminal.rest()
        assert terminal.process.wait(10) == 0
        assert '"39"' in terminal.text()
        assert "of 40" not in terminal.text()


def test_results_in_a_pipe_with_a_bar_on_the_terminal(folder, gate):
    """`duodao map … | program`: the results are the pipe's, the terminal has the display and what is printed."""
    argv = command("map", "work.py:held_at_ten", "n.txt", "--lane", "thread", "--workers", "2")
    with Terminal(argv, folder, stdout=subprocess.PIPE) as terminal:
        gate.wait(1)
        terminal.until("39 of 40", "in flight")
        gate.let_go()
        terminal.rest()
        with terminal.process.stdout as results:
            assert len(results.read().splitlines()) == 40
        assert terminal.process.wait(10) == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_suspend_and_continue(folder, gate):
    """Ctrl-Z gives the terminal back to the shell; `fg` draws again, and the run ends as if nothing had been."""
    with Terminal(["bash", "--norc", "--noprofile", "-i"], folder) as shell:
        argv = command("map", "work.py:held_at_ten", "n.txt", "-o", "out.jsonl", "--lane", "process", "--workers", "2")
        shell.type(" ".join(argv) + "\n")
        gate.wait(1)
        shell.until("process x 2", "in flight")
        shell.type("\x1a")
        shell.until("Stopped")
        assert not shell.screen.cursor.hidden
        shell.type("clear; fg\n")
        shell.until("in flight")
        assert shell.screen.cursor.hidden
        gate.let_go()
        shell.until("40 of 40, 0 failed in")
        shell.type("echo code=$?.\n")
        shell.until("code=0.")
        assert not shell.screen.cursor.hidden
        shell.type("exit\n")
        shell.rest()
    assert len((folder / "out.jsonl").read_text().splitlines()) == 40
