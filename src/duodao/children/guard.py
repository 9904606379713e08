"""Start processes that can't be left behind: the supervisor's side of the guard.

    child = guard.fork(entry="package.module:main", arg=b"...", fds=[3, 5])
    child = guard.command(["ffmpeg", "-i", "in.mp4", "out.webm"], stdout=fd)

The guard is a small process, started when first needed; `zygote.py` is what runs in it. This side has one daemon thread,
which reads what the guard reports, and ends with it. `shutdown`, called at exit, ends both.

Races closed: README.md.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duodao import arena
from duodao.children import lifeline, reap, wire, zygote
from duodao.children.child import Child
from duodao.children.lifeline import Lifeline
from duodao.errors import GuardDied

MARKER = "DUODAO_GUARD"
"""The environment variable that every descendant carries: `<pid of the supervisor>-<random>`."""
PRELOAD = ("pickle", "cloudpickle", "duodao.lanes.worker")
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from duodao.children import zygote; zygote.main()"
_TRIES = 3
_SPAWN_FD = 10  # above the numbers that descriptors get in the guard, so that moving one there overwrites no other

_lock = threading.RLock()  # re-entrant: a signal handler may fork while its own thread holds it
_current: _Guard | None = None


class _Request:
    """A fork that was asked for. `abandoned`: the asker was interrupted; whoever is started dies by its lifeline."""

    __slots__ = ("child", "done", "error")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.done = threading.Event()
        self.error: Exception | None = None


class _Lost(Exception):
    """The guard died before it answered."""


class _Guard:
    """One guard process: its socket, its reader thread, and the children it has."""

    def __init__(self) -> None:
        """Start it, without waiting for it. Called with `_lock` held, so that no fork copies a half-made one."""
        self.marker = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.broken = ""
        self._children: dict[int, Child] = {}
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._ended: deque[tuple[Child, int]] = deque()
        self._dead = False
        self._orderly = False
        self._sending = threading.Lock()
        self._sock, theirs = _socket_pair()
        try:
            self.pid = _spawn(theirs.fileno(), arena.get().fd, self.marker)
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        path = [os.path.abspath(entry) for entry in sys.path]
        wire.send(self._sock, wire.encode(("hello", path, PRELOAD)))
        self._thread = threading.Thread(target=self._read, name="duodao-guard-reader", daemon=True)
        self._thread.start()

    def start(self, kind: str, fields: tuple[Any, ...], fds: Sequence[int]) -> Child:
        """Have a child forked and wait for its number. _Lost when the guard is gone; OSError as it could not fork."""
        line = Lifeline()
        child = Child(self, line)
        request = _Request(child)
        number = next(self._numbers)
        try:
            with _lock:
                if self._dead:
                    raise _Lost
                self._requests[number] = request
            self._send((kind, number, *fields), [line.reader, *fds])
            line.sent()
            self._await(request)
            if request.error is not None:
                raise request.error
        except BaseException:  # also an interrupt: nobody will hold this child, so it must not live
            line.sent()
            line.drop()
            raise
        return child

    def signal(self, pid: int, number: int) -> None:
        """Have the guard signal the group of its child: it reaps, so it knows that the number is still the child's."""
        try:
            self._send(("signal", pid, number), ())
        except _Lost:
            return  # its children are being killed

    def stop(self) -> None:
        """End the guard with all it has, and wait for that."""
        self._orderly = True
        with self._sending:
            if not self._dead:
                self._sock.shutdown(socket.SHUT_WR)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self) -> None:
        """In a forked copy: this guard is not ours. Only the descriptor is closed; the original goes on using it."""
        self._dead = True
        self._sock.close()
        self._children.clear()
        self._requests.clear()

    def _send(self, message: wire.Message, fds: Sequence[int]) -> None:
        body = wire.encode(message)
        with self._sending:  # and not closed meanwhile: its number might be another's by then
            if self._dead:
                raise _Lost
            try:
                wire.send(self._sock, body, fds)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _Lost from error

    def _await(self, request: _Request) -> None:
        if threading.current_thread() is not self._thread:
            request.done.wait()
            return
        while not request.done.is_set():  # a callback forks: the answer is for this very thread to read
            if not self._read_one():
                raise _Lost

    def _read(self) -> None:
        while self._read_one():
            self._announce()
        self._bury()

    def _read_one(self) -> bool:
        received = wire.receive(self._sock)
        if received is None:
            return False
        kind, *fields = received[0]
        if kind == "started":
            number, pid = fields
            with _lock:
                request = self._requests.pop(number)
                request.child.pid = pid
                self._children[pid] = request.child
            request.done.set()
        elif kind == "failed":
            number, code, text = fields
            with _lock:
                request = self._requests.pop(number)
            request.error = OSError(code, text)
            request.done.set()
        elif kind == "ended":
            self._ended.extend((self._children.pop(pid), code) for pid, code in fields[0])
        else:
            self.broken = fields[0]
        return True

    def _announce(self) -> None:
        """Tell of the deaths. A queue, not a call in place: a callback that forks reads further messages meanwhile."""
        while self._ended:
            child, code = self._ended.popleft()
            for callback in child.ended(code):
                _run(callback, child)

    def _bury(self) -> None:
        """The guard is gone: end what it had, tell everyone, and let the next fork start another."""
        global _current
        with _lock, self._sending:
            self._dead = True
            self._sock.close()
            if _current is self:
                _current = None
            children, self._children = self._children, {}
            requests, self._requests = self._requests, {}
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the program waits for any child, or ignores SIGCHLD
        if not self._orderly:
            watches = reap.watch(pid for pid in children if _leads_group(pid))
            for child in children.values():
                child.kill()
            reap.await_deaths(watches, 1.0)
            reap.kill_marked(f"{MARKER}={self.marker}")
        self._ended.extend((child, -signal.SIGKILL) for child in children.values())
        for request in requests.values():
            request.error = _Lost()
            request.done.set()
        self._announce()


