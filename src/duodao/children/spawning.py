"""How the guard starts a program: posix_spawn, which shares the guard's memory until the exec instead of copying it.

Everything a fork of ours would do in the new process (newborn.py) is said beforehand, or done to it from outside: a
start takes 0.4 ms this way and 2.5 ms the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from duodao.children import lifeline, reap
from duodao.children.newborn import LINE_FD, raise_oom_score

_PYTHON_HANDLES = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
"""Signals that the interpreter ignores or catches: to a program they mean what they do by default."""
_HERE = os.O_PATH if hasattr(os, "O_PATH") else os.O_RDONLY


def spawn(
    line: int,
    fds: list[int],
    argv: list[bytes],
    env: dict[bytes, bytes],
    cwd: bytes | None,
    streams: tuple[int, int, int],
) -> int:
    """Start the program in a group of its own, armed; its pid. streams: places in `fds` of its 0, 1 and 2, or -1.

    OSError with what it is about: the folder, or the program, which is looked for on the PATH of `env`.
    """
    env[os.fsencode(reap.MARKER)] = os.environb[os.fsencode(reap.MARKER)]
    moves = [(os.POSIX_SPAWN_DUP2, fds[place], target) for target, place in enumerate(streams) if place >= 0]
    moves.append((os.POSIX_SPAWN_DUP2, line, LINE_FD))  # last: that number may be one of `fds`
    with _standing_in(cwd):
        pid = _search(argv, env, moves)
    try:
        lifeline.arm(line, pid)
    except OSError:  # the kernel would not: it must not live without
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    raise_oom_score(pid)
    return pid


@contextlib.contextmanager
def _standing_in(cwd: bytes | None) -> Iterator[None]:
    """The guard has one thread, so its own folder can be the program's for a moment."""
    if cwd is None:
        yield
        return
    here = os.open(".", _HERE)
    try:
        os.chdir(cwd)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _search(argv: list[bytes], env: dict[bytes, bytes], moves: list[tuple[int, int, int]]) -> int:
    """Start the first that can be, as execvpe chooses it."""
    name = argv[0]
    if b"/" in name or not name:
        return _start(name, argv, env, moves)
    found: OSError | None = None
    for folder in map(os.fsencode, os.get_exec_path(env)):  # type: ignore[arg-type]  # it takes bytes as well
        path = os.path.join(folder, name)
        try:
            os.stat(path)
            return _start(path, argv, env, moves)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            found = found or error
    if found is not None:
        raise OSError(found.errno, found.strerror, name)
    raise FileNotFoundError(2, os.strerror(2), name)


def _start(path: bytes, argv: list[bytes], env: dict[bytes, bytes], moves: list[tuple[int, int, int]]) -> int:
    return os.posix_spawn(path, argv, env, file_actions=moves, setpgroup=0, setsigmask=(), setsigdef=_PYTHON_HANDLES)
