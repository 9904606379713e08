"""Programs: started as subprocess would start them, with its errors, and never left behind."""

from __future__ import annotations

import os
import queue
import signal

import pytest

from duodao.children import guard
from duodao.children.child import Unanswered
from duodao.errors import UsageError


def text_of(argv, pipe, **options):
    """What the program writes to stdout."""
    child = guard.command(argv, stdout=pipe[1], **options)
    os.close(pipe[1])
    text = b"".join(iter(lambda: os.read(pipe[0], 65536), b""))
    assert child.wait(10) == 0
    return text.decode()


def test_streams(pipe):
    """stdin, stdout and stderr are the descriptors given, and stdin is empty when none is."""
    reader, writer = os.pipe()
    os.write(writer, b"from stdin\n")
    os.close(writer)
    assert text_of(["sh", "-c", "cat; echo err >&2"], pipe, stdin=reader, stderr=pipe[1]) == "from stdin\nerr\n"
    os.close(reader)


def test_stdin_is_empty(pipe):
    """A program that reads stdin without having been given one ends at once."""
    assert text_of(["cat"], pipe) == ""


def test_env_and_cwd(pipe, tmp_path):
    """env and cwd are those given; the marker is added, so that what it leaves can be found."""
    text = text_of(["sh", "-c", "pwd; env"], pipe, env={"PATH": os.environ["PATH"], "A": "b"}, cwd=str(tmp_path))
    lines = text.splitlines()
    assert lines[0] == str(tmp_path)
    assert "A=b" in lines
    assert not any(line.startswith("HOME=") for line in lines)
    assert any(line.startswith(f"{guard.MARKER}={os.getpid()}-") for line in lines)


def test_own_env_and_cwd_are_the_current_ones(pipe, tmp_path, monkeypatch):
    """Without env and cwd it gets those of this process now, not those of when the guard was started."""
    guard.ensure()
    monkeypatch.setenv("DUODAO_TEST_NOW", "now")
    monkeypatch.chdir(tmp_path)
    assert text_of(["sh", "-c", "pwd; echo $DUODAO_TEST_NOW"], pipe).split() == [str(tmp_path), "now"]


def test_signals_are_as_a_shell_would_leave_them(pipe):
    """It ignores and blocks no signal: neither those Python ignores (SIGPIPE) nor those the guard does."""
    lines = text_of(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], pipe).splitlines()
    standard = (1 << 31) - 1  # above are the C library's own, and what the machine that runs the tests ignores
    assert [int(line.split()[1], 16) & standard for line in lines] == [0, 0]


def test_what_a_program_has_open(pipe):
    """It has its three streams and its lifeline, nothing else."""
    fds = text_of(["ls", "/proc/self/fd"], pipe).split()
    assert sorted(map(int, fds)) in ([0, 1, 2, 3, 10], [0, 1, 2, 10])


@pytest.mark.parametrize(
    ("argv", "options", "error", "said"),
    [
        (["no-such-program-of-ours"], {}, FileNotFoundError, "no-such-program-of-ours"),
        (["/etc"], {}, PermissionError, "/etc"),
        (["true"], {"cwd": "/no/such/folder"}, FileNotFoundError, "/no/such/folder"),
        ([], {}, UsageError, "empty"),
        (["a\0b"], {}, UsageError, "NUL"),
    ],
)
def test_what_can_not_run_raises(argv, options, error, said):
    """A program, folder or argument that can't be used raises what subprocess would, naming it; nothing is left."""
    with pytest.raises(error, match=said):
        guard.command(argv, **options)


def test_long_arguments(pipe):
    """Arguments of more than a packet, and names that are not text, arrive whole."""
    word = "x" * 100_000
    assert text_of(["printf", "%s", word], pipe) == word


def test_bytes_and_undecodable_words(pipe):
    """Words may be bytes or text with surrogates; the program gets the same bytes."""
    child = guard.command([b"printf", b"%s", os.fsdecode(b"\xff\xfe")], stdout=pipe[1])
    os.close(pipe[1])
    assert os.read(pipe[0], 100) == b"\xff\xfe"
    assert child.wait(10) == 0


def test_kill_and_terminate_reach_the_group(pipe):
    """`kill` and `terminate` reach what the program started, not only the program."""
    for way, code in (("kill", signal.SIGKILL), ("terminate", signal.SIGTERM)):
        reader, writer = os.pipe()
        child = guard.command(["sh", "-c", "sleep 60 & echo ready; wait"], stdout=writer)
        os.close(writer)
        assert os.read(reader, 100) == b"ready\n"
        getattr(child, way)()
        assert child.wait(10) == -code
        assert os.read(reader, 1) == b"", "sleep held it, too"
        os.close(reader)


def test_a_start_that_is_not_waited_for(pipe):
    """With `then` the call returns at once; it is told when the program runs, or why it can't, and nothing is left."""
    heard = queue.SimpleQueue()
    child = guard.command(["cat"], stdin=pipe[0], then=lambda *news: heard.put(news))
    assert heard.get(timeout=10) == (child, None)
    assert child.pid
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    before = len(os.listdir("/proc/self/fd"))
    other = guard.command(["no-such-program-of-ours"], then=lambda *news: heard.put(news))
    told, error = heard.get(timeout=10)
    assert told is other
    assert type(error) is FileNotFoundError
    assert error.filename == "no-such-program-of-ours"
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_start_that_is_dropped_at_once():
    """A program whose lifeline is dropped before it was even started dies as soon as it is."""
    heard = queue.SimpleQueue()
    child = guard.command(["sleep", "1000"], then=lambda *news: heard.put(news))
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    assert heard.get(timeout=10) == (child, None)


def test_the_guard_dies_while_a_start_is_not_waited_for():
    """If the guard dies with the request, that is told, too: the program was ended, if it ever ran."""
    guard.command(["true"]).wait(10)
    os.kill(guard.number(), signal.SIGSTOP)  # it takes no request
    heard = queue.SimpleQueue()
    child = guard.command(["sleep", "1000"], then=lambda *news: heard.put(news))
    os.kill(guard.number(), signal.SIGKILL)
    told, error = heard.get(timeout=10)
    assert told is child
    assert type(error) is Unanswered
