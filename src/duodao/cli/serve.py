"""`duodao serve FILE.py:HANDLER ADDRESS`: serve until it is asked to end, then drain."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import click

import duodao
from duodao.cli import target
from duodao.cli.explain import OK
from duodao.cli.interrupt import INTERRUPTED, Interrupts, write
from duodao.cli.options import Seconds, Size
from duodao.errors import Broken, Closed, DuodaoError, UsageError
from duodao.watch import wording

if TYPE_CHECKING:
    from types import FrameType

    from duodao import Server

_COUNTS = ("failed", "refused", "expired", "overrun", "dropped")


class Limit(Seconds):
    """A time over 0, or none."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; infinity for none."""
        return math.inf if value == "none" else super().convert(value, param, ctx)


@click.command(
    "serve",
    epilog="Exit codes: 0 it drained, 1 it ended by an error, 2 bad usage, 130 stopped at once. Ctrl-C or SIGTERM once "
    "drains: no new connections, what has come is answered; twice stops at once. SIGUSR1 prints the figures.",
)
@click.argument("handler", metavar="FILE.py:HANDLER")
@click.argument("address", metavar="ADDRESS")
@click.option("--framing", type=click.Choice(["line", "length", "raw"]), help="What a message is, over tcp://. [line]")
@click.option("--text/--bytes", default=None, help="Messages are str or bytes. [as the handler is annotated]")
@click.option("--lane", help="Where calls run: auto (measures), inline, thread, process, coroutine. [auto]")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Calls in flight at most, per process.")
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="Processes that serve. [1]")
@click.option("--backlog", type=click.IntRange(min=1), metavar="N", help="Connections the system queues. [4096]")
@click.option("--max-connections", type=click.IntRange(min=1), metavar="N", help="Open at once, per process. [20000]")
@click.option("--max-frame", type=Size(), metavar="SIZE", help="Largest message. [64K]")
@click.option("--max-body", type=Size(), metavar="SIZE", help="Largest body of an HTTP request. [1M]")
@click.option("--write-high", type=Size(), metavar="SIZE", help="Unsent bytes at which a client is read no more. [64K]")
@click.option("--idle", type=Limit(), metavar="TIME|none", help="Limit of a silent connection. [60]")
@click.option("--first-byte", type=Limit(), metavar="TIME|none", help="Limit until the first byte or header. [10]")
@click.option("--stall", type=Limit(), metavar="TIME|none", help="Limit of leaving replies unread. [30]")
@click.option("--grace", type=Seconds(zero=True), metavar="TIME", help="What calls in flight get at the end. [30]")
@click.option("--cert", metavar="FILE", help="TLS: the certificate with its chain, PEM.")
@click.option("--key", metavar="FILE", help="TLS: its key, PEM.")
@click.option("--proxy-from", multiple=True, metavar="NETWORK", help="Peers that send a PROXY header: 10.0.0.0/8.")
@click.option("--figures", type=Seconds(), metavar="TIME", help="Print figures this often.")
def command(handler: str, address: str, figures: float | None, **given: Any) -> int:
    """Serve HANDLER at ADDRESS: tcp://127.0.0.1:1688, http://0.0.0.0:8000 or https://…; port 0 takes a free one.

    Over tcp, HANDLER is a plain or async function of a message that returns the reply, or an async function of a
    session. Over http, it is an ASGI or WSGI application, or a function of a request that returns the response.
    The address goes to stdout when it can be reached; everything else to stderr.
    """
    work = target.load_function(handler)
    server = duodao.Server(work, address, **_options(given))
    return _drive(server, handler, figures)


def _options(given: dict[str, Any]) -> Any:
    """The options of duodao.serve that the command line's mean; only those that were given."""
    cert, key = given.pop("cert"), given.pop("key")
    if (cert is None) != (key is None):
        raise UsageError("--cert FILE and --key FILE belong together")
    options = {name: value for name, value in given.items() if value is not None and value != ()}
    if cert is not None:
        options["tls"] = (cert, key)
    return {name: None if value == math.inf else value for name, value in options.items()}


