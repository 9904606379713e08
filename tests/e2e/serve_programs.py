"""What servers under test serve, importable by their processes; and clients that count what goes wrong."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PATIENCE = 20.0


def pid(message: bytes) -> bytes:  # noqa: ARG001
    """Who serves?"""
    return str(os.getpid()).encode()


def brief(message: bytes) -> bytes:
    """A call of 5 ms, so that some are under way at any time."""
    time.sleep(0.005)
    return message


def fatal(message: bytes) -> bytes:
    """Ends its process."""
    if message == b"die":
        os._exit(7)
    return message


def talkative(message: bytes) -> bytes:
    """Prints and logs."""
    print("out", message.decode(), os.getpid())
    print("err", message.decode(), file=sys.stderr)
    logging.getLogger("talkative").warning("logged %s", message.decode())
    return message


async def chat(session: Any) -> None:
    """What anybody says, everybody hears."""
    async for message in session:
        session.broadcast(message, including=True)


def hello(request: Any) -> str:  # noqa: ARG001
    """The quickest answer."""
    return "hello"


def web_pid(request: Any) -> str:  # noqa: ARG001
    """Who serves?"""
    return str(os.getpid())


def web_brief(request: Any) -> str:
    """A call of 5 ms."""
    time.sleep(0.005)
    return str(request.path)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: echoes the body; its lifespan is told in the state."""
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            if event == "lifespan.startup":
                scope["state"]["began"] = "yes"
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message.get("more_body"):
            break
    await asyncio.sleep(0.002)
    headers = [(b"content-type", b"text/plain"), (b"x-began", scope["state"].get("began", "no").encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body or b"hello"})


def gateway(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """WSGI: echoes the body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body or environ["PATH_INFO"].encode()]


def port_of(address: str) -> tuple[str, int]:
    """Where an address leads."""
    host, _, port = address.partition("//")[2].rpartition(":")
    return host, int(port)


def ask(address: str, message: bytes = b"?") -> bytes:
    """One message over a connection of its own, and its reply."""
    with socket.create_connection(port_of(address), PATIENCE) as sock:
        sock.sendall(message + b"\n")
        return sock.makefile("rb").readline().rstrip(b"\n")


class Client(Protocol):
    """One of a Load's."""

    def __call__(self) -> None:
        """One exchange; raises when it failed."""
        ...

    def close(self) -> None:
        """Let go of the connection, if one is kept."""
        ...


class Load:
    """Clients in threads, each asking again and again. good: replies; failed: what went wrong, refusals aside.

    A refused connection ends a client: the server has been closed, and nothing was lost.
    """

    def __init__(self, make: Callable[[], Client], clients: int) -> None:
        self.good = 0
        self.failed: list[str] = []
        self._make = make
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._warm = threading.Semaphore(0)
        self._clients = clients
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        for _ in range(self._clients):
            assert self._warm.acquire(timeout=PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        until = self.good + count
        deadline = time.monotonic() + PATIENCE
        while self.good < until:
            assert time.monotonic() < deadline, f"{self.good} of {until}: {self.failed[:3]}"
            self._stop.wait(0.005)

    def _run(self) -> None:
        client = self._make()
        warm = False
        while not self._stop.is_set():
            try:
                client()
            except ConnectionRefusedError:
                break
            except Exception as error:
                with self._lock:
                    self.failed.append(repr(error))
                client.close()
                client = self._make()
                continue
            with self._lock:
                self.good += 1
            if not warm:
                warm = True
                self._warm.release()
        client.close()


class Browser:
    """For Load: requests over one connection while the server keeps it, as a browser or proxy does."""

    def __init__(self, address: str, path: str = "/x") -> None:
        self._link = http.client.HTTPConnection(*port_of(address), timeout=15)
        self._path = path

    def __call__(self) -> None:
        self._link.request("GET", self._path)
        response = self._link.getresponse()
        body = response.read()
        assert response.status == 200
        assert body

    def close(self) -> None:
        self._link.close()


@contextmanager
def until(seconds: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """`while waiting():` until a deadline, which fails the test."""
    deadline, pause = time.monotonic() + seconds, threading.Event()

    def waiting() -> bool:
        assert time.monotonic() < deadline, "it did not come about"
        pause.wait(0.01)
        return True

    yield waiting
