"""Where a queue can be met: at a unix socket, at a TCP port, or (pipes.py) at its maker's control pipe.

Whoever makes a socket's address first serves it, all others connect. Among makers of a unix socket there is a lock on
its folder (flock: it leaves no file, and a killed holder holds nothing), so that only a dead server's file is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from time import monotonic
from typing import Any, NamedTuple

from duodao.channel.framing import Stream
from duodao.channel.handshake import SECONDS
from duodao.children import guard, lifeline
from duodao.errors import PeerLost, UsageError

BACKLOG = 4096
_TIME = struct.Struct("ll")
_ALIVE = ((socket.SO_KEEPALIVE, 1),)
_TCP = (("TCP_NODELAY", 1), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Place(NamedTuple):
    """Where a queue is served. what: ("pipe", pid, descriptor, inode), ("unix", path) or ("tcp", host, port)."""

    kind: str
    what: tuple[str | int, ...]

    def __str__(self) -> str:
        if self.kind == "pipe":
            return f"the pipe queue of process {self.what[0]}"
        return f"unix:{self.what[0]}" if self.kind == "unix" else f"tcp://{_host(str(self.what[0]))}:{self.what[1]}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse(via: str) -> Place:
    """The place that `via` names. UsageError: it isn't complete."""
    if via.startswith("unix:"):
        path = os.path.abspath(via[5:]) if via[5:] else ""
        if not path or len(os.fsencode(path)) > 107:
            raise UsageError(f"via={via!r}: unix:PATH needs a path of at most 107 bytes, for a socket can't have more")
        return Place("unix", (path,))
    host, colon, port = via.removeprefix("tcp://").rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 65536):
        raise UsageError(f"via={via!r}: it is tcp://HOST:PORT, with a port of 0 to 65535; 0 picks a free one")
    return Place("tcp", (host.strip("[]"), int(port)))


# ------------------------------------------------------------------------------------------------------------ sockets


class Listener:
    """A place that this process serves. `fd` has a client waiting when it is readable."""

    def __init__(self, fd: int, place: Place, inode: tuple[int, int] | None = None) -> None:
        self.fd = fd
        self.place = place
        self._inode = inode
        self._spare = spare()

    def accept(self) -> Stream | None:
        """The next client, None when there is none now. OSError EMFILE: descriptors ran out; then `turn_away`."""
        with lifeline.unforked() as private:
            sock = socket.socket(fileno=self.fd)
            try:
                fd = sock.accept()[0].detach()
            except (BlockingIOError, ConnectionError):
                return None
            finally:
                sock.detach()
            fd = private(fd)
        _set_options(fd, self.place.kind)
        return Stream(fd, fd)

    def turn_away(self) -> Stream | None:
        """With no descriptor left: let the first client in on a spare one, to be told so. Else it would wait."""
        fd, self._spare = self._spare, -1
        lifeline.close_private(fd)
        try:
            return self.accept()
        except OSError:
            return None

    def replace_spare(self) -> None:
        """After a `turn_away` whose stream was closed."""
        self._spare = spare()

    def close(self) -> None:
        """Serve no longer; the socket's file goes, if it still is ours."""
        if self._inode is not None:
            unlink(str(self.place.what[0]), self._inode)
            guard.disown_file(str(self.place.what[0]), *self._inode)
        lifeline.close_private(self.fd)
        lifeline.close_private(self._spare)


