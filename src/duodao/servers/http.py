"""HTTP in one process: granian's worker (Rust) on sockets of ours, on the running loop.

granian parses HTTP and writes responses in threads of its own; Python is called on the loop (ASGI, handlers) or in
those (WSGI). Its master process is not used: processes are the guard's (herd.py), so none outlives us. `parts` has all
that is used of it beside its documented names; tests/e2e/test_serve_http.py holds that it still fits.

    schedule (granian's thread) ──► loop: a quick handler, or a task ──► proto.response_*, watcher.done()
                                    └──► thread lane: a plain handler that takes its time

HTTP/1.1 only: where granian must find out which version a peer speaks, one that says nothing is kept for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from duodao.errors import Broken, UsageError
from duodao.servers import census, listening, requests, tls, web
from duodao.servers.figures import Figures
from duodao.servers.options import Options

if TYPE_CHECKING:
    from collections.abc import Awaitable

LAME = 0.25
"""Seconds of a drain in which responses say `connection: close`, so that a peer that keeps its connection in use hears
of the end from a response, and doesn't send a request into a closed one."""
THREADS = 16
"""For a WSGI application, when workers= doesn't say."""
SPARE = 64
"""Descriptors that connections leave to the handlers."""
_FOREVER = 2**31
_TLS_1_2 = "tls1.2"


def check(work: Any, options: Options) -> str:
    """What kind of application it is. Raises UsageError for what can't be served."""
    kind = web.kind_of(work)
    if options.proxy_from:
        raise UsageError("proxy_from= is for tcp://; over HTTP a proxy names the peer in a header")
    tls.check(options)
    if kind == "handler":
        requests.check(work, options)
    if importlib.util.find_spec("granian") is None:
        raise UsageError(f"{options.scheme}:// needs granian: install duodao[http]")
    return kind


