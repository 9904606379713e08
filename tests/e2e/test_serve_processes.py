"""Several processes that serve one address: killed, replaced, drained, never left behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import serve_programs as programs
from serve_programs import Browser, Load, ask, port_of, until

import duodao
from duodao.errors import Broken, NotPicklable

ANY = "tcp://127.0.0.1:0"


class Echo:
    """For Load: a message and its reply, over one connection each or, if `keep`, over one for all."""

    def __init__(self, address: str, *, keep: bool = False) -> None:
        self._address = address
        self._keep = keep
        self._sock: socket.socket | None = None

    def __call__(self) -> None:
        if self._sock is None:
            self._sock = socket.create_connection(port_of(self._address), 10)
        self._sock.sendall(b"hello\n")
        reply = b""
        while not reply.endswith(b"\n"):
            more = self._sock.recv(100)
            if not more:
                raise EOFError("closed without a reply")
            reply += more
        assert reply == b"hello\n"
        if not self._keep:
            self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def test_every_process_serves_and_counts() -> None:
    """Connections reach all processes, none of them this one, and their figures add up to what was asked."""
    with duodao.Server(programs.pid, ANY, processes=3) as server:
        pids = server.pids()
        assert len(set(pids)) == 3
        assert os.getpid() not in pids
        answered = {int(ask(server.address)) for _ in range(60)}
        assert answered == set(pids)
        figures = server.figures()
    assert sum(each.messages for each in figures) == 60
    assert {each.pid for each in figures} == set(pids)
    assert [each.messages for each in server.figures()] == [each.messages for each in figures]


def test_a_killed_process_is_replaced_under_load() -> None:
    """kill -9 of one process: the clients of the other don't notice, and soon there are two again."""
    with duodao.Server(programs.brief, ANY, processes=2) as server, Load(lambda: Echo(server.address), 8) as load:
        load.more(50)
        victim, other = server.pids()
        os.kill(victim, signal.SIGKILL)
        load.more(100)
        with until() as waiting:
            while len(server.pids()) < 2 or victim in server.pids():
                waiting()
        load.more(100)
        assert other in server.pids()
        assert len(load.failed) <= 8  # those it was talking to
    assert sum(each.messages for each in server.figures()) > 0


def test_queued_connections_outlive_the_process() -> None:
    """What the kernel had queued for a process that is killed is served by the one that takes its place."""
    with duodao.Server(programs.pid, ANY, processes=2) as server:
        before = server.pids()
        for one in before:
            os.kill(one, signal.SIGSTOP)
        with_sockets = [socket.create_connection(port_of(server.address), 10) for _ in range(20)]
        for sock in with_sockets:
            sock.sendall(b"?\n")
        for one in before:
            os.kill(one, signal.SIGKILL)
        replies = set()
        for sock in with_sockets:
            with sock:
                replies.add(int(sock.makefile("rb").readline()))
        assert not replies & set(before)
        assert len(replies) == 2


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_a_drain_under_load_loses_nothing(processes: int, keep: bool) -> None:
    """Every message that was sent is answered; later connections are refused."""
    server = duodao.Server(programs.brief, ANY, processes=processes).start()
    with Load(lambda: Echo(server.address, keep=keep), 16) as load:
        load.more(100)
        server.drain()
    closed = [text for text in load.failed if keep and "closed without" in text]
    # A connection that is kept may be closed between two messages: the client has sent one into a closed door then.
    assert len(closed) <= (16 if keep else 0)
    assert [text for text in load.failed if text not in closed and "Reset" not in text and "Pipe" not in text] == []
    assert load.good >= 100
    with pytest.raises(ConnectionRefusedError):
        ask(server.address)


