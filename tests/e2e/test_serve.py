"""TCP servers over real sockets: where handlers run, what limits do, how a server ends, and what sessions see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import duodao
from duodao.errors import Broken, Closed
from duodao.servers.figures import Figures

ANY = "tcp://127.0.0.1:0"
PATIENCE = 20.0


class Client:
    """A connection whose every wait has an end."""

    def __init__(self, server: duodao.Server) -> None:
        port = int(server.address.rpartition(":")[2])
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        """All of it."""
        self.sock.sendall(data)

    def line(self) -> bytes:
        """The next one, b"" at the end."""
        return self.file.readline()

    def ask(self, data: bytes) -> bytes:
        """A line for a line."""
        self.send(data + b"\n")
        return self.line().rstrip(b"\n")

    def rest(self) -> bytes:
        """All until the end."""
        return self.file.read()

    def close(self) -> None:
        """Both objects that hold the descriptor."""
        self.file.close()
        self.sock.close()


@contextlib.contextmanager
def served(work: Any, clients: int = 1, **options: Any) -> Iterator[Any]:
    """A server and its clients, all closed in the end: the clients first, so that the drain is short."""
    with duodao.Server(work, ANY, **options) as server, contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(Client(server))) for _ in range(clients)]
        yield (server, *made)


def until(server: duodao.Server, fits: Callable[[Figures], bool]) -> Figures:
    """The first figures that fit."""
    ends = time.monotonic() + PATIENCE
    while not fits(figures := server.figures()[0]):
        assert time.monotonic() < ends, figures
    return figures


def echo(message: bytes) -> bytes:
    """What came."""
    return message


def shout(message: str) -> str:
    """In capitals."""
    return message.upper()


def compute(message: bytes) -> bytes:
    """Some milliseconds of CPU."""
    total = 0
    for number in range(100_000):
        total += number * number % 7
    return b"%d %d" % (total, os.getpid())


def modest(message: bytes) -> bytes:
    """Some 20 us, which two processes would share if sending it to them cost nothing."""
    sum(range(1500))
    return message


def wait(message: bytes) -> bytes:
    """Waits as long as it is told."""
    time.sleep(float(message))
    return message


# -- messages and replies ---------------------------------------------------------------------------------------------


def test_length_framing_carries_any_bytes() -> None:
    """With length framing a message may hold line feeds and zeros; an empty one is a message."""
    with served(echo, framing="length") as (_, client):
        for message in (b"a\nb\0c", b"", bytes(range(256)) * 100):
            client.send(struct.pack(">I", len(message)) + message)
            assert client.file.read(4 + len(message)) == struct.pack(">I", len(message)) + message


def test_raw_framing_passes_bytes_on() -> None:
    """With raw framing what comes in goes to the handler as it is, and its reply out as it is."""
    with served(bytes.upper, framing="raw") as (_, client):
        client.send(b"abc\r\n" * 50_000)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"ABC\r\n" * 50_000


def test_text_by_annotation() -> None:
    """A handler of str gets and gives text; one carriage return before the line feed is not part of a line."""
    with served(shout) as (_, client):
        assert client.ask("straße".encode()) == b"STRASSE"
        assert client.ask(b"telnet\r") == b"TELNET"
        assert client.ask(b"") == b""


def test_a_half_closed_connection_is_answered() -> None:
    """A client that sends and closes its side gets all replies, then the end; a line without its end is no message."""
    for lane in ("inline", "thread"):
        with served(echo, lane=lane) as (server, client):
            client.send(b"one\ntwo\nthre")
            client.sock.shutdown(socket.SHUT_WR)
            assert client.rest() == b"one\ntwo\n"
            assert until(server, lambda f: not f.connections).messages == 2


def test_none_is_no_reply() -> None:
    """Messages whose handler returns None are counted and not answered."""
    with served(lambda message: message if message != b"quiet" else None) as (server, client):
        client.send(b"quiet\nquiet\nloud\n")
        assert client.line() == b"loud\n"
        assert server.figures()[0].messages == 3


@pytest.mark.parametrize("lane", ["inline", "thread", "auto"])
def test_a_handler_that_raises(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """Replies before it are sent, the connection ends, others are served; log and figures know of it."""

    def picky(message: bytes) -> bytes:
        if message == b"bad":
            raise LookupError("not this one")
        return message

    with served(picky, 2, lane=lane) as (server, one, two):
        one.send(b"a\nb\nbad\nc\n")
        assert one.rest() == b"a\nb\n"
        assert two.ask(b"d") == b"d"
        assert server.figures()[0].failed == 1
    [record] = [r for r in caplog.records if r.name == "duodao.servers"]
    assert "picky failed for 127.0.0.1:" in record.getMessage()
    assert "b'bad'" in record.getMessage()
    assert "not this one" in (caplog.text)


@pytest.mark.parametrize("lane", ["inline", "thread"])
def test_a_handler_that_exits(lane: str) -> None:
    """sys.exit() in a handler, alone or among others, ends its connection and not the server."""
    with served(lambda message: sys.exit(3), 3, lane=lane) as (server, one, two, three):
        for client, data in ((one, b"x\n"), (two, b"x\ny\n"), (three, b"x\n")):
            client.send(data)
            assert client.rest() == b""
        assert server.figures()[0].failed == 3


@pytest.mark.parametrize("lane", ["inline", "thread"])
def test_a_wrong_reply_is_named(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that returns what is no reply ends the connection, and the log says what it should have been."""

    def number(message: bytes) -> Any:
        return len(message)

    with served(number, lane=lane) as (_, client):
        client.send(b"abc\n")
        assert client.rest() == b""
    assert "number returned int; bytes, or None for no reply, is needed" in caplog.text


