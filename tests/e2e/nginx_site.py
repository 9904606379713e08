"""A private nginx: a port of its own, everything it writes in one folder, ended with its `with` block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0
SETTLE = "/-settle-"
CONF = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
    types {{ text/html html; text/css css; text/javascript js; text/plain txt; image/png png; image/svg+xml svg; }}
    default_type application/octet-stream;
    log_format facts '$request_method $status $sent_http_content_type $request_uri';
    access_log access.log facts;
    {told}
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


def python_docs() -> Path | None:
    """Where Debian's python3-doc has its pages: more than 500 of them, linked as people link."""
    found = sorted(Path("/usr/share/doc").glob("python3*/html/library/index.html"))
    return found[-1].resolve().parents[1] if found else None


@dataclass(frozen=True)
class Visit:
    """A line of the access log."""

    method: str
    status: int
    type: str
    target: str


class Nginx:
    """Serves folders under prefixes: Nginx(folder, {"/": pages}). `wait_for` waits until n requests were answered."""

    def __init__(self, folder: Path, served: dict[str, Path], program: str = "/usr/sbin/nginx") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "access.log"
        # nginx takes the socket over as it does from its predecessor in an upgrade: no other program can get the port
        # between the choice and the bind, and connections wait from now on.
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
            self.port = listening.getsockname()[1]
            self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._told.bind(str(folder / "told"))
            lines = [f"location {prefix} {{ alias {at}/; }}" for prefix, at in served.items()]
            told = f"access_log syslog:server=unix:{folder / 'told'},nohostname facts;"
            # Started by root, a worker would be www-data, which may not read folders of a test.
            user = "user root;" if os.geteuid() == 0 else ""
            conf = CONF.format(user=user, port=self.port, told=told, locations="\n        ".join(lines))
            (folder / "nginx.conf").write_text(conf)
            command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
            environ = {**os.environ, "NGINX": f"{listening.fileno()};"}
            self.process = subprocess.Popen(
                command, stderr=subprocess.PIPE, env=environ, pass_fds=[listening.fileno()], text=True
            )
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Nginx:
        try:
            self.forget()
        except OSError as error:
            self.process.kill()
            self._told.close()
            _, said = self.process.communicate(timeout=PATIENCE)
            raise OSError(f"nginx does not serve {self.url}: {error}; it said: {said}") from error
        return self

    def wait_for(self, n: int) -> None:
        """Wait until n more requests have been answered. TimeoutError after PATIENCE without one."""
        for _ in range(n):
            self._told.recv(65536)

    def visits(self) -> list[Visit]:
        """Every request since the start."""
        self._settle()
        lines = self.log.read_bytes()[self._begin :].decode().splitlines()
        found = []
        for line in lines:
            method, status, rest = line.split(" ", 2)
            kind, _, target = rest.rpartition(" ")
            if target != SETTLE:
                found.append(Visit(method, int(status), kind.partition(";")[0], target))
        return found

    def pages(self) -> Counter[str]:
        """How often each HTML page was sent whole."""
        return Counter(
            v.target for v in self.visits() if v.method == "GET" and v.status == 200 and v.type == "text/html"
        )

    def forget(self) -> None:
        """Count requests from here on."""
        self._settle()
        self._told.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._told.recv(65536):
                pass
        self._told.settimeout(PATIENCE)
        self._begin = self.log.stat().st_size

    def _settle(self) -> None:
        """Let the log be whole: a request's line is written after its answer, but before its connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as asking:
            asking.sendall(f"GET {SETTLE} HTTP/1.0\r\n\r\n".encode())
            if not asking.recv(65536):
                raise OSError("no answer")
            while asking.recv(65536):
                pass

    def __exit__(self, *exc: object) -> None:
        self._told.close()
        self.process.send_signal(signal.SIGQUIT)  # lets requests end, so that the log is whole
        try:
            self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
