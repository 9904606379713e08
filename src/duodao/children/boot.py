"""Starting the guard process: an exec, so that no thread, lock or memory of the program is copied into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys

from duodao.children.reap import MARKER
from duodao.errors import GuardDied

SOCKET_FD = 3
ARENA_FD = 4
"""The guard's end of the socket and the arena, in the guard."""
GUARD_BLOCKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that reach a whole terminal or service: what they mean is the supervisor's to decide, the guard serves it."""
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from duodao.children import zygote; zygote.main()"
_LIFTED_FD = 10  # above the numbers descriptors get in the guard, so that moving one there never overwrites another
_X_OPTIONS = ("dev", "utf8", "frozen_modules", "no_debug_ranges", "int_max_str_digits", "warn_default_encoding", "gil")


def spawn(sock: int, memory: int, marker: str) -> int:
    """Start the guard at the other end of `sock`; its pid. GuardDied when the interpreter can't be started.

    posix_spawn shares memory until the exec, so the size of this program costs nothing. A session of its own: what the
    terminal sends (Ctrl-C, Ctrl-Z, a hang-up) is for the supervisor to hear, and a program that would ask at the
    terminal fails instead of being stopped for ever.
    """
    if not sys.executable:
        raise GuardDied("no guard process can be started: sys.executable is empty, so there is no interpreter to run")
    lifted = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, _LIFTED_FD)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *interpreter_flags(), "-P", "-c", _CODE, root()],
            {**os.environ, MARKER: marker},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, lifted, SOCKET_FD),
                (os.POSIX_SPAWN_DUP2, memory, ARENA_FD),
            ],
            setsid=True,
            setsigmask=GUARD_BLOCKS,
        )
    except OSError as error:
        raise GuardDied(f"the guard process can't be started with {sys.executable}: {error.strerror}") from error
    finally:
        os.close(lifted)


def root() -> str:
    """The folder that holds this package: the one entry of sys.path that the new interpreter must know beforehand."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def search_path() -> list[str]:
    """This program's sys.path, absolute: a worker's current directory is another."""
    path = []
    for entry in sys.path:
        with contextlib.suppress(OSError, TypeError):  # "" in a directory that was removed; an entry that is no path
            path.append(os.path.abspath(entry))
    return path


def interpreter_flags() -> list[str]:
    """The options this interpreter was started with, as far as they change what code does. Source: multiprocessing.

    `site` runs in the guard, for 2 ms: packages installed as editable are found through its hooks, not in sys.path.
    """
    letters = {
        "O": sys.flags.optimize,
        "b": sys.flags.bytes_warning,
        "B": sys.flags.dont_write_bytecode,
        "E": sys.flags.ignore_environment and not sys.flags.isolated,
        "I": sys.flags.isolated,
        "s": sys.flags.no_user_site and not sys.flags.isolated,
        "S": sys.flags.no_site,
    }
    flags = [f"-{letter * count}" for letter, count in letters.items() if count]
    flags += [f"-W{option}" for option in sys.warnoptions]
    for name in _X_OPTIONS:
        value = sys._xoptions.get(name)
        if value is not None:
            flags += ["-X", name if value is True else f"{name}={value}"]
    return flags
