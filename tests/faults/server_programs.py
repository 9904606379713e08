"""Servers in a process of their own, for the fault tests, and what these ask them.

`python server_programs.py NAME OPTIONS [DESCRIPTORS]` serves one of HANDLERS and says where. A line on stdin is a
question: "figures" -> the figures as JSON. The end of stdin ends it at once, SIGTERM by draining.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import duodao
from duodao.servers.figures import Figures

PATIENCE = 30
"""Seconds for what should take a moment."""
SET_FLAGS = 0x8914
"""SIOCSIFFLAGS: of a network interface."""
LINGER_NOT = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


def echo(message: bytes) -> bytes:
    return message


def texts(message: str) -> str:
    return message.upper()


def sometimes(message: bytes) -> bytes:
    """Blocks for 50 ms when told so."""
    if message == b"slow":
        time.sleep(0.05)
    return message


async def slowly(message: bytes) -> bytes:
    """Waits for as many milliseconds as the message says."""
    import asyncio

    await asyncio.sleep(int(message) / 1000)
    return message


def many(message: bytes) -> bytes:
    """As many bytes as the message says."""
    return b"x" * int(message)


def who(message: bytes) -> bytes:
    return b"%d %s" % (os.getpid(), message)


async def chat(session):
    async for message in session:
        session.broadcast(message, including=True)


def hello(_request):
    return "hello"


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


HANDLERS = {each.__name__: each for each in (echo, texts, sometimes, slowly, many, who, chat, hello, app)}


def loopback(*, up):
    """Switch this network namespace's loopback on or off: what is sent while it is off is gone."""
    with socket.socket() as any_one:
        for_it = struct.pack("16sH14x", b"lo", 1 if up else 0)
        fcntl.ioctl(any_one, SET_FLAGS, for_it)


def vanish():
    """In a network of its own: clients that are cut off without a word, idle ones and ones that are owed a reply."""
    loopback(up=True)
    with duodao.Server(slowly, "tcp://127.0.0.1:0", first_byte=1.0, idle=1.0) as server:
        port = int(server.address.rpartition(":")[2])
        clients = [connect(port) for _ in range(50)]
        for client in clients:
            asked(client, b"0")
        for client in clients[::2]:
            client.sendall(b"200\n")
        while server.figures()[0].messages < 75:
            pause(0.01)
        loopback(up=False)
        for _ in range(PATIENCE * 20):
            if server.figures()[0].connections == 0:
                break
            pause(0.05)
        loopback(up=True)
        with connect(port) as later:
            said = asked(later, b"7").decode()
            print(json.dumps([asdict(server.figures()[0]), said]))
        for client in clients:
            client.close()


def main():
    if sys.argv[1] == "vanish":
        vanish()
        return
    name, options = sys.argv[1], json.loads(sys.argv[2])
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
    server = duodao.Server(HANDLERS[name], options.pop("address"), **options).start()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.drain).start())
    print(server.address, flush=True)
    threading.Thread(target=answer, args=(server,)).start()
    while not server.wait(PATIENCE):
        pass
    print("over", flush=True)


def answer(server):
    for line in iter(sys.stdin.readline, ""):
        if line == "figures\n":
            print(json.dumps([server.pids(), [asdict(each) for each in server.figures()]]), flush=True)
    server.close()


class Served:
    """A server of one of HANDLERS. descriptors: the most it may have.

    What it says on stderr fails the test when it ends, but for lines with one of `complaints`.
    """

    def __init__(
        self, handler="echo", *, address="tcp://127.0.0.1:0", descriptors=None, prefix=(), complaints=(), **options
    ):
        words = [*prefix, sys.executable, __file__, handler, json.dumps({"address": address, **options})]
        if descriptors is not None:
            words.append(str(descriptors))
        self.complaints = complaints
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            self.process.communicate()
            raise RuntimeError(f"no server: {self.complained()}")
        self.host, _, port = self.address.rpartition("/")[2].rpartition(":")
        self.port = int(port)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.process.communicate("", timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        finally:
            said = self.complained()
        fine = (*self.complaints, "held the event loop")  # a busy machine's doing
        left = [line for line in said.splitlines() if not any(each in line for each in fine)]
        if kind is None:
            assert not left, "\n".join(left)
            assert self.process.returncode == 0

    def complained(self):
        with self.said:
            self.said.seek(0)
            return self.said.read()

    def ask(self):
        """(pids, figures of each)."""
        self.process.stdin.write("figures\n")
        self.process.stdin.flush()
        pids, figures = json.loads(self.process.stdout.readline())
        return pids, [Figures(**each) for each in figures]

    def pids(self):
        return self.ask()[0]

    def figures(self):
        """Of all processes together."""
        return sum(self.ask()[1], Figures())

    def until(self, true, what):
        """Wait until the figures are so: asked again and again, for nothing tells when they change."""
        for _ in range(PATIENCE * 50):
            figures = self.figures()
            if true(figures):
                return figures
            pause(0.02)
        raise AssertionError(f"{what}: {figures}")

    def connect(self, **options):
        return connect(self.port, **options)

    def resident(self):
        """KB of memory."""
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[0])

    def cpu(self):
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def terminate(self):
        """SIGTERM; returns when it has drained."""
        self.process.terminate()
        assert self.process.stdout.readline() == "over\n"


def pause(seconds):
    """Let others run: a wait for nothing in particular, within loops that look whether something is so."""
    select.select([], [], [], seconds)


def connect(port, *, receive=None, host="127.0.0.1"):
    """A client. receive: its buffer in the kernel, bytes."""
    sock = socket.socket()
    try:
        if receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def read(sock, size):
    """So many bytes, or what there is until the end."""
    got = bytearray()
    while len(got) < size and (data := sock.recv(min(1 << 20, size - len(got)))):
        got += data
    return bytes(got)


class Cut(ConnectionError):
    """A connection ended before the reply did. got: what there was of it."""

    def __init__(self, got):
        super().__init__(f"the connection ended after {got!r}")
        self.got = got


def asked(sock, line, sent=None):
    """The reply to a line, both without their line feeds. sent: is called when the kernel has the line."""
    got = b""
    try:
        sock.sendall(line + b"\n")
        if sent is not None:
            sent()
        while not got.endswith(b"\n"):
            data = sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("closed")
            got += data
    except ConnectionError as error:
        raise Cut(got) from error
    return got[:-1]


def fetched(sock, path):
    """The body of the answer to GET; the socket is closed when the answer says so."""
    try:
        sock.sendall(b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % path)
        response = http.client.HTTPResponse(sock)
        response.begin()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Cut(b"") from error
    assert response.status == 200
    if response.will_close:
        sock.close()
    return body


def ended(sock):
    """Whether the server has ended this connection; what it still said is thrown away."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True


if __name__ == "__main__":
    main()
