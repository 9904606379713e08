"""The entry of a greenlet worker: gevent patches the standard library before any module of the user's is loaded.

It happens in the worker alone, a fresh fork of the guard, which has loaded the standard library and our own modules and
nothing else: the caller's modules, and those of other workers, stay as they are. What was loaded too early, by a
`sitecustomize` or a .pth file, and keeps something unpatched, is named, and the run ends: its locks would let two
greenlets in at once, its sockets would stop all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

LOOKUPS = 32
"""Host names looked up at once: gevent has native threads for that."""
_NAMES = {
    "_thread": ("allocate_lock", "get_ident", "start_new_thread"),
    "threading": ("Event", "Lock", "RLock", "local"),
    "time": ("sleep",),
    "socket": ("create_connection", "getaddrinfo", "socket", "socketpair"),
    "ssl": ("SSLContext", "SSLSocket", "create_default_context"),
    "select": ("epoll", "poll", "select"),
    "subprocess": ("Popen", "call", "check_call", "check_output", "run"),
    "queue": ("Queue", "SimpleQueue"),
    "os": ("fork", "waitpid"),
}
"""What of the standard library is replaced, as far as others keep it under names of their own."""
_PATCHING = ("gevent", "greenlet", "zope")
_PRELOADED = ("duodao", "cloudpickle")
"""What the guard has loaded. Their locks are held for a few steps, in which nothing waits: no other greenlet runs."""


_STALE = ("sync", "channel", "dropin", "lanes.solo", "lanes.single", "lanes.interrupt")
"""Ours that the guard may have loaded for tasks of this program; they hold locks whose holder is a native thread."""


def main(arg: bytes, fds: list[int]) -> int:
    """Be the host of a nested lane, in a process that is patched."""
    _forget()
    trouble = patch()
    if trouble:
        _refuse(fds[1], f"a greenlet worker can't be patched: {trouble}")
        return 1
    _raise_limits()
    from duodao.lanes import host

    return host.main(arg, fds)


def _forget() -> None:
    """Let what is stale be loaded again, when it is needed, as it is in a patched process."""
    for name in list(sys.modules):
        package, _, own = name.partition(".")
        if package == "duodao" and any(own == stale or own.startswith(f"{stale}.") for stale in _STALE):
            above, _, last = name.rpartition(".")
            if above in sys.modules:
                vars(sys.modules[above]).pop(last, None)
            del sys.modules[name]


def _refuse(results: int, why: str) -> None:
    from duodao.errors import Broken
    from duodao.lanes import wire

    os.write(results, b"".join(wire.parts(wire.FATAL, meta=why, body=wire.dump_error(Broken(why)))))


def patch() -> str:
    """Patch this process; what speaks against it, "" when nothing does."""
    originals = _originals()
    early = _early(originals)
    from gevent import monkey

    if early or len(_tasks()) > 1:
        return early or "it has threads already"
    with _asked_once():
        monkey.patch_all()
    os.register_at_fork(after_in_child=_begin_anew)
    return _early(originals)


def _begin_anew() -> None:
    """In a forked copy: a hub of its own. In that of the worker the worker's other calls, and its host, would go on."""
    from gevent import hub

    hub.get_hub().loop.destroy()
    hub.set_hub(None)


@contextlib.contextmanager
def _asked_once() -> Iterator[None]:
    """gevent asks 25 times which plugins are installed: the answer is read once, which saves half of the patching."""
    from importlib import metadata

    ask: Any = metadata.entry_points
    found = ask()
    metadata.entry_points = found.select
    try:
        yield
    finally:
        metadata.entry_points = ask


def _originals() -> dict[int, str]:
    """Objects that will be replaced, by id. None of `ssl` where nobody has loaded it."""
    found = {}
    for module, names in _NAMES.items():
        loaded = sys.modules.get(module)
        for name in names:
            value = getattr(loaded, name, None)
            if value is not None:
                found[id(value)] = f"{module}.{name}"
    return found


def _early(originals: dict[int, str]) -> str:
    """The modules that keep what gevent replaces, or made locks or sockets of it."""
    import socket
    import threading

    kinds = (type(threading.Lock()), type(threading.RLock()), socket.socket, threading.local, threading.Event)
    found = []
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if not isinstance(module, ModuleType) or top in sys.stdlib_module_names or top in (*_PATCHING, "__main__"):
            continue
        for attribute, value in list(vars(module).items()):
            kept = originals.get(id(value)) or (_lock(value, kinds) if top not in _PRELOADED else "")
            if kept:
                found.append(f"{name}.{attribute} is {kept}")
    return f"{', '.join(found[:3])}, loaded before gevent could patch it" if found else ""


def _lock(value: Any, kinds: tuple[type, ...]) -> str:
    return f"a {type(value).__qualname__}" if isinstance(value, kinds) else ""


def _tasks() -> list[str]:
    try:
        return os.listdir("/proc/self/task")
    except OSError:
        return []


def _raise_limits() -> None:
    """A thousand calls have a thousand sockets, and look for their hosts: as much at once as this user may."""
    import resource

    import gevent

    gevent.get_hub().threadpool_size = LOOKUPS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
