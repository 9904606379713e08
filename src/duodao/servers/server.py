"""A server from outside: start it, ask where it is, end it.

Server ──► sockets ──┬─ processes = 1: a Worker on an event loop in a thread of the server's own
                     └─ processes > 1: a Herd of processes, one socket each
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol, Unpack

from duodao.errors import Closed
from duodao.lanes.eventloop import LoopThread, post
from duodao.servers import listening, tls
from duodao.servers.figures import Figures
from duodao.servers.handler import Handler
from duodao.servers.options import Options, ServeOptions, check


class Carrier(Protocol):
    """What serves the sockets: Alone here, or herd.Herd. Its methods may be called from any thread."""

    error: BaseException | None

    @property
    def accepting(self) -> bool:
        """It has started."""
        ...

    def start(self) -> None:
        """Returns when it accepts."""
        ...

    def pids(self) -> list[int]:
        """Of the processes that serve."""
        ...

    def figures(self) -> list[Figures]:
        """One per process."""
        ...

    def drain(self) -> None:
        """End within options.grace; returns when it has."""
        ...

    def close(self) -> None:
        """End now; returns when it has."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended."""
        ...


class Alone:
    """Serves in this process, on an event loop in a thread of its own."""

    def __init__(self, work: Any, options: Options, sockets: Sequence[socket.socket]) -> None:
        from duodao.servers.entry import make_worker

        self.error: BaseException | None = None
        self._accepting = False
        self._options = options
        self._sockets = list(sockets)
        self._worker = make_worker(work, options, list(sockets))
        self._thread: LoopThread | None = None
        self._lock = threading.Lock()
        self._asking: set[queue.SimpleQueue[tuple[Any, BaseException | None]]] = set()  # who waits for the loop
        self._ending = False
        self._ended = threading.Event()
        self._last: list[Figures] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Returns when it accepts."""
        self._thread = LoopThread()
        try:
            self._on_loop(self._accept)
        except BaseException:
            loop = self._thread.loop
            # Its listening sockets must be closed before the loop is; the loop may be held, so nobody waits for it.
            post(loop, lambda: self._tasks.add(loop.create_task(self._worker.abort())))
            self._end()
            raise

    async def _accept(self) -> None:
        await self._worker.start()
        self._accepting = True

    @property
    def accepting(self) -> bool:
        """It has started."""
        return self._accepting

    def pids(self) -> list[int]:
        """This process."""
        return [os.getpid()]

    def figures(self) -> list[Figures]:
        """Of this process; the last ones when it has ended."""
        with contextlib.suppress(Closed):
            self._last = [self._on_loop(self._look)]
        return self._last

    def drain(self) -> None:
        """End within options.grace."""
        for sock in self._sockets:
            if sock.fileno() >= 0:
                listening.shut(sock)
        self._finish(lambda: self._worker.drain(self._options.grace))

    def close(self) -> None:
        """End now. What is being drained is cut short."""
        self._finish(self._worker.abort)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended."""
        return self._ended.wait(timeout)

    def _finish(self, how: Callable[[], Any]) -> None:
        with self._lock:
            first, self._ending = not self._ending, True
        with contextlib.suppress(Closed):
            self._on_loop(how)
            if first:
                self._last = [self._on_loop(self._look)]
        if first:
            self._end()
        else:
            self._ended.wait()

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.close(1.0)
        with self._lock:
            self._ended.set()
            for outcome in self._asking:  # what the loop never came to
                outcome.put((None, Closed("the server has ended")))

    async def _look(self) -> Figures:
        return self._worker.figures()  # type: ignore[no-any-return]

    def _on_loop(self, make: Callable[[], Any]) -> Any:
        """What a coroutine on the server's loop returns or raises. Closed when there is no loop any more."""
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        async def run() -> None:
            try:
                outcome.put((await make(), None))
            except asyncio.CancelledError:  # the loop ends
                outcome.put((None, Closed("the server has ended")))
            except BaseException as error:
                outcome.put((None, error))

        def begin() -> None:
            task = loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        with self._lock:
            if self._thread is None or self._ended.is_set():
                raise Closed("the server has ended")
            loop = self._thread.loop
            self._asking.add(outcome)
        post(loop, begin)
        value, error = outcome.get()
        with self._lock:
            self._asking.discard(outcome)
        if error is not None:
            raise error
        return value


