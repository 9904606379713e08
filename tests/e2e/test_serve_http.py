"""HTTP: applications and handlers by granian, in this process and in several; limits, drains and deaths under load."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
import serve_programs as programs
import trustme
from serve_programs import Browser, Load, port_of, until
from tests.conftest import need

import duodao
from duodao.errors import Broken, UsageError

ANY = "http://127.0.0.1:0"


@pytest.fixture(scope="module")
def kept_by_tokio() -> None:
    """The one pair of sockets that granian's runtime keeps for as long as the program lives."""
    with duodao.Server(programs.hello, ANY):
        pass


@pytest.fixture(autouse=True, scope="module")
def nothing_held(kept_by_tokio: None, nothing_held: None) -> None:
    """No test is blamed for that pair; for every other descriptor it is."""


def answers(address: str, sent: bytes, patience: float = 10.0) -> bytes:
    """All that a server says to these bytes, until it closes."""
    with socket.create_connection(port_of(address), patience) as sock:
        sock.sendall(sent)
        said = b""
        while more := sock.recv(65536):
            said += more
        return said


def everything(request: duodao.Request) -> dict[str, Any]:
    """What a handler sees."""
    body = request.json() if request.body else None
    seen = {name: getattr(request, name) for name in ("method", "path", "query", "query_string", "peer")}
    return {**seen, "json": body, "headers": request.headers}


def test_a_handler_sees_the_request() -> None:
    """Method, decoded path, query, headers by lower-case name, body and peer arrive."""
    with duodao.Server(everything, ANY) as server:
        link = http.client.HTTPConnection(*port_of(server.address))
        link.request("PUT", "/a%20b?x=1&y=%C3%A9&x=2", body=json.dumps([1]), headers={"X-Own": "é".encode("latin-1")})
        assert link.sock is not None
        port = link.sock.getsockname()[1]
        response = link.getresponse()
        seen = json.loads(response.read())
        link.close()
    assert response.headers["content-type"] == "application/json"
    assert (seen["method"], seen["path"], seen["json"]) == ("PUT", "/a b", [1])
    assert seen["query"] == {"x": "2", "y": "é"}
    assert seen["query_string"] == "x=1&y=%C3%A9&x=2"
    assert seen["peer"] == f"127.0.0.1:{port}"
    assert seen["headers"]["host"] == server.address.removeprefix("http://")
    assert [figures.messages for figures in server.figures()] == [1]


