"""Servers under load: thousands of connections, a worker killed, the end asked for, and the tools made for HTTP."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from server_programs import PATIENCE, Cut, Served, asked, fetched, pause
from tests.conftest import need

SOON = 0.1
"""Seconds after it was made in which a connection must have said something to be waited for: the server waits 0.25."""
LOAD = Path(__file__).parents[2] / "benchmarks" / "load.c"


@pytest.fixture
def load(tmp_path):
    """The load generator of the benchmarks, built."""
    need(shutil.which("cc"), "a C compiler")
    built = tmp_path / "load"
    subprocess.run(["cc", "-O2", "-o", built, LOAD], check=True)
    return built


def loaded(load, connections, seconds, capsys):
    """Every connection is served, 100 of them without a pause, without one error; KB of memory per connection."""
    with Served(idle=None) as server:
        with server.connect() as client:
            asked(client, b"warm")
        empty = server.resident()
        with subprocess.Popen(
            [load, "127.0.0.1", str(server.port), str(connections), "100", str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as client:  # fmt: skip
            assert client.stdout.readline().startswith("open")
            each = (server.resident() - empty) / connections
            assert server.figures().connections == connections
            said = json.loads(client.communicate("\n", timeout=PATIENCE + seconds)[0])
        assert said["errors"] == 0, said["first_error"]
        assert said["open"] == connections
        assert said["replies"] > 0
        server.until(lambda figures: figures.connections == 0, "connections are left")
    with capsys.disabled():
        print(
            f"\n{connections:,} connections, 100 active: {each:.1f} KB each, {said['rate']:,.0f} messages/s, no error"
        )
    return each


def test_a_thousand_connections(load, capsys):
    """1,000 connections in one process, 100 of them active: no error, and a connection takes less than 16 KB."""
    assert loaded(load, 1_000, 0.5, capsys) < 16


@pytest.mark.soak
def test_ten_thousand_connections(load, capsys):
    """10,000 connections in one process, 100 of them active for 10 s: no error, less than 8 KB each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    need(hard == resource.RLIM_INFINITY or hard > 10_100, f"a hard limit of descriptors over 10,100 (it is {hard})")
    assert loaded(load, 10_000, 10, capsys) < 8


class Clients:
    """Threads that ask without a pause, until `over` is set or the server ends.

    answered: replies; lost: what should have been answered and wasn't. In `once` each request has a connection of its
    own, in `again` one connection serves many. A request over a connection that was made must be answered; but with
    `race` one that the kernel got after `told` was set, over an older connection or late over a new one, may meet the
    end of the connection: over TCP nothing says beforehand that it will end. No reply may ever be cut.
    """

    def __init__(self, server, ask, *, race):
        self.server, self.ask, self.race = server, ask, race
        self.over, self.told = threading.Event(), threading.Event()
        self.answered, self.lost = 0, []
        self.counting, self.made = threading.Lock(), {}
        self.threads = [threading.Thread(target=each) for each in [self.once] * 4 + [self.again] * 4]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def connections(self):
        """One after the other, until the server has ended."""
        while not self.over.is_set():
            self.made[threading.get_ident()] = time.monotonic()
            try:
                client = self.server.connect()
            except ConnectionError:
                return
            with client:
                yield client

    def once(self):
        for client in self.connections():
            self.one(client, fresh=True)

    def again(self):
        for client in self.connections():
            while client.fileno() != -1 and not self.over.is_set():
                if not self.one(client, fresh=False):
                    break

    def one(self, client, *, fresh):
        """Whether the connection is still good."""
        late = self.race and not fresh  # what can't even be sent has met the end

        def sent():
            nonlocal late
            soon = fresh and time.monotonic() - self.made[threading.get_ident()] < SOON
            late = self.race and self.told.is_set() and not soon

        try:
            self.ask(client, sent)
        except Cut as error:
            if not late or error.got:
                self.lost.append(error)
            return False
        with self.counting:
            self.answered += 1
        return True


def ended_under_load(server, ask, *, race):
    with server, Clients(server, ask, race=race) as clients:
        until(lambda: clients.answered > 200, "nothing is answered")
        clients.told.set()
        server.terminate()
    assert not clients.lost
    assert not any(thread.is_alive() for thread in clients.threads)


@pytest.mark.parametrize("handler", ["echo", "slowly"])
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_under_load_loses_no_request(processes, handler):
    """SIGTERM while clients ask without a pause: every request that it owes an answer gets one, whole; then it ends."""
    ended_under_load(Served(handler, processes=processes), lambda client, sent: asked(client, b"20", sent), race=True)


@pytest.mark.parametrize("handler", ["hello", "app"])
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_under_load_loses_no_http_request(processes, handler):
    """The same over HTTP, where answers say that the connection ends: no request at all is lost."""
    served = Served(handler, address="http://127.0.0.1:0", processes=processes)
    ended_under_load(served, lambda client, _: fetched(client, b"/"), race=False)


def test_a_worker_killed_under_load():
    """kill -9 of one of two processes: clients of the other notice nothing, it is replaced, new clients are served."""
    with Served("who", processes=2) as server:
        pids = server.pids()
        over, asked_of, cut, failed = threading.Event(), set(), [], []

        def ask():
            while not over.is_set():
                owner = None
                try:
                    with server.connect() as client:
                        for _ in range(100):
                            owner = int(asked(client, b"?").split()[0])
                            asked_of.add(owner)
                            if over.is_set():
                                break
                except ConnectionError as error:
                    (failed if owner == pids[1] else cut).append((owner, error))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: asked_of == set(pids), "both serve")
            os.kill(pids[0], signal.SIGKILL)
            until(lambda: len(asked_of) == 3, "it is not replaced")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failed
        assert len(cut) <= len(threads)
        later = server.pids()
        assert pids[1] in later
        assert set(later) == asked_of - {pids[0]}


def until(true, what):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        pause(0.01)


def said_by(*words):
    """What a program says."""
    need(shutil.which(words[0]), words[0])
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wrk_and_h2load():
    """wrk for a second, then 5,000 requests by h2load over HTTP/1.1: every answer is there, and is 200."""
    with Served("app", address="http://127.0.0.1:0") as web:
        said = said_by("wrk", "-t1", "-c100", "-d1s", web.address)
        assert re.search(r"(\d+) requests in", said)
        assert "Non-2xx" not in said
        assert "Socket errors" not in said
        said = said_by("h2load", "--h1", "-n5000", "-c50", f"{web.address}/")
        assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in said
        assert "status codes: 5000 2xx" in said


@pytest.mark.parametrize(("handler", "what"), [("app", "-H"), ("hello", "-B")])
def test_slowhttptest(handler, what):
    """200 clients who send heads (-H) or bodies (-B) drop by drop: others are served, and they are closed in time."""
    need(shutil.which("slowhttptest"), "slowhttptest")
    with Served(handler, address="http://127.0.0.1:0", first_byte=2.0, idle=1.0) as web:
        words = ["slowhttptest", what, "-c200", "-r200", "-i3", "-l20", "-p2", "-u", f"{web.address}/"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as attack:
            web.until(lambda figures: figures.connections >= 150, "it has not begun")
            for _ in range(50):
                with web.connect() as client:
                    assert fetched(client, b"/") == b"hello"
            web.until(lambda figures: figures.connections == 0, "slow ones are still there")
            attack.terminate()
            attack.communicate(timeout=PATIENCE)
