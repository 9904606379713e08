"""The door of a TCP server: TLS, and PROXY headers as HAProxy sends them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from serve_programs import port_of, until
from tests.conftest import need

import duodao
from duodao.servers import worker

ANY = "tcp://127.0.0.1:0"
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 4242 80\r\n"
HERE = ["127.0.0.0/8"]


async def who(session: Any) -> None:
    """Says who is asking."""
    async for _ in session:
        await session.send(session.peer)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost and its key; ca.pem is beside them."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def trusting(files: tuple[str, str]) -> ssl.SSLContext:
    """A client's context."""
    return ssl.create_default_context(cafile=str(Path(files[0]).parent / "ca.pem"))


def said(sock: socket.socket) -> bytes:
    """All until the server closes."""
    sock.settimeout(10)
    with sock, contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: sock.recv(4096), b""))
    return b""


@pytest.mark.parametrize("processes", [1, 2])
def test_tls(files: tuple[str, str], processes: int) -> None:
    """Messages over TLS, half a megabyte each way; the certificate is the given one."""

    def echo(message: bytes) -> bytes:
        return message

    with duodao.Server(echo, ANY, tls=files, processes=processes, max_frame=1 << 20) as server:
        for size in (1, 500_000):
            with socket.create_connection(port_of(server.address), 10) as plain:
                with trusting(files).wrap_socket(plain, server_hostname="localhost") as sock:
                    sock.sendall(b"x" * size + b"\n")
                    assert sock.makefile("rb").readline() == b"x" * size + b"\n"


def test_a_handshake_has_a_time_limit(files: tuple[str, str]) -> None:
    """A peer that never begins a handshake, and one that breaks off in it, are disconnected after first_byte."""
    with duodao.Server(who, ANY, tls=files, first_byte=0.4) as server:
        assert said(socket.create_connection(port_of(server.address))) == b""
        half = socket.create_connection(port_of(server.address))
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert said(half) == b""
        assert server.figures()[0].connections == 0


def test_a_context_of_ones_own(files: tuple[str, str]) -> None:
    """An SSLContext is used as it is: here one that demands a certificate of clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(Path(files[0]).parent / "ca.pem"))
    context.load_cert_chain(*files)
    context.verify_mode = ssl.CERT_REQUIRED
    with duodao.Server(who, ANY, tls=context) as server:
        for known in (True, False):
            client = trusting(files)
            if known:
                client.load_cert_chain(*files)
            with socket.create_connection(port_of(server.address), 10) as plain:
                with contextlib.suppress(OSError), client.wrap_socket(plain, server_hostname="localhost") as sock:
                    sock.sendall(b"?\n")
                    answer = sock.recv(100)
                    assert bool(answer) == known


@pytest.mark.parametrize("processes", [1, 2])
def test_a_listed_peer_says_who_it_is(processes: int) -> None:
    """The header names the peer, cut into single bytes or in one segment with the message."""
    with duodao.Server(who, ANY, proxy_from=HERE, processes=processes) as server:
        for pieces in ([HEADER + b"?\n"], [bytes([byte]) for byte in HEADER + b"?\n"]):
            with socket.create_connection(port_of(server.address), 10) as sock:
                for piece in pieces:
                    sock.sendall(piece)
                assert sock.makefile("rb").readline() == b"192.0.2.7:4242\n"


def test_a_listed_peer_must_send_it(caplog: pytest.LogCaptureFixture) -> None:
    """Without a header, with a broken one, or with half of one for too long, it is disconnected, counted and logged."""
    with duodao.Server(who, ANY, proxy_from=HERE, first_byte=0.4) as server:
        for first in (b"?\n", b"PROXY TCP4 nobody\r\n?\n", HEADER[:20], b""):
            sock = socket.create_connection(port_of(server.address))
            sock.sendall(first)
            assert said(sock) == b""
        figures = server.figures()[0]
        assert (figures.refused, figures.messages, figures.connections) == (4, 0, 0)
    assert "127.0.0.1 must send a PROXY header" in caplog.text
    assert "127.0.0.1 sent no PROXY header in time" in caplog.text


def test_others_are_not_believed() -> None:
    """A peer that isn't listed is itself, and a header from it is a message like any other."""
    with duodao.Server(who, ANY, proxy_from=["192.0.2.0/24"]) as server:
        with socket.create_connection(port_of(server.address), 10) as sock:
            sock.sendall(HEADER)
            own = "{}:{}".format(*sock.getsockname())
            assert sock.makefile("rb").readline().decode() == f"{own}\n"