def test_nothing_outlives_a_killed_server(tmp_path: Path) -> None:
    """kill -9 of the program: its processes are gone at once, and the port is free."""
    script = tmp_path / "server.py"
    script.write_text(
        "import duodao\n"
        "def echo(message: bytes) -> bytes:\n    return message\n"
        "server = duodao.Server(echo, 'tcp://127.0.0.1:0', processes=2).start()\n"
        "print(server.address, *server.pids(), flush=True)\n"
        "server.wait()\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        address, *pids = program.stdout.readline().split()
        assert ask(address) == b"?"
        program.kill()
    with until() as waiting:
        while any(os.path.exists(f"/proc/{one}") for one in pids):
            waiting()
    with pytest.raises(ConnectionRefusedError):
        ask(address)


def test_a_process_asked_to_end_is_replaced() -> None:
    """SIGTERM to one process drains that one; another takes its socket, and figures go on from its last ones."""
    with duodao.Server(programs.pid, ANY, processes=2) as server:
        for _ in range(20):
            ask(server.address)
        before = server.pids()
        os.kill(before[0], signal.SIGTERM)
        with until() as waiting:
            while before[0] in server.pids() or len(server.pids()) < 2:
                waiting()
        for _ in range(20):
            ask(server.address)
        assert sum(each.messages for each in server.figures()) == 40


def test_a_web_process_asked_to_end_is_replaced() -> None:
    """The same over HTTP, under load: no request fails, and nobody waits for a door that is shut."""
    with duodao.Server(programs.web_pid, "http://127.0.0.1:0", processes=2) as server:
        with Load(lambda: Browser(server.address), 8) as load:
            before = server.pids()
            load.more(50)
            os.kill(before[0], signal.SIGTERM)
            with until() as waiting:
                while before[0] in server.pids() or len(server.pids()) < 2:
                    waiting()
            load.more(200)
        assert load.failed == []
        assert before[1] in server.pids()


def test_processes_that_die_one_after_the_other_end_the_server() -> None:
    """Five deaths in a row, each just after the start, end the server with what happened."""
    with duodao.Server(programs.fatal, ANY, processes=2, lane="thread") as server:
        with pytest.raises(Broken, match=r"5 processes of the server died.*exit code 7") as caught:
            while not server.wait(0.0):
                try:
                    ask(server.address, b"die")
                except OSError:
                    continue
        assert caught.value is not None
        assert server.pids() == []


def test_what_cant_be_served_is_told_at_the_start() -> None:
    """A handler that can't travel, and one whose process fails while loading it, raise from start; nothing is left."""
    lock = threading.Lock()

    def holding(message: bytes) -> bytes:
        with lock:
            return message

    with pytest.raises(NotPicklable, match="processes=2"):
        duodao.Server(holding, ANY, processes=2).start()

    with pytest.raises(ZeroDivisionError):
        duodao.Server(Unloadable(), ANY, processes=2).start()


class Unloadable:
    """Can be pickled, and not unpickled."""

    def __call__(self, message: bytes) -> bytes:
        return message

    def __reduce__(self) -> tuple[object, ...]:
        return divmod, (1, 0)


def test_output_arrives_by_whole_lines(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """What processes print and log comes out here, no line torn by another."""
    with (
        caplog.at_level(logging.WARNING),
        duodao.Server(programs.talkative, ANY, processes=2, lane="thread") as server,
    ):
        pids = {str(one) for one in server.pids()}
        for number in range(30):
            ask(server.address, b"%d" % number)
    out, err = capsys.readouterr()
    lines = sorted(out.splitlines(), key=lambda line: int(line.split()[1]))
    assert [line.split()[:2] for line in lines] == [["out", str(number)] for number in range(30)]
    assert {line.split()[2] for line in lines} == pids
    assert sorted(err.splitlines()) == sorted(f"err {number}" for number in range(30))
    logged = [record.getMessage() for record in caplog.records if record.name == "talkative"]
    assert sorted(logged) == sorted(f"logged {number}" for number in range(30))


def test_a_broadcast_reaches_the_clients_of_all_processes() -> None:
    """24 clients of three processes: each message arrives once at each, those of one sender in order."""
    clients, each = 24, 20
    with duodao.Server(programs.chat, ANY, processes=3) as server:
        socks = [socket.create_connection(port_of(server.address), 20) for _ in range(clients)]
        files = [sock.makefile("rb") for sock in socks]
        for at, sock in enumerate(socks):  # all are in the room when the last of these has come back to everyone
            sock.sendall(b"here %d\n" % at)
            while files[at].readline() != b"here %d\n" % at:
                pass
        heard: list[list[bytes]] = [[] for _ in socks]

        def hear(at: int) -> None:
            while len(heard[at]) < clients * each:
                line = files[at].readline()
                assert line
                if line.startswith(b"say"):
                    heard[at].append(line)

        ears = [threading.Thread(target=hear, args=(at,)) for at in range(clients)]
        for ear in ears:
            ear.start()
        for number in range(each):
            for at, sock in enumerate(socks):
                sock.sendall(b"say %d %d\n" % (at, number))
        for ear in ears:
            ear.join(20)
            assert not ear.is_alive()
        for file, sock in zip(files, socks, strict=True):
            file.close()
            sock.close()
        assert all(process.accepted > 0 for process in server.figures())
    for lines in heard:
        for at in range(clients):
            numbers = [int(line.split()[2]) for line in lines if int(line.split()[1]) == at]
            assert numbers == list(range(each))