def test_a_flood_of_errors_is_counted_and_not_all_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Of 200 failing connections each is counted; the log says some fifty and that more follow."""

    def fails(message: bytes) -> bytes:
        raise ValueError(message)

    with duodao.Server(fails, ANY, lane="inline") as server:
        for _ in range(200):
            with contextlib.closing(Client(server)) as client:
                client.send(b"x\n")
                assert client.rest() == b""
        assert server.figures()[0].failed == 200
    records = [r for r in caplog.records if r.name == "duodao.servers"]
    assert len(records) == 51
    assert "only counted" in records[-1].getMessage()


# -- where handlers run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [echo, modest])
def test_tiny_calls_run_on_the_loop(work: Any) -> None:
    """Calls of no or of some 20 us: they run inline once they are measured, and the figures say why."""
    with served(work) as (server, client):
        while (figures := server.figures()[0]).lane == "auto":
            assert client.ask(b"%d" % figures.messages) == b"%d" % figures.messages
        assert figures.lane == "inline", figures.why
        assert "per call" in figures.why


def test_calls_that_compute_run_in_processes() -> None:
    """A handler that computes is moved to worker processes by measurement, several at once."""
    with served(compute, 4) as (server, *clients):
        pids = set()
        for _ in range(12):
            for client in clients:
                client.send(b"go\n")
            pids |= {int(client.line().split()[1]) for client in clients}
        assert server.figures()[0].lane == "process"
        assert pids - {os.getpid()}


def test_calls_that_wait_run_in_threads() -> None:
    """A handler that waits is moved to threads: the loop serves others, and sixteen calls wait at the same time."""
    with served(wait, 16) as (server, *clients):
        for _ in range(4):
            assert clients[0].ask(b"0.02") == b"0.02"
        assert until(server, lambda f: f.lane == "thread").failed == 0
        began = time.monotonic()
        for client in clients:
            client.send(b"0.3\n")
        assert [client.line() for client in clients] == [b"0.3\n"] * 16
        assert time.monotonic() - began < 16 * 0.3 / 2


def test_replies_wait_for_their_turn() -> None:
    """Threads end calls in any order; each connection gets its replies in the order of its messages."""
    with served(wait, lane="thread", workers=8) as (_, client):
        waits = [b"0.2", b"0", b"0.1", b"0.01", b"0.05", b"0"]
        client.send(b"".join(text + b"\n" for text in waits))
        assert [client.line().strip() for _ in waits] == waits


def test_a_call_that_holds_the_loop_is_named_and_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    """An inline handler that blocks is logged by name, and its calls go to another lane from then on."""

    def sometimes(message: bytes) -> bytes:
        if message == b"slow":
            time.sleep(0.05)
        return message

    with served(sometimes) as (server, client):
        while server.figures()[0].lane == "auto":
            client.ask(b"quick")
        assert server.figures()[0].lane == "inline"
        for _ in range(20):
            assert client.ask(b"slow") == b"slow"
        assert server.figures()[0].lane == "thread"
    assert "sometimes held the event loop for" in caplog.text


def test_pipelined_calls_are_bounded() -> None:
    """Of 5,000 messages sent at once no more than 64 calls of one connection are under way; all are answered."""
    lock, running, most = threading.Lock(), [0], [0]
    gate = threading.Event()

    async def count(message: bytes) -> bytes:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        await asyncio.to_thread(gate.wait, PATIENCE)
        with lock:
            running[0] -= 1
        return message

    with served(count) as (server, client):
        client.send(b"".join(b"%d\n" % n for n in range(5000)))
        until(server, lambda f: f.messages >= 64)
        gate.set()
        assert [client.line() for _ in range(5000)] == [b"%d\n" % n for n in range(5000)]
        assert most[0] <= 64


# -- limits -----------------------------------------------------------------------------------------------------------


def test_max_connections() -> None:
    """One over the cap is closed at once and counted; when one leaves, the next is served."""
    with served(echo, 2, max_connections=2, lane="inline") as (server, one, two):
        assert (one.ask(b"1"), two.ask(b"2")) == (b"1", b"2")
        with contextlib.closing(Client(server)) as third:
            with contextlib.suppress(ConnectionError):
                assert third.rest() == b""
        assert server.figures()[0].refused == 1
        one.close()
        until(server, lambda f: f.connections == 1)
        with contextlib.closing(Client(server)) as fourth:
            assert fourth.ask(b"4") == b"4"


def test_idle_and_first_byte() -> None:
    """Who says nothing is closed after first_byte, who falls silent after idle, and who waits for a reply is not."""
    with served(wait, 3, first_byte=0.3, idle=0.4, lane="thread") as (server, mute, silent, waiting):
        waiting.send(b"1.5\n")
        assert silent.ask(b"0") == b"0"
        assert (mute.rest(), silent.rest()) == (b"", b"")
        assert waiting.line() == b"1.5\n"
        assert server.figures()[0].expired == 2


def test_a_peer_that_does_not_read() -> None:
    """It is read no further and no handler runs for it while its replies are unread; after `stall` it is dropped."""
    calls = []

    def large(message: bytes) -> bytes:
        calls.append(message)
        return bytes(1 << 20)

    with served(large, lane="inline", stall=0.5) as (server, client):
        client.send(b"x\n" * 1000)
        assert until(server, lambda f: f.accepted and not f.connections).dropped == 1
        assert len(calls) < 30  # what sockets hold, and not a thousand


# -- the end ----------------------------------------------------------------------------------------------------------


def test_drain_answers_what_has_come() -> None:
    """Calls in flight end and their replies arrive; then the connection ends, and nobody listens any more."""
    with duodao.Server(wait, ANY, lane="thread") as server:
        client = Client(server)
        client.send(b"0.3\n0.2\n")
        until(server, lambda f: f.messages == 2)
        server.drain()
        assert client.rest() == b"0.3\n0.2\n"
        client.close()
        with pytest.raises(OSError):
            Client(server)
        assert server.figures()[0].connections == 0


def test_drain_gives_up_after_grace() -> None:
    """A call that takes longer than grace is not waited for: the server ends without its reply."""
    gate = threading.Event()

    def stuck(message: bytes) -> bytes:
        gate.wait(PATIENCE)
        return message

    with duodao.Server(stuck, ANY, lane="thread", grace=0.2) as server:
        client = Client(server)
        client.send(b"x\n")
        until(server, lambda f: f.messages == 1)
        server.drain()
        with contextlib.suppress(ConnectionError):
            assert client.rest() == b""
        client.close()
        gate.set()


def test_close_is_at_once_and_twice_is_fine() -> None:
    """close() cuts connections; it and drain() may come again, from several threads; wait() says it has ended."""
    server = duodao.Server(echo, ANY)
    with pytest.raises(Closed, match="not been started"):
        server.figures()
    server.start()
    client = Client(server)
    assert client.ask(b"x") == b"x"
    assert server.wait(0.0) is False
    enders = [threading.Thread(target=end) for end in (server.drain, server.close, server.close, server.drain)]
    for thread in enders:
        thread.start()
    for thread in enders:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert server.wait(0.0) is True
    with contextlib.suppress(ConnectionError):
        assert client.rest() == b""
    client.close()
    with pytest.raises(Closed, match="starts once"):
        server.start()


def test_an_address_in_use_is_named() -> None:
    """A second server at the address fails to start and leaves nothing behind; the first serves on."""
    with served(echo) as (server, client):
        with pytest.raises(Broken, match=server.address):
            duodao.Server(echo, server.address).start()
        assert client.ask(b"x") == b"x"


PROGRAM = """
import sys, threading, time
import duodao