def _drive(server: Server, name: str, every: float | None) -> int:
    inbox = Inbox()
    enders: list[threading.Thread] = []
    accepting = False

    def drain() -> None:
        if not accepting:
            raise KeyboardInterrupt  # there is nothing to finish
        enders.append(threading.Thread(target=server.drain, name="duodao-drain", daemon=True))
        enders[-1].start()

    def ask(_number: int, _frame: FrameType | None) -> None:
        inbox.put("figures")

    waiter = threading.Thread(target=_await, args=(server, inbox), name="duodao-wait", daemon=True)
    before = signal.signal(signal.SIGUSR1, ask)
    try:
        with Interrupts(drain, lambda text: write(f"duodao: {text}\n")):
            _start(server, name)
            accepting = True
            waiter.start()
            _show(server.address)
            many = len(server.pids())
            _say(f"serving {name} in {'one process' if many == 1 else f'{many} processes'}")
            _watch(server, inbox, every)
            for thread in (waiter, *enders):
                thread.join()
    except KeyboardInterrupt:
        with contextlib.suppress(Closed):  # it had not begun to start
            server.close()
        _say("stopped at once: " + ("calls in flight were not answered" if accepting else "it did not serve yet"))
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGUSR1, before)
        inbox.close()
    _tell(server)
    server.wait(0)  # raises what it has ended by
    return OK


def _start(server: Server, name: str) -> None:
    try:
        server.start()
    except DuodaoError:
        raise
    except Exception as error:  # of the system, or of the user's file in another process
        raise Broken(f"{name} can't be served: {type(error).__name__}: {error}") from error


class Inbox:
    """News for the main thread, which waits for them in a pipe. The interpreter writes signals into it, too.

    A handler may come between the main thread's last look at signals and its going to sleep: in a queue it would sleep
    on, and a KeyboardInterrupt with it.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nobody writes to a pipe that is closed, whose number is another file's
        self._bell, self._told = os.pipe()
        for fd in (self._bell, self._told):
            os.set_blocking(fd, False)
        self._before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)

    def put(self, news: str) -> None:
        """From any thread, or a handler."""
        self._news.put(news)
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe: it is awake already
            if self._told >= 0:
                os.write(self._told, b"!")

    def get(self, timeout: float | None) -> str:
        """The next; queue.Empty after `timeout` seconds."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            with contextlib.suppress(queue.Empty):
                return self._news.get_nowait()
            rest = until - time.monotonic()
            if rest <= 0:
                raise queue.Empty
            if select.select([self._bell], [], [], None if rest == math.inf else rest)[0]:
                os.read(self._bell, 4096)

    def close(self) -> None:
        """Give signals back to who had them."""
        signal.set_wakeup_fd(self._before)
        with self._lock:
            told, self._told = self._told, -1
        os.close(told)
        os.close(self._bell)


def _await(server: Server, inbox: Inbox) -> None:
    with contextlib.suppress(Exception):  # asked for again in the main thread
        server.wait()
    inbox.put("ended")


def _watch(server: Server, inbox: Inbox, every: float | None) -> None:
    """Print figures when asked to, and every so often, until the server has ended."""
    while True:
        try:
            said = inbox.get(timeout=every)
        except queue.Empty:
            said = "figures"
        if said == "ended":
            return
        _tell(server)


def _tell(server: Server) -> None:
    for each in server.figures():
        counts = [wording.many(each.messages, "message"), f"{wording.count(each.connections)} connections open"]
        counts += [f"{wording.count(each.accepted)} accepted"] if each.accepted else []
        counts += [f"{wording.count(each.received)} bytes in, {wording.count(each.sent)} out"] if each.received else []
        counts += [f"{wording.count(getattr(each, name))} {name}" for name in _COUNTS if getattr(each, name)]
        why = f" ({each.why})" if each.why else ""
        _say(f"process {each.pid}: {', '.join(counts)}; {each.lane}{why}")


def _show(address: str) -> None:
    try:
        print(address, flush=True)
    except OSError as error:  # who asked for it has gone; the clients have not
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else what is left unwritten fails once more at the end
        _say(f"can't write to stdout ({error.strerror}); serving at {address}")


def _say(text: str) -> None:
    write(f"duodao: {wording.clean(text)}\n")