ANSWERS: dict[str, tuple[Any, int, str, bytes]] = {
    "/str": ("é", 200, "text/plain; charset=utf-8", "é".encode()),
    "/bytes": (b"\0\1", 200, "application/octet-stream", b"\0\1"),
    "/dict": ({"a": 1}, 200, "application/json", b'{"a": 1}'),
    "/list": ([1, "x"], 200, "application/json", b'[1, "x"]'),
    "/none": (None, 204, "", b""),
    "/pair": ((404, "no"), 404, "text/plain; charset=utf-8", b"no"),
    "/three": ((201, {"id": 1}, {"Location": "/1"}), 201, "application/json", b'{"id": 1}'),
    "/own": (duodao.Response("<b>", 200, [("content-type", "text/html")]), 200, "text/html", b"<b>"),
    "/wrong": (3.5, 500, "text/plain; charset=utf-8", b"internal server error\n"),
    "/split": ((200, "", {"x": "a\r\nset-cookie: b"}), 500, "text/plain; charset=utf-8", b"internal server error\n"),
    "/name": ((200, "", {"no word": "x"}), 500, "text/plain; charset=utf-8", b"internal server error\n"),
    "/half": ("\ud800", 500, "text/plain; charset=utf-8", b"internal server error\n"),
}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_handler_answers(asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each kind of answer becomes a response; what is none is a 500, and the log says who gave it and what is valid."""

    def plain(request: duodao.Request) -> Any:
        return ANSWERS[request.path][0]

    async def waiting(request: duodao.Request) -> Any:
        return ANSWERS[request.path][0]

    with duodao.Server(waiting if asynchronous else plain, ANY) as server:
        for path, (_, status, kind, body) in ANSWERS.items():
            response = requests.get(server.address + path, timeout=10)
            assert (response.status_code, response.content) == (status, body)
            assert response.headers.get("content-type", "") == kind
        assert requests.get(server.address + "/three", timeout=10).headers["location"] == "/1"
        assert server.figures()[0].failed == 4
        head = requests.head(server.address + "/str", timeout=10)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "2")
    assert any("answered with float; it can answer with str, bytes" in str(r.exc_info) for r in caplog.records)


@pytest.mark.parametrize("lane", ["inline", "thread", "coroutine"])
@pytest.mark.parametrize("how", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_handler_that_would_end_the_program(how: type[BaseException], lane: str) -> None:
    """What ends a program or a task elsewhere is a failed request here: 500, and the server serves on."""

    def plain(request: duodao.Request) -> str:
        if request.path == "/exit":
            raise how
        return "here"

    async def waiting(request: duodao.Request) -> str:
        return plain(request)

    with duodao.Server(waiting if lane == "coroutine" else plain, ANY, lane=lane) as server:
        assert requests.get(server.address + "/exit", timeout=10).status_code == 500
        assert requests.get(server.address, timeout=10).text == "here"
        assert server.figures()[0].failed == 1


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("app", [programs.application, programs.gateway])
def test_applications(app: Any, processes: int) -> None:
    """An ASGI application, with its lifespan, and a WSGI application are served as they are."""
    with duodao.Server(app, ANY, processes=processes) as server:
        response = requests.post(server.address + "/p", data=b"z" * 300_000, timeout=10)
        assert (response.status_code, response.content) == (200, b"z" * 300_000)
        if app is programs.application:
            assert response.headers["x-began"] == "yes"
        assert sum(figures.messages for figures in server.figures()) == 1


def test_a_lifespan_that_fails_is_told() -> None:
    """An application that refuses to start ends start() with its reason."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(Broken, match="lifespan startup failed"):
        duodao.Server(app, ANY).start()


def test_what_is_none_of_them_is_refused() -> None:
    """Wrong signatures, lanes and options are told before anything listens."""

    def four(_a: int, _b: int, _c: int, _d: int) -> None: ...

    for work, options, said in (
        (four, {}, r"handler \(request\)"),
        (3, {}, "not 3"),
        (programs.hello, {"lane": "process"}, "lane='process': over HTTP"),
        (programs.hello, {"lane": "coroutine"}, "plain function"),
        (programs.hello, {"proxy_from": ["10.0.0.0/8"]}, "proxy_from"),
    ):
        with pytest.raises(UsageError, match=said):
            duodao.Server(work, ANY, **options)


def test_a_blocking_handler_blocks_nobody() -> None:
    """While 20 calls wait for each other in threads, all are under way at once; a tiny handler runs on the loop."""
    together = threading.Barrier(20, timeout=10)

    def handler(request: duodao.Request) -> str:
        if request.path == "/together":
            together.wait()
        return "ok"

    with duodao.Server(handler, ANY) as server:
        for _ in range(100):
            assert requests.get(server.address, timeout=10).text == "ok"
        found: list[str] = []
        # Measured as tiny, it is called on the loop, where the first of these holds up all others: none may be lost.
        assert server.figures()[0].lane in ("inline", "thread")
    with duodao.Server(handler, ANY, lane="thread") as server:
        ask = lambda: found.append(requests.get(server.address + "/together", timeout=10).text)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["ok"] * 20


def test_a_handler_that_turns_out_slow_leaves_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Tiny calls run on the loop; when they begin to hold it, they go to threads, and the log says so."""
    held = threading.Event()
    slow = False

    def handler(request: duodao.Request) -> str:  # noqa: ARG001
        if slow:
            held.wait(0.4)
        return threading.current_thread().name

    with duodao.Server(handler, ANY) as server:
        with until() as waiting, requests.Session() as session:
            while session.get(server.address, timeout=10).text != "duodao-coroutine":
                waiting()
            slow = True
            session.get(server.address, timeout=10)
            slow = False
            assert session.get(server.address, timeout=10).text != "duodao-coroutine"
    assert "held the event loop" in caplog.text


@pytest.mark.parametrize("work", [programs.hello, programs.gateway])
def test_who_sends_no_header_in_time_is_disconnected(work: Any) -> None:
    """No byte, half a header, a drip of it, and an idle connection: each is closed after first_byte seconds."""
    with duodao.Server(work, ANY, first_byte=0.5) as server:
        assert answers(server.address, b"") == b""
        assert answers(server.address, b"GET / HTTP/1.1\r\nHos") == b""
        assert b"200 OK" in answers(server.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with socket.create_connection(port_of(server.address), 10) as sock:
            pause = threading.Event()
            with pytest.raises(OSError, match=r"."), until() as waiting:
                while waiting():
                    sock.sendall(b"x")
                    pause.wait(0.05)


def test_a_body_has_limits() -> None:
    """Over max_body, told or chunked, it is refused with 413; one that doesn't come within idle, with 408."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    with duodao.Server(programs.hello, ANY, max_body=1000, idle=0.4) as server:
        assert b" 200 OK" in answers(server.address, head + b"connection: close\r\ncontent-length: 3\r\n\r\nabc")
        assert b" 413 " in answers(server.address, head + b"content-length: 1001\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (600, b"x" * 600)
        assert b" 413 " in answers(server.address, head + b"transfer-encoding: chunked\r\n\r\n" + 2 * chunk)
        assert b" 408 " in answers(server.address, head + b"content-length: 3\r\n\r\na")
        figures = server.figures()[0]
        assert (figures.overrun, figures.expired, figures.failed) == (2, 1, 0)
    for app in (programs.application, programs.gateway):
        with duodao.Server(app, ANY, max_body=1000) as server:
            assert b" 413 " in answers(server.address, head + b"content-length: 1001\r\n\r\n")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("work", [programs.web_brief, programs.application, programs.gateway])
def test_a_drain_under_load_fails_no_request(work: Any, processes: int) -> None:
    """Sixteen clients that keep their connections, as fast as they can: every request that was sent is answered."""
    server = duodao.Server(work, ANY, processes=processes).start()
    with Load(lambda: Browser(server.address), 16) as load:
        load.more(200)
        server.drain()
    assert load.failed == []
    with pytest.raises(requests.ConnectionError):
        requests.get(server.address, timeout=10)


def test_a_drain_serves_who_waits_in_the_queue() -> None:
    """Connections that the server has not accepted yet when it is drained, their requests sent, are all answered."""
    began, leave = threading.Event(), threading.Event()

    def handler(request: duodao.Request) -> str:
        if request.path == "/first":
            began.set()
            assert leave.wait(10)
        return request.path

    server = duodao.Server(handler, ANY, max_connections=1).start()
    clients = [socket.create_connection(port_of(server.address), 10) for _ in range(6)]
    clients[0].sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
    assert began.wait(10)
    for client in clients[1:]:
        client.sendall(b"GET /queued HTTP/1.1\r\nHost: x\r\n\r\n")
    drain = threading.Thread(target=server.drain)
    drain.start()
    drain.join(0.6)
    assert drain.is_alive()
    leave.set()
    for client in clients:
        client.settimeout(10)
        with client:
            assert b"200 OK" in client.recv(1000)
    drain.join(10)
    assert not drain.is_alive()


def test_a_killed_process_is_replaced_under_load_of_wrk() -> None:
    """kill -9 of one process under load: the other serves on, the dead one is replaced, no response is an error."""
    wrk = shutil.which("wrk")
    need(wrk, "wrk")
    assert wrk is not None
    with duodao.Server(programs.web_pid, ANY, processes=2) as server:
        victim, other = server.pids()
        load = subprocess.Popen([wrk, "-t1", "-c32", "-d2", server.address], stdout=subprocess.PIPE, text=True)
        with until() as waiting:
            while sum(figures.messages for figures in server.figures()) < 500:
                waiting()
        os.kill(victim, signal.SIGKILL)
        with until() as waiting:
            while victim in server.pids() or len(server.pids()) < 2:
                waiting()
        told, _ = load.communicate(timeout=20)
        now = server.pids()
        assert other in now
        answered = {int(requests.get(server.address, timeout=10).text) for _ in range(40)}
        assert answered == set(now)
    assert "Non-2xx" not in told
    assert int(re.findall(r"(\d+) requests in", told)[0]) > 500


def test_slowhttptest_finds_the_service_available(tmp_path: Path) -> None:
    """slowloris with 200 connections: all are closed by the server, and others are served meanwhile."""
    tool = shutil.which("slowhttptest")
    need(tool, "slowhttptest")
    assert tool is not None
    with duodao.Server(programs.hello, ANY, first_byte=3.0) as server:
        attack = subprocess.Popen(
            [tool, "-c", "200", "-H", "-i", "10", "-r", "400", "-l", "20", "-p", "2", "-u", server.address],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        with until() as waiting:
            while server.figures()[0].connections < 200:
                waiting()
        assert requests.get(server.address, timeout=2).text == "hello"
        told, _ = attack.communicate(timeout=30)
        with until() as waiting:
            while server.figures()[0].connections:
                waiting()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    assert re.search(r"Exit status:\s+No open connections left", plain), plain[-600:]
    assert set(re.findall(r"service available:\s+(\w+)", plain)) == {"YES"}


def test_tls(tmp_path: Path) -> None:
    """https:// is served with the given certificate, TLS 1.2 and 1.3 only, in one process and in two."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    for processes in (1, 2):
        with duodao.Server(programs.hello, "https://127.0.0.1:0", tls=files, processes=processes) as server:
            assert requests.get(server.address, verify=str(tmp_path / "ca.pem"), timeout=10).text == "hello"
            for version, served in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)):
                context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
                context.minimum_version = context.maximum_version = version
                with socket.create_connection(port_of(server.address), 10) as sock:
                    with context.wrap_socket(sock, server_hostname="127.0.0.1") as secure:
                        assert served == bool(secure.version())


def test_a_handshake_has_a_time_limit(tmp_path: Path) -> None:
    """A peer of https that says nothing, or only the start of a handshake, is disconnected, though granian would wait.

    One whose handshake is done is not taken for it, however long its request takes.
    """
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    leave = threading.Event()

    def handler(request: duodao.Request) -> str:  # noqa: ARG001
        leave.wait(20)
        return "late"

    with duodao.Server(handler, "https://127.0.0.1:0", tls=files, first_byte=0.3) as server:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(port_of(server.address), 10) as plain:
            with context.wrap_socket(plain) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert answers(server.address, b"") == b""
                assert answers(server.address, b"\x16\x03\x01\x02\x00\x01") == b""
                assert server.figures()[0].expired == 2
                leave.set()
                said = b"".join(iter(lambda: sock.recv(4096), b""))
                assert said.endswith(b"late")


def test_a_full_table_of_descriptors_is_survived(tmp_path: Path) -> None:
    """With 128 descriptors and 150 clients, some wait; without spinning, and they are served when others have gone."""
    (tmp_path / "few.py").write_text("def hello(request):\n    return 'hello'\n")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); "
        "sys.argv = ['duodao', 'serve', 'few.py:hello', 'http://127.0.0.1:0']; from duodao.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", limited], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        clients = [socket.create_connection(port_of(address), 10) for _ in range(150)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        served = []
        with until() as waiting:
            while len(served) < 20:
                waiting()
                served = select.select(clients, [], [], 0)[0]
        assert len(served) < 100
        used = process_seconds(process.pid)
        threading.Event().wait(0.5)
        assert process_seconds(process.pid) - used < 0.25
        for client in clients[:100]:
            client.close()
        for client in clients[100:]:
            client.settimeout(10)
            assert b"200 OK" in client.recv(1000)
            client.close()
        process.terminate()
        assert process.wait(20) == 0


def process_seconds(pid: int) -> float:
    """CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_client_that_is_slow_to_read_harms_nobody() -> None:
    """A response of 20 MB that nobody reads holds up neither others nor, after its grace, the drain."""
    body = b"x" * 20_000_000

    def handler(request: duodao.Request) -> bytes:
        return body if request.path == "/big" else b"small"

    with duodao.Server(handler, ANY, grace=0.5) as server, socket.create_connection(port_of(server.address)) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(10)
        assert requests.get(server.address, timeout=10).content == b"small"
        server.drain()
        with pytest.raises(requests.ConnectionError):
            requests.get(server.address, timeout=10)


def test_errors_are_logged_where_the_caller_reads(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises in another process: 500 for the client, the traceback in this one's log."""
    with caplog.at_level(logging.ERROR), duodao.Server(broken, ANY, processes=2) as server:
        assert requests.get(server.address + "/where", timeout=10).status_code == 500
    assert "broken failed for GET /where of 127.0.0.1:" in caplog.text


def broken(request: duodao.Request) -> str:  # noqa: ARG001
    """Raises."""
    raise RuntimeError("what broke")


def test_granian_is_as_it_was() -> None:
    """What is used of granian beside its documented names is there, and takes what it is given: see http.parts."""
    import granian

    from duodao.servers.http import parts

    assert granian.__version__.startswith("2.8."), "look through servers/http.py before allowing another release"
    assert all(vars(parts()).values())
    holder = parts().SocketHolder(0, False, 4096)
    assert holder.get_fd() == 0
    assert not holder.is_uds()