def slow(message: bytes) -> bytes:
    print("called", flush=True)
    time.sleep(float(message))
    return message

[figures] = duodao.serve(slow, sys.argv[1], lane="thread")
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join(5)  # one that has done its work may still be on its way out
print("over", figures.messages, threading.active_count(), flush=True)
"""


@contextlib.contextmanager
def program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A process in serve(), and a connection to it whose call is under way."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", str(script), f"tcp://127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ends = time.monotonic() + PATIENCE
            while True:
                try:
                    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < ends
                    assert process.poll() is None
            with sock:
                yield process, sock
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_drains_at_a_signal(number: int, tmp_path: Path) -> None:
    """At the first signal the call under way is answered; serve returns the figures and the program goes on."""
    with program(tmp_path) as (process, sock):
        assert process.stdout is not None
        sock.sendall(b"0.5\n")
        assert process.stdout.readline() == "called\n"
        process.send_signal(number)
        assert sock.makefile("rb").read() == b"0.5\n"
        sock.close()
        assert process.stdout.readline() == "over 1 1\n"
        assert process.wait(PATIENCE) == 0


def test_a_second_signal_ends_serve_at_once(tmp_path: Path) -> None:
    """While a long call is waited for, a second signal ends the server without it."""
    with program(tmp_path) as (process, sock):
        assert process.stdout is not None
        sock.sendall(b"15\n")
        assert process.stdout.readline() == "called\n"
        process.send_signal(signal.SIGTERM)
        port = sock.getpeername()[1]
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:  # until it drains
            with socket.socket() as probe:
                probe.settimeout(0.1)
                if probe.connect_ex(("127.0.0.1", port)):
                    break
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("over 1 ")


def test_a_signal_ends_serve_while_it_starts(tmp_path: Path) -> None:
    """A handler that never finishes loading in the server's processes: one signal, and serve returns no figures."""
    (tmp_path / "slow.py").write_text(
        "import sys, threading\n"
        "def echo(message):\n    return message\n"
        "if len(sys.argv) > 1:\n    del sys.argv[1]\n"
        "else:\n    print('loading', flush=True)\n    threading.Event().wait()\n"
    )
    program = "import duodao, slow; print(duodao.serve(slow.echo, 'tcp://127.0.0.1:0', processes=2))"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, "here"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[0].splitlines()[-1] == "[]"
        assert process.returncode == 0


