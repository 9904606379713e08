"""Children where the kernel has no lifelines, subreapers or memfds (macOS): the same promises, kept by threads.

Each child is an interpreter of its own, started with subprocess, with a thread in it that reads the lifeline and kills
the child's process group at its end; for a program, the interpreter stays as its parent. A thread of ours waits for
each child. What is lost against `link.py`: a child whose C code holds the GIL outlives a killed supervisor until that
ends; one that called setsid outlives it; a start takes some 50 ms. No fork: on macOS, a fork of a program that has used
a system framework is not safe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from duodao import arena
from duodao.children import boot, newborn, wire
from duodao.children.child import Child
from duodao.children.lifeline import Lifeline, close_private, private_pipe
from duodao.children.reap import MARKER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duodao.children.child import Started

_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from duodao.children import portable; portable.main()"


class Portable:
    """The keeper of this process's children, without a process of its own."""

    def __init__(self) -> None:
        self.broken = ""
        self._lock = threading.Lock()
        self._children: dict[Child, threading.Thread] = {}

    def start(self, kind: str, fields: tuple[Any, ...], fds: Sequence[int], then: Started | None = None) -> Child:
        """Start an interpreter that becomes the child, or starts the program and stays as its parent."""
        if kind == "fork":
            return self._start(kind, fields, fds)
        told, report = private_pipe()  # private: a forked copy that held an end would keep us waiting for it
        try:
            child = self._start(kind, fields, [*fds, report])
            close_private(report)
            try:
                _raise_failure(told)
            except BaseException:  # an interrupt: nobody will hold the program
                child.kill()
                raise
            if then is not None:
                then(child, None)
            return child
        finally:
            close_private(report)
            close_private(told)

    def _start(self, kind: str, fields: tuple[Any, ...], fds: Sequence[int]) -> Child:
        line = Lifeline()
        child = Child(self, line)
        memory = arena.get().fd
        body = wire.encode((kind, fields, boot.search_path(), line.reader, memory, list(fds)))
        try:
            with tempfile.TemporaryFile() as file:
                file.write(body)
                file.flush()
                request = file.fileno()
                process = subprocess.Popen(
                    [sys.executable, *boot.interpreter_flags(), "-c", _CODE, boot.root(), str(request)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(request, line.reader, memory, *fds),
                    env={**os.environ, MARKER: str(os.getpid())},
                    start_new_session=True,
                )
        except BaseException:
            line.drop()
            raise
        finally:
            line.sent()
        child.pid = process.pid
        thread = threading.Thread(target=self._await, args=(child, process), name="duodao-child", daemon=True)
        with self._lock:
            self._children[child] = thread
        thread.start()
        return child

    def preload(self, name: str) -> None:
        """Each child is an interpreter of its own, and imports for itself."""

    def signal(self, pid: int, number: int) -> None:
        """Signal the process group of a child."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    def stop(self) -> None:
        """End all children, and wait until they are gone."""
        with self._lock:
            children = dict(self._children)
        for child, thread in children.items():
            child.kill()
            if thread is not threading.current_thread():
                thread.join()

    def forget(self) -> None:
        """In a forked copy: the children, and the threads that wait for them, are the original's."""
        self._lock = threading.Lock()
        self._children.clear()

    def _await(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.signal(child.pid, signal.SIGKILL)  # what it left; numbers are used again only after all the others were
        for callback in child.ended(code):
            callback(child)
        with self._lock:
            self._children.pop(child, None)


def _raise_failure(told: int) -> None:
    """Wait for the program: the pipe ends when it runs, and says why when it can't."""
    body = b""
    while part := os.read(told, 65536):
        body += part
    if body:
        code, text, what = wire.decode(body)
        raise OSError(code, text, os.fsdecode(what))


def main() -> NoReturn:
    """In the new interpreter: read what to become from the descriptor that the second argument names."""
    request = int(sys.argv[2])
    with open(request, "rb") as file:
        file.seek(0)
        kind, fields, sys.path[:], line, memory, fds = wire.decode(file.read())
    threading.Thread(target=_watch, args=(line,), daemon=True).start()
    arena.inherited(memory)
    for fd in (line, memory, *fds):
        os.set_inheritable(fd, False)
    if kind == "fork":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        newborn.work(fds, *fields)
    newborn.end_like(_run(fds, *fields))


def _watch(line: int) -> None:
    os.read(line, 1)
    os.killpg(0, signal.SIGKILL)


def _run(
    fds: list[int], argv: list[bytes], env: dict[bytes, bytes], cwd: bytes | None, streams: tuple[int, int, int]
) -> int:
    """Run the program in our process group, as its parent; its exit code. A failure is told as `newborn` tells it."""
    stdin, stdout, stderr = (None if place < 0 else fds[place] for place in streams)
    try:
        process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
    except OSError as error:
        os.write(fds[-1], wire.encode((error.errno, error.strerror, error.filename)))
        return 127
    for fd in fds:
        os.close(fd)
    return process.wait()