@pytest.mark.parametrize("together", [True, False])
def test_tls_behind_a_header(files: tuple[str, str], together: bool) -> None:
    """The header comes before the handshake, in one segment with its start or by itself."""
    with duodao.Server(who, ANY, proxy_from=HERE, tls=files) as server:
        with socket.create_connection(port_of(server.address), 10) as sock:
            sock.settimeout(10)
            came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
            secure = trusting(files).wrap_bio(came, goes, server_hostname="localhost")

            def until_done(call: Any) -> Any:
                while True:
                    try:
                        return call()
                    except ssl.SSLWantReadError:
                        sock.sendall(goes.read())
                        came.write(sock.recv(65536))

            if not together:
                sock.sendall(HEADER)
            else:
                with pytest.raises(ssl.SSLWantReadError):
                    secure.do_handshake()
                sock.sendall(HEADER + goes.read())
            until_done(secure.do_handshake)
            secure.write(b"?\n")
            assert until_done(lambda: secure.read(100)) == b"192.0.2.7:4242\n"


@contextlib.contextmanager
def haproxy(folder: Path, target: str, send: str) -> Iterator[int]:
    """HAProxy in front of the server; its port."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    need(program, "haproxy")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "haproxy.cfg").write_text(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n"
        f"listen front\n  bind 127.0.0.1:{port}\n  server behind {target.removeprefix('tcp://')} {send}\n"
    )
    with subprocess.Popen([program, "-db", "-q", "-f", folder / "haproxy.cfg"]) as process:
        try:
            with until() as waiting:
                while waiting():
                    with contextlib.suppress(OSError):
                        socket.create_connection(("127.0.0.1", port)).close()
                        break
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_haproxy(tmp_path: Path, send: str) -> None:
    """Both versions, as the reference implementation sends them: the server knows the client's own address."""
    with (
        duodao.Server(who, ANY, proxy_from=HERE) as server,
        haproxy(tmp_path, server.address, send) as port,
        socket.create_connection(("127.0.0.1", port), 10) as sock,
    ):
        sock.sendall(b"?\n")
        assert sock.makefile("rb").readline().decode() == "{}:{}\n".format(*sock.getsockname())


@pytest.mark.parametrize("first_byte", [10.0, None])
def test_who_has_not_said_who_it_is_counts_and_ends_with_the_server(first_byte: float | None) -> None:
    """A listed peer without a header yet takes a place of max_connections, and is closed by the drain."""
    with contextlib.ExitStack() as stack:
        server = duodao.Server(who, ANY, proxy_from=HERE, first_byte=first_byte, max_connections=2).start()
        silent = [stack.enter_context(socket.create_connection(port_of(server.address), 10)) for _ in range(2)]
        assert said(socket.create_connection(port_of(server.address))) == b""
        assert server.figures()[0].refused == 1
        server.drain()
        assert [sock.recv(1) for sock in silent] == [b"", b""]


def test_a_header_on_its_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed peer that connected before the drain, and sends its header and message in it, is answered."""
    monkeypatch.setattr(worker, "FRESH", 1.0)
    server = duodao.Server(who, ANY, proxy_from=HERE).start()
    with socket.create_connection(port_of(server.address), 10) as sock:
        with socket.create_connection(port_of(server.address), 10) as other:
            other.sendall(HEADER + b"?\n")
            assert other.recv(100) == b"192.0.2.7:4242\n"  # both are accepted
        ending = threading.Thread(target=server.drain)
        ending.start()
        with until() as waiting, pytest.raises(OSError):
            while waiting():
                socket.create_connection(port_of(server.address), 0.05).close()
        sock.sendall(HEADER + b"?\n")
        assert said(sock) == b"192.0.2.7:4242\n"
        ending.join()