# -- sessions ---------------------------------------------------------------------------------------------------------


async def chat(session: duodao.Session) -> None:
    """Everybody hears everybody."""
    async for message in session:
        session.broadcast(message, including=True)


def test_everybody_hears_everybody_in_order() -> None:
    """Thirty clients send twenty messages each: all hear all 600 once, those of each sender in its order."""
    with served(chat, 30) as (server, *clients):
        until(server, lambda f: f.connections == 30)
        for number in range(20):
            for at, client in enumerate(clients):
                client.send(b"%d %d\n" % (at, number))
        for client in clients:
            heard = [tuple(map(int, client.line().split())) for _ in range(600)]
            assert len(set(heard)) == 600
            for at in range(30):
                assert [number for sender, number in heard if sender == at] == list(range(20))


def test_rooms_and_direct_replies() -> None:
    """A broadcast to a room reaches who has joined it, without its sender unless asked; send reaches one client."""

    async def rooms(session: duodao.Session) -> None:
        async for message in session:
            word, _, rest = message.partition(b" ")
            if word == b"join":
                session.join(rest.decode())
            elif word == b"leave":
                session.leave(rest.decode())
            else:
                session.broadcast(rest, to=word.decode())
            session.data["count"] = session.data.get("count", 0) + 1
            await session.send(f"{session.data['count']} {session.peer}")

    with served(rooms, 3) as (server, one, two, three):
        until(server, lambda f: f.connections == 3)
        name = "{}:{}".format(*one.sock.getsockname()).encode()
        assert one.ask(b"join red") == b"1 " + name
        assert two.ask(b"join red").startswith(b"1 ")
        assert three.ask(b"red hello").startswith(b"1 ")
        assert (one.line(), two.line()) == (b"hello\n", b"hello\n")
        assert two.ask(b"leave red").startswith(b"2 ")
        assert one.ask(b"red anybody?") == b"2 " + name
        assert three.ask(b"all everybody").startswith(b"2 ")
        assert (one.line(), two.line()) == (b"everybody\n", b"everybody\n")