def spare() -> int:
    """A descriptor to give up when there is no other."""
    with lifeline.unforked() as private:
        return private(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def unlink(path: str, inode: tuple[int, int]) -> None:
    """Remove a socket's file unless another has its name by now."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == inode:
            os.unlink(path)


def serve(place: Place) -> Listener | None:
    """Listen there; None when somebody does already. UsageError: that is no place for it. OSError as socket."""
    return _serve_unix(place) if place.kind == "unix" else _serve_tcp(place)


def _serve_unix(place: Place) -> Listener | None:
    path = str(place.what[0])
    try:
        with _folder_lock(os.path.dirname(path)):
            if not _vacant(path):
                return None
            fd = _socket(socket.AF_UNIX)
            sock = socket.socket(fileno=fd)
            try:
                os.fchmod(fd, 0o600)  # Linux makes the file with it; elsewhere the next line says so in time
                sock.bind(path)
                os.chmod(path, 0o600)
                sock.listen(BACKLOG)
            except BaseException:
                sock.detach()
                lifeline.close_private(fd)
                raise
            sock.detach()
            made = os.lstat(path)
        guard.own_file(path, made.st_dev, made.st_ino)  # it goes after a kill -9, too
        return Listener(fd, place, (made.st_dev, made.st_ino))
    except OSError as error:
        raise UsageError(f"no queue can be served at unix:{path}: {error.strerror}") from error


def _vacant(path: str) -> bool:
    """Is nobody there? The file of a dead server is removed. UsageError: it is no socket."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return True
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"unix:{path} is a file that is no socket: it is left as it is, give the queue another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:  # its server has just closed it
            return True
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return True
        except BlockingIOError:  # its backlog is full: somebody lives there
            return False
    return False


@contextlib.contextmanager
def _folder_lock(folder: str) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _serve_tcp(place: Place) -> Listener | None:
    host, port = str(place.what[0]), int(place.what[1])
    family, address = _resolve(host, port)[0]
    fd = _socket(family)
    sock = socket.socket(fileno=fd)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over connections of the last server that linger
        sock.bind(address)
        sock.listen(BACKLOG)
        taken = sock.getsockname()[1]
    except OSError as error:
        sock.detach()
        lifeline.close_private(fd)
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) and port:  # another's, here or on another machine
            return None
        raise UsageError(f"no queue can be served at {place}: {error.strerror}") from error
    sock.detach()
    return Listener(fd, Place("tcp", (host, taken)))


def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"tcp://{_host(host)}:{port}: there is no such host ({error.strerror})") from error
    return [(family, address) for family, _, _, _, address in found]


def _socket(family: int) -> int:
    with lifeline.unforked() as private:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return private(sock.detach())


def _set_options(fd: int, kind: str) -> None:
    if kind != "tcp":
        return
    sock = socket.socket(fileno=fd)
    try:
        for option, value in _ALIVE:  # a peer whose machine is gone says nothing: 25 s later the kernel does
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        for name, value in _TCP:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    finally:
        sock.detach()


def connect(place: Place) -> Stream:
    """A connection to who serves the place. PeerLost: nobody does, or not within SECONDS."""
    if place.kind == "unix":
        return _connect(place, socket.AF_UNIX, str(place.what[0]))
    last: PeerLost | None = None
    for family, address in _resolve(str(place.what[0]), int(place.what[1])):
        try:
            return _connect(place, family, address)
        except PeerLost as error:
            last = error
    try:
        raise last or PeerLost(f"nobody serves {place}")
    finally:
        last = None  # it holds this frame, and those of its callers hold a queue: without this they would be a cycle


def _connect(place: Place, family: int, address: Any) -> Stream:
    fd = _socket(family)
    sock = socket.socket(fileno=fd)
    until = monotonic() + SECONDS
    try:
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            await_ready(until, place, (fd, select.POLLOUT))
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif code == errno.EAGAIN:  # a unix server whose backlog is full: only a blocking connect is told of a place
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(SECONDS), 0))
            code = sock.connect_ex(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(0, 0))
        if code:
            raise _refusal(code)  # noqa: TRY301  # handled as those that connect raises
    except BaseException as error:
        sock.detach()
        lifeline.close_private(fd)
        if isinstance(error, PeerLost) or not isinstance(error, OSError):
            raise
        raise PeerLost(f"nobody serves {place} ({error.strerror or error}): its maker closed it, or ended") from error
    sock.detach()
    _set_options(fd, place.kind)
    return Stream(fd, fd)


def _refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def await_ready(until: float, place: Place, *events: tuple[int, int]) -> None:
    """Wait for one of these events until then. PeerLost: there was none."""
    poll = select.poll()
    for fd, mask in events:
        poll.register(fd, mask)
    ready = dict(poll.poll(max(0.0, until - monotonic()) * 1000))
    if not ready:
        raise PeerLost(f"{place} has not answered for {SECONDS:g} s: its process is stopped, or silent")