class Server:
    """A server of `work` at `address`; `with` starts it, and drains it at the end. Source: M27.

    work: handler(bytes) -> bytes, handler(str) -> str (by annotation), async or not; None is no reply. Or an async
    function of a Session. With http:// or https://: an ASGI or WSGI app, or handler(request) -> response.
    address: "tcp://127.0.0.1:1688"; port 0 takes one that is free. options: see ServeOptions.

    Raises UsageError for what can't be served; nothing listens then.
    """

    def __init__(self, work: Any, address: str, **options: Unpack[ServeOptions]) -> None:
        self._work = work
        self._options = check(address, dict(options))
        self._carrier: Carrier | None = None
        self._host, self._port = self._options.host, self._options.port
        tls.check(self._options)
        if self._options.scheme == "tcp":
            Handler(work, self._options)
        else:
            from duodao.servers import http

            http.check(work, self._options)

    def start(self) -> Server:
        """Accept connections; returns when it does. Raises Broken, naming the address, when it can't be bound."""
        if self._carrier is not None:
            raise Closed("a Server starts once: make another")
        listening.raise_limit()  # each connection is a descriptor
        self._sockets = sockets = listening.open_all(self._options)
        try:
            self._port = sockets[0].getsockname()[1]
            if self._options.processes > 1:
                from duodao.servers.herd import Herd

                carrier: Carrier = Herd(self._work, self._options, sockets)
            else:
                carrier = Alone(self._work, self._options, sockets)
            self._carrier = carrier
            carrier.start()
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return self

    @property
    def address(self) -> str:
        """Where it serves, with the real port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._options.scheme}://{host}:{self._port}"

    @property
    def accepting(self) -> bool:
        """It has started, and takes connections unless it has ended since."""
        return self._carrier is not None and self._carrier.accepting

    def pids(self) -> list[int]:
        """The processes that serve."""
        return self._started().pids()

    def figures(self) -> list[Figures]:
        """One per process; the last ones when it has ended."""
        return self._started().figures()

    def drain(self) -> None:
        """Accept no more, answer what has come within `grace` seconds, tell sessions; returns when it is over."""
        carrier = self._started()
        carrier.drain()
        self._close_sockets()

    def close(self) -> None:
        """End now: connections are cut, calls are not waited for."""
        carrier = self._started()
        carrier.close()
        self._close_sockets()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended; False after `timeout` seconds. Raises what it has ended by, if not by drain or close."""
        carrier = self._started()
        ended = carrier.wait(timeout)
        if ended and carrier.error is not None:
            raise carrier.error
        return ended

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.drain()
        else:
            self.close()

    def _started(self) -> Carrier:
        if self._carrier is None:
            raise Closed("the server has not been started")
        return self._carrier

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()


def serve(work: Any, address: str, **options: Unpack[ServeOptions]) -> list[Figures]:
    """Serve until SIGTERM or SIGINT; then drain, and return the last figures. A second signal ends at once.

    A signal that comes before it accepts connections ends it at once, with no figures.

    Arguments and errors: see Server. The signals are taken while it runs, if this is the main thread.
    """
    server = Server(work, address, **options)
    with _inbox() as (inbox, tell):
        try:
            with _interruptible(server):
                server.start()
        except KeyboardInterrupt:
            with contextlib.suppress(Closed):  # it had not begun
                server.close()
            return []
        threads = [_wait_in_thread(server.wait, tell)]
        while (said := os.read(inbox, 1)) != _ENDED:
            if said[0] not in _SIGNALS:
                continue
            if len(threads) == 1:
                threads.append(_wait_in_thread(server.drain))
            else:
                server.close()
        for thread in threads:
            thread.join()
    server.close()
    server.wait(0)
    return server.figures()


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ENDED = b"\0"


def _wait_in_thread(call: Callable[[], Any], then: Callable[[], Any] | None = None) -> threading.Thread:
    def run() -> None:
        try:
            with contextlib.suppress(Exception):  # asked for again by who started it
                call()
        finally:
            if then is not None:
                then()

    thread = threading.Thread(target=run, name="duodao-serve", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def _inbox() -> Iterator[tuple[int, Callable[[], Any]]]:
    """A pipe in which signals are bytes, and what writes that the server has ended.

    The interpreter itself writes the signals. A handler of ours could come between the main thread's last look at
    signals and its going to sleep: it would wait on, and the signal with it.
    """
    inbox, told = os.pipe()
    os.set_blocking(told, False)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _noted) for number in _SIGNALS} if main else {}
    woken = signal.set_wakeup_fd(told, warn_on_full_buffer=False) if main else -1
    try:
        yield inbox, lambda: os.write(told, _ENDED)
    finally:
        if main:
            signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(inbox)


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal is in the inbox already."""


@contextlib.contextmanager
def _interruptible(server: Server) -> Iterator[None]:
    """Signals of the inbox raise KeyboardInterrupt until it accepts: what is served may take for ever to load."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not server.accepting:
            signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in _SIGNALS:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, _noted)