def test_a_client_that_stops_reading_is_dropped() -> None:
    """It costs the others nothing: they hear every message, and it is disconnected and counted."""
    with served(chat, 3, write_high=4096) as (server, deaf, sender, listener):
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(server, lambda f: f.connections == 3)
        text = b"x" * 10_000 + b"\n"
        for _ in range(2000):
            sender.send(text)
            assert sender.line() == text
            assert listener.line() == text
            if server.figures()[0].dropped:
                break
        figures = until(server, lambda f: f.connections == 2)
        assert figures.dropped == 1


def test_sessions_are_told_of_the_end() -> None:
    """When the server drains, `async for` ends and what the session still sends arrives; a gone client ends it too."""
    ended = []

    async def polite(session: duodao.Session) -> None:
        async for message in session:
            await session.send(message)
        try:
            await session.send(b"bye")
        except Closed:
            ended.append("gone")
        else:
            ended.append("told")

    with duodao.Server(polite, ANY) as server:
        left, stays = Client(server), Client(server)
        assert (left.ask(b"a"), stays.ask(b"b")) == (b"a", b"b")
        left.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves by a reset
        left.close()
        until(server, lambda f: f.connections == 1)
        server.drain()
        assert stays.rest() == b"bye\n"
        stays.close()
    assert ended == ["gone", "told"]


def test_a_session_reads_what_was_sent_before_the_end() -> None:
    """A client that sends 1,000 lines and closes its side is heard to its last line, and answered."""

    async def count(session: duodao.Session) -> None:
        seen = 0
        async for _ in session:
            seen += 1
        await session.send(str(seen))

    with served(count) as (_, client):
        client.send(b"line\n" * 1000)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"1000\n"


def test_a_session_that_fails_or_closes_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a session is logged with its peer and counted; close() ends a connection after what was sent."""

    heard = []

    async def picky(session: duodao.Session) -> None:
        async for message in session:
            heard.append(message)
            if message == b"raise":
                raise LookupError("not this")
            await session.send(b"closing")
            session.close()

    with served(picky, 2) as (server, one, two):
        one.send(b"raise\n")
        assert one.rest() == b""
        two.send(b"x\ny\n")
        assert two.rest() == b"closing\n"
        assert until(server, lambda f: not f.connections).failed == 1
    assert "picky failed for 127.0.0.1:" in caplog.text
    assert "not this" in caplog.text
    assert heard == [b"raise", b"x"]


@pytest.mark.parametrize("how", [SystemExit, KeyboardInterrupt])
def test_a_session_that_exits_ends_alone(how: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """sys.exit() in a session, or in a task that it has started, ends neither the server nor another session."""

    async def leave() -> None:
        raise how(3)

    async def exits(session: duodao.Session) -> None:
        async for message in session:
            if message == b"exit":
                raise how(3)
            if message == b"task":
                session.data["task"] = asyncio.create_task(leave())
            await session.send(message)

    with served(exits, 2) as (server, one, two):
        one.send(b"exit\n")
        assert one.rest() == b""
        assert two.ask(b"task") == b"task"
        assert two.ask(b"on") == b"on"
        assert server.figures()[0].failed == 1
    assert f"the call ended with {how.__name__}(3)" in caplog.text
    assert "a task tried to end the program" in caplog.text
