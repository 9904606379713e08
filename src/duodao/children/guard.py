"""Start processes that can't be left behind.

    child = guard.fork("package.module:main", arg=b"...", fds=[3, 5])
    child = guard.command(["ffmpeg", "-i", "in.mp4", "out.webm"], stdout=fd)

The guard is a small process, started when first needed, that forks, reaps and outlives us just long enough to end all
of them. `zygote.py` runs in it; `link.py` is our end of it; README.md has the picture and the races closed.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from duodao.children import lifeline, wire
from duodao.children.child import Child, Lost, Unanswered
from duodao.children.reap import MARKER
from duodao.errors import GuardDied, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duodao.children.child import Keeper, Started

__all__ = ["MARKER", "Child", "command", "disown_file", "ensure", "fork", "own_file", "shutdown"]
_TRIES = 3


class _Home:
    """The one guard of this process. A forked copy starts without: the guard and its children are the original's."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: a signal handler may fork while its own thread holds it
        self.keeper: Keeper | None = None
        self.files: set[tuple[bytes, int, int]] = set()

    def get(self) -> Keeper:
        with self.lock:
            if self.keeper is None:
                self.keeper = _new_keeper(self.lose)
                for file in self.files:
                    _own(self.keeper, file, owned=True)
                atexit.unregister(shutdown)
                atexit.register(shutdown)
            return self.keeper

    def lose(self, keeper: Keeper) -> None:
        with self.lock:
            if self.keeper is keeper:
                self.keeper = None

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()
        keeper, self.keeper = self.keeper, None
        self.files.clear()
        if keeper is not None:
            keeper.forget()


_home = _Home()
# Registered after that of lifeline.py, so its lock is the first taken before a fork, as everywhere else.
assert lifeline
os.register_at_fork(
    before=_home.before_fork,
    after_in_parent=_home.after_fork_in_parent,
    after_in_child=_home.after_fork_in_child,
)


def _new_keeper(died: Any) -> Keeper:
    if sys.platform == "linux":
        from duodao.children.link import Link

        return Link(died)
    from duodao.children.portable import Portable

    return Portable()


def _own(keeper: Keeper, file: tuple[bytes, int, int], *, owned: bool) -> None:
    own = getattr(keeper, "own", None)  # the portable keeper ends with the supervisor
    if own is not None:
        own(*file, owned=owned)


def own_file(path: str, device: int, inode: int) -> None:
    """The file goes when this process ends in whatever way, kill -9 included; starts the guard if there is none.

    For a socket, which means nothing without its server. It stays if another has its name by then.
    """
    file = os.fsencode(path), device, inode
    with _home.lock:
        _home.files.add(file)
        _own(_home.get(), file, owned=True)


def disown_file(path: str, device: int, inode: int) -> None:
    """Undo `own_file`: the file was removed."""
    file = os.fsencode(path), device, inode
    with _home.lock:
        if file in _home.files:
            _home.files.discard(file)
            if _home.keeper is not None:
                _own(_home.keeper, file, owned=False)


def ensure() -> None:
    """Start the guard if there is none, without waiting for it: some 50 ms later a `fork` finds it ready.

    GuardDied when the process can't be started.
    """
    _home.get()


def number() -> int | None:
    """The process number of the guard; None while there is none."""
    return getattr(_home.keeper, "pid", None)


def preload(module: str) -> None:
    """Have the guard import `module` before it forks again, once: its children need not then. GuardDied as `fork`.

    Only for modules of ours, which start no thread.
    """
    _home.get().preload(module)


def fork(entry: str, *, arg: bytes = b"", fds: Sequence[int] = ()) -> Child:
    """Start a worker: the `module:function` named by `entry` is called as function(arg, fds) in a fork of the guard.

    arg: of any size. fds: 250 at most; the worker gets copies under the numbers it is called with, the caller closes
    its own. The worker leads a process group, ignores SIGINT, has /dev/null as stdin and no other descriptor of ours.
    Its exit code is the function's int, 0 for anything else, 1 after an exception. Returns once it exists: 1 ms.
    OSError when no process can be made; GuardDied when the guard can't be kept alive. Source: M7, M8.
    """
    _check(fds)
    for _ in range(_TRIES):
        keeper = _home.get()
        try:
            return keeper.start("fork", (entry, arg), fds)
        except Lost:  # also Unanswered: a worker does nothing before its caller, who has no child yet, sends it work
            continue
    raise GuardDied(f"the guard process died {_TRIES} times as a worker was started. {keeper.broken}".rstrip())


def command(
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    then: Started | None = None,
) -> Child:
    """Start a program, found on the PATH of `env`, that can't outlive this process.

    env, cwd: this process's own when None. stdin: /dev/null when None. stdout, stderr: when None, those this process
    had when the guard was started. The caller closes the descriptors it passed. Returns when the program runs.
    then: it returns before that, and then(child, None) is called when it does, or with the error: from the guard's
    reader thread, or, where there is none, in here; it must not wait for anything.
    FileNotFoundError, PermissionError and so on, as subprocess raises them; GuardDied when the guard died meanwhile.
    """
    fields, given = _describe(argv, env, cwd, (stdin, stdout, stderr))
    for _ in range(_TRIES):
        keeper = _home.get()
        try:
            return keeper.start("exec", fields, given, then)
        except Unanswered as error:
            if keeper.broken:
                continue
            raise GuardDied(f"the guard died as it started {argv[0]!r}; if that ran, it was ended") from error
        except Lost:
            continue
    raise GuardDied(f"the guard process died {_TRIES} times as {argv[0]!r} was started. {keeper.broken}".rstrip())


def _describe(
    argv: Sequence[str | bytes],
    env: Mapping[str, str] | None,
    cwd: str | None,
    streams: tuple[int | None, int | None, int | None],
) -> tuple[tuple[Any, ...], list[int]]:
    """What the new process needs to become the program, and the descriptors that go with it."""
    if not argv:
        raise UsageError("argv is empty: its first entry names the program")
    words = [os.fsencode(word) for word in argv]
    own = {os.fsencode(name): os.fsencode(value) for name, value in (os.environ if env is None else env).items()}
    where = None if cwd is None else os.fsencode(cwd)
    if where is None:
        try:
            where = os.getcwdb()
        except FileNotFoundError:
            where = None  # it was removed: the program starts where the guard is
    if any(b"\0" in text for text in (*words, *own, *own.values(), where or b"")):
        raise UsageError("argv, env and cwd can't contain NUL characters")
    given = [fd for fd in streams if fd is not None]
    _check(given)
    place = itertools.count()
    return (words, own, where, tuple(-1 if fd is None else next(place) for fd in streams)), given


def _check(fds: Sequence[int]) -> None:
    if len(fds) > wire.FDS_AT_MOST:
        raise UsageError(f"{len(fds)} descriptors are more than the {wire.FDS_AT_MOST} that a child can be given")


def shutdown() -> None:
    """End the guard and all that it started, and wait until they are gone. The next `fork` starts a new guard."""
    with _home.lock:
        keeper, _home.keeper = _home.keeper, None
    if keeper is not None:
        keeper.stop()
