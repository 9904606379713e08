"""What a process of a server runs, and how it speaks with its herd.

    herd.py ═══ control socket ═══► _Entry ── loop ──► worker (TCP) or web worker (HTTP) ◄── listening socket
             run, ask, drain, broadcast          ◄═══ ready, figures, broadcast, output, logs

Frames are those of the lanes (wire.py). To the herd they are written by whichever thread has something to say, waiting
while the socket is full: the herd reads always and waits for nobody, so that is never long.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib.machinery
import importlib.util
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from duodao.lanes import wire
from duodao.lanes.forward import LineStream, LogHandler, apply_levels
from duodao.lanes.worker import adopt
from duodao.pickling import Raised
from duodao.servers.options import Options

if TYPE_CHECKING:
    from collections.abc import Coroutine

# To a process, after wire.RUN.
ASK, DRAIN = 40, 41
# From it, beside wire.READY, UNLOADED, FATAL, OUTPUT and LOG.
FIGURES = 42
# Both ways.
BROADCAST = 43

_CHUNK = 1 << 20


def make_worker(work: Any, options: Options, sockets: list[socket.socket]) -> Any:
    """What serves `sockets` on the running loop, here or in a child: worker.Worker for tcp, http.WebWorker for http.

    Both have start, drain, abort and figures. Raises UsageError for a `work` that can't be served.
    """
    if options.scheme == "tcp":
        from duodao.servers.handler import Handler
        from duodao.servers.worker import Worker

        return Worker(Handler(work, options), options, sockets)
    from duodao.servers.http import WebWorker

    return WebWorker(work, options, sockets)


class Named:
    """An object as a name in a module, for one that can't or shouldn't be pickled: an application, say.

    file: the module's, for one that was loaded under a name by which it can't be imported.
    """

    def __init__(self, module: str, name: str, file: str | None) -> None:
        self.module = module
        self.name = name
        self.file = file

    def find(self) -> Any:
        """The object in this process."""
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            if error.name != self.module or self.file is None:
                raise
        loader = importlib.machinery.SourceFileLoader(self.module, self.file)
        spec = importlib.util.spec_from_loader(self.module, loader)
        assert spec is not None
        module = sys.modules[self.module] = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return getattr(module, self.name)


def main(arg: bytes, fds: list[int]) -> int:
    """The entry that the guard calls: fds are the control socket and the listening socket."""
    faulthandler.enable(2)
    return _Entry(pickle.loads(arg), *fds).live()


class _Entry:
    def __init__(self, options: Options, control: int, listening: int) -> None:
        self._options = options
        self._control = socket.socket(fileno=control)
        self._listening = socket.socket(fileno=listening)
        self._writing = threading.Lock()
        self._reader = wire.Reader(control, bytearray(_CHUNK))
        self._streams = (LineStream(1, self._print), LineStream(2, self._print))
        self._logs = LogHandler(lambda record: self._send(wire.LOG, body=record))
        self._worker: Any = None
        self._over: asyncio.Future[None]
        self._ending: asyncio.Task[None] | None = None
        sys.stdout, sys.stderr = self._streams
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A child of ours must neither hold our sockets open nor write frames of its own."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.root.removeHandler(self._logs)
        for sock in (self._control, self._listening):
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def live(self) -> int:
        """Load what is served, serve until told to end; the exit code."""
        frame = wire.read_frame(self._control.fileno())
        if frame is None:
            return 1
        cwd, path, argv, environ, levels, _ = frame.meta
        try:
            adopt(cwd, path, argv, environ)
            apply_levels(levels, self._logs)
            work = pickle.loads(frame.body).function
            work = work.find() if isinstance(work, Named) else work
        except Raised as error:
            self._send(wire.UNLOADED, body=wire.dump_error(error))
            return 1
        try:
            _run(self._serve(work))
        except Raised as error:
            self._send(wire.FATAL, body=wire.dump_error(error))
            return 1
        finally:
            for stream in self._streams:
                stream.finish()
        return 0

    async def _serve(self, work: Any) -> None:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._worker = make_worker(work, self._options, [self._listening])
        if self._options.scheme == "tcp":
            self._worker.on_broadcast(self._relay)
        await self._worker.start()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_reader(self._control.fileno(), self._hear)
        self._send(wire.READY)
        await self._over
        loop.remove_reader(self._control.fileno())
        self._tell()

    def _hear(self) -> None:
        try:
            frames = self._reader.read()
        except (EOFError, ConnectionError):  # the herd is gone, and this process is about to be killed
            os._exit(1)
        for frame in frames:
            if frame.kind == ASK:
                self._tell()
            elif frame.kind == BROADCAST:
                self._worker.deliver_broadcast(frame.meta, bytes(frame.body))
            elif frame.kind == DRAIN:
                self._drain()

    def _drain(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        try:
            await self._worker.drain(self._options.grace)
        except Raised as error:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    def _relay(self, room: str, data: bytes) -> None:
        self._send(BROADCAST, meta=room, body=data)

    def _tell(self) -> None:
        self._send(FIGURES, body=pickle.dumps(self._worker.figures()))

    def _print(self, number: int, text: str) -> None:
        self._send(wire.OUTPUT, number, body=text.encode("utf-8", "surrogatepass"))

    def _send(self, kind: int, seq: int = 0, **fields: Any) -> None:
        with self._writing, contextlib.suppress(ConnectionError):  # the herd is gone
            for piece in wire.parts(kind, seq, **fields):
                self._control.sendall(piece)


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