def _run(callback: Callable[[Child], object], child: Child) -> None:
    """A callback that raises must not end the thread that all the others depend on."""
    try:
        callback(child)
    except Exception as error:
        thread = threading.current_thread()
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except OSError:
        return False


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = [socket.socket(fileno=lifeline.lift(end.detach())) for end in pair]
    return ours, theirs


def _spawn(sock: int, memory: int, marker: str) -> int:
    """Start the guard process, in a session of its own: what the terminal sends is for the supervisor to hear."""
    if not sys.executable:
        raise GuardDied("sys.executable is empty: there is no interpreter to start the guard with")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    argv = [sys.executable, *_flags(), "-c", _BOOT, root]
    lifted = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, _SPAWN_FD)
    try:
        return os.posix_spawn(
            sys.executable,
            argv,
            {**os.environ, MARKER: marker},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, lifted, zygote.SOCKET_FD),
                (os.POSIX_SPAWN_DUP2, memory, zygote.ARENA_FD),
            ],
            setsid=True,
            setsigmask=(),
        )
    except OSError as error:
        raise GuardDied(f"the guard process can't be started with {sys.executable}: {error.strerror}") from error
    finally:
        os.close(lifted)


def _flags() -> list[str]:
    """The options of this interpreter, for children to run under: a subset of what multiprocessing passes on."""
    flags = sys.flags
    found = ["-" + letter * count for letter, count in (
        ("O", flags.optimize), ("b", flags.bytes_warning), ("B", flags.dont_write_bytecode), ("I", flags.isolated),
        ("E", flags.ignore_environment), ("s", flags.no_user_site), ("S", flags.no_site),
    ) if count]
    found += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        found += ["-X", name if value is True else f"{name}={value}"]
    return found


def ensure() -> None:
    """Start the guard if there is none, without waiting for it: some 60 ms later the first `fork` finds it ready.

    GuardDied when the process can't be started.
    """
    _ensure()


def _ensure() -> _Guard:
    global _current
    with _lock:
        if _current is None:
            _current = _Guard()
            atexit.unregister(shutdown)
            atexit.register(shutdown)
        return _current


def fork(entry: str, *, arg: bytes = b"", fds: Sequence[int] = ()) -> Child:
    """Start a worker: `module:function` of `entry` is called as function(arg, fds) in a process forked from the guard.

    arg: of any size. fds: at most 250 descriptors; the worker gets copies, under the numbers that it is called with; the
    caller closes its own. The worker leads its own process group, ignores SIGINT, reads nothing from stdin, and has no
    other descriptor of this program's. Returns once it exists, some 2 ms later.
    OSError when no process can be made; GuardDied when the guard can't be kept alive. Source: M7, M8.
    """
    for _ in range(_TRIES):
        guard = _ensure()
        try:
            return guard.start("fork", (entry, arg), fds)
        except _Lost:
            continue  # no worker did anything yet: its caller has not sent it work
    raise GuardDied(f"the guard process died {_TRIES} times as a worker was started. {guard.broken}")


def command(
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Child:
    """Start a program, found on the PATH of `env`, as a child that can't outlive this process.

    env, cwd: this process's own when None. stdin: /dev/null when None; stdout, stderr: this process's as the guard was
    started, when None; the caller closes the descriptors it passed.
    FileNotFoundError, PermissionError and their like as subprocess raises them; GuardDied when the guard died meanwhile.
    """
    own = {os.fsencode(name): os.fsencode(value) for name, value in (os.environ if env is None else env).items()}
    where = os.fsencode(os.getcwd() if cwd is None else cwd)
    given = [fd for fd in (stdin, stdout, stderr) if fd is not None]
    places = itertools.count()
    streams = tuple(-1 if fd is None else next(places) for fd in (stdin, stdout, stderr))
    told, report = (lifeline.lift(end) for end in os.pipe())
    try:
        for _ in range(_TRIES):
            guard = _ensure()
            own[os.fsencode(MARKER)] = os.fsencode(guard.marker)
            try:
                child = guard.start("exec", (list(argv), own, where, streams), [*given, report])
            except _Lost:
                continue
            os.close(report)
            report = -1
            _raise_failure(told)
            return child
        raise GuardDied(f"the guard process died {_TRIES} times as a program was started. {guard.broken}")
    finally:
        os.close(told)
        if report >= 0:
            os.close(report)


def _raise_failure(told: int) -> None:
    """Wait for the exec: the pipe ends when it succeeds, and says why when it does not."""
    body = b""
    while part := os.read(told, 65536):
        body += part
    if body:
        code, text, what = wire.decode(body)
        raise OSError(code, text, os.fsdecode(what))


def shutdown() -> None:
    """End the guard and everything it started, and wait until they are gone. The next `fork` starts a new guard."""
    global _current
    with _lock:
        guard, _current = _current, None
    if guard is not None:
        guard.stop()


def _acquire() -> None:
    _lock.acquire()


def _release() -> None:
    _lock.release()


def _after_fork() -> None:
    global _lock, _current
    _lock = threading.RLock()
    guard, _current = _current, None
    if guard is not None:
        guard.forget()


os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_after_fork)