class WebWorker:
    """As worker.Worker, for HTTP. work: an ASGI or WSGI application, or handler(request)."""

    def __init__(self, work: Any, options: Options, sockets: list[socket.socket]) -> None:
        self.kind = check(work, options)
        self._work = work
        self._options = options
        self._sockets = sockets
        self._figures = Figures(pid=os.getpid())
        self._counting = threading.Lock()
        self._draining = False
        self._lifespan: Any = None
        self._service: Any = None
        self._silence: census.Silence | None = None

    async def start(self) -> None:
        """Accepts when it returns."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._signals = []
        make, scheduler = await self._application()
        for sock in self._sockets:
            signal = parts().WorkerSignal()
            signal.add_cb(self._ended)
            make(sock)(scheduler, self._loop, signal)
            self._signals.append(signal)
        self._left = len(self._signals)
        if self._options.tls is not None and self._options.first_byte is not None:
            self._silence = census.Silence(self._sockets, self._options.first_byte)

    async def drain(self, grace: float) -> None:
        """Stop accepting, answer what has come; after `grace` seconds cut what is left."""
        self._draining = True
        ends = self._loop.time() + grace
        lame = min(LAME, grace / 2)
        while not await self._ended_within(lame):
            rest = ends - self._loop.time()
            if rest <= lame or not any(listening.queued(sock) for sock in self._sockets):
                break
        self._stop()
        if not await self._ended_within(max(0.0, ends - self._loop.time())):
            await self.abort()
        else:
            await self._close()

    async def abort(self) -> None:
        """End now: connections are cut."""
        self._draining = True
        self._stop()
        census.cut(self._sockets)
        await self._ended_within(1.0)
        await self._close()

    def figures(self) -> Figures:
        """messages: requests, where a handler is served failed ones and bytes of bodies too. connections: open now."""
        figures = self._figures + Figures()
        if self._silence is not None:
            figures.expired += self._silence.cut
        figures.connections = sum(1 for _ in census.connections(self._sockets))
        if self._service is not None:
            figures.lane, figures.why = self._service.lane, self._service.why
        return figures

    # -- granian ------------------------------------------------------------------------------------------------------

    async def _application(self) -> tuple[Callable[[socket.socket], Any], Any]:
        """What makes granian serve one socket, and the scheduler it gives requests to."""
        granian = parts()
        if self.kind == "handler":
            self._service = requests.Service(
                self._work, self._options, self._figures, self._counting, lambda: self._draining
            )
            scheduler = self._service.scheduler(granian.CallbackScheduler)
            return self._maker(granian.RSGIWorker, "serve_str", 1, websockets=False), scheduler
        self._figures.lane, self._figures.why = self.kind, f"it is an application ({self.kind.upper()})"
        if self.kind == "wsgi":
            call = granian.wrap_wsgi(self._wsgi(self._work), {}, None)
            scheduler = granian.scheduler(self._loop, call, impl_asyncio=True)
            return self._maker(granian.WSGIWorker, "serve_mtr", self._options.workers or THREADS), scheduler
        self._lifespan = granian.Lifespan(self._work)
        await self._lifespan.startup()
        if self._lifespan.interrupt:
            raise Broken("the application's lifespan startup failed") from self._lifespan.exc
        call = granian.watched(granian.wrap_asgi(self._asgi(self._work), {}, self._lifespan.state, None))
        scheduler = granian.scheduler(self._loop, call, impl_asyncio=True)
        return self._maker(granian.ASGIWorker, "serve_mtr", 1, websockets=True), scheduler

    def _maker(self, kind: Any, serve: str, threads: int, **more: bool) -> Callable[[socket.socket], Any]:
        from granian.http import HTTP1Settings, HTTP2Settings

        options = self._options
        limit = _FOREVER if options.first_byte is None else max(1, min(_FOREVER, int(options.first_byte * 1000)))
        head = HTTP1Settings(header_read_timeout=limit)
        most = max(1, min(options.max_connections, listening.raise_limit() - len(os.listdir("/proc/self/fd")) - SPARE))
        files = options.tls if isinstance(options.tls, tuple) else (None, None)
        secure: tuple[Any, ...] = (options.tls is not None, *map(_absolute, files), None, _TLS_1_2, None, [], False)
        holder = parts().SocketHolder

        def make(sock: socket.socket) -> Any:
            # It closes the descriptor that it is given.
            held = holder(os.dup(sock.fileno()), False, options.backlog)
            worker = kind(
                1, (None, held), None, 1, 512, threads, 30, most, "1", head, HTTP2Settings(), *more.values(), None,
                *secure, (None, None),
            )  # fmt: skip
            return getattr(worker, serve)

        return make

    def _ended(self) -> None:
        """In a thread of granian's: one socket is served no more."""
        self._loop.call_soon_threadsafe(self._one_less)

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._over.set()

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    def _stop(self) -> None:
        signals, self._signals = self._signals, []
        for signal in signals:
            signal.set()

    async def _close(self) -> None:
        if self._silence is not None:
            await self._silence.close()
        if self._service is not None:
            await self._service.close()
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.shutdown()
        for sock in self._sockets:
            sock.close()

    # -- applications -------------------------------------------------------------------------------------------------

    def _asgi(self, app: Any) -> Any:
        """The application, its requests counted and bounded, its last responses with `connection: close`."""
        figures, limit = self._figures, self._options.max_body

        def call(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
            figures.messages += 1  # the loop's thread alone
            if scope["type"] == "http":
                for name, value in scope["headers"]:
                    if name == b"content-length" and int(value) > limit:
                        return _refuse(send)
                    if name == b"transfer-encoding":
                        receive = _bounded(receive, limit)
                if self._draining:
                    send = _closing(send)
            return app(scope, receive, send)  # type: ignore[no-any-return]

        return call

    def _wsgi(self, app: Any) -> Any:
        figures, limit = self._figures, self._options.max_body

        def call(environ: Any, start: Any) -> Any:
            with self._counting:
                figures.messages += 1
            if "HTTP_TRANSFER_ENCODING" in environ or int(environ.get("CONTENT_LENGTH") or 0) > limit:
                chunked = "HTTP_TRANSFER_ENCODING" in environ
                start("411 Length Required" if chunked else "413 Content Too Large", [("connection", "close")])
                return [b""]
            if self._draining:
                return app(environ, lambda status, headers, *more: start(status, [*headers, web.CLOSE], *more))
            return app(environ, start)

        return call


def parts() -> SimpleNamespace:
    """What is used of granian that its documentation doesn't name."""
    from granian import _futures, _granian, asgi, wsgi

    return SimpleNamespace(
        RSGIWorker=_granian.RSGIWorker, ASGIWorker=_granian.ASGIWorker, WSGIWorker=_granian.WSGIWorker,
        SocketHolder=_granian.SocketHolder, WorkerSignal=_granian.WorkerSignal,
        CallbackScheduler=_granian.CallbackScheduler, scheduler=_futures._new_cbscheduler,
        watched=_futures._future_watcher_wrapper, wrap_asgi=asgi._callback_wrapper, wrap_wsgi=wsgi._callback_wrapper,
        Lifespan=asgi.LifespanProtocol,
    )  # fmt: skip


async def _refuse(send: Any) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})


def _bounded(receive: Any, limit: int) -> Any:
    """`receive` of a body of unknown length; over the limit the client seems to have gone."""
    size = 0

    async def bounded() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= limit else {"type": "http.disconnect"}

    return bounded


def _closing(send: Any) -> Any:
    async def closing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closing


def _absolute(file: str | None) -> str | None:
    return None if file is None else os.path.abspath(file)
