"""handler(request) -> response on granian: where it runs, and what becomes of what it returns.

An async handler is a task on the loop. A plain one is called on the loop while its calls are tiny, and on threads
otherwise: the first SEEN calls run on threads and are measured. Calls that hold the loop nevertheless, for longer than
STALLED and SHARE allow, send the handler back to the threads, to be measured anew CHANCES times. A body is read before
the call, on the loop, within limits.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from duodao.errors import Busy, UsageError
from duodao.lanes.base import Batch, Work
from duodao.lanes.thread import Threads
from duodao.servers.figures import Figures
from duodao.servers.options import Options
from duodao.servers.web import CLOSE, Headers, Request, is_async, render

SEEN = 32
"""Calls that are measured before some run on the loop."""
TINY = 100e-6
"""Seconds of a call that cost less than handing it to a thread and waiting for its turn there."""
HELD = 0.020
"""Seconds of a call that count as a stall of the loop."""
STALLED, SHARE = 0.25, 0.05
"""Seconds, and part of the time, that stalls may take: on a busy machine the quickest call is interrupted for long."""
CHANCES = 2
THREADS = 32
LANES = ("auto", "inline", "thread", "coroutine")
_PLAIN: Headers = [("content-type", "text/plain; charset=utf-8")]
_log = logging.getLogger("duodao.servers")


class TooLarge(Busy):
    """A body is over max_body."""


def check(work: Any, options: Options) -> bool:
    """Is the handler async? Raises UsageError for a lane that it can't run on."""
    asynchronous = is_async(work)
    if options.lane not in LANES:
        raise UsageError(f"lane={options.lane!r}: over HTTP a handler runs on {', '.join(LANES)}")
    if asynchronous and options.lane not in ("auto", "coroutine"):
        raise UsageError(f"{_name(work)} is an async function: it runs on lane='coroutine', not {options.lane!r}")
    if not asynchronous and options.lane == "coroutine":
        raise UsageError(f"{_name(work)} is a plain function: it would block the loop; use lane='thread'")
    return asynchronous


def _name(work: Any) -> str:
    return str(getattr(work, "__qualname__", type(work).__name__))


class Service:
    """Calls the handler. counting: a lock around `figures`; draining: are responses the last of their connections?"""

    def __init__(
        self, work: Any, options: Options, figures: Figures, counting: threading.Lock, draining: Callable[[], bool]
    ) -> None:
        self.name = _name(work)
        asynchronous = check(work, options)
        self._work = work
        self._options = options
        self._figures = figures
        self._counting = counting
        self._draining = draining
        self._loop = asyncio.get_running_loop()
        self._async = asynchronous
        self._ending = False
        self._times: list[float] = []
        self._held = 0
        self._stalled, self._since = 0.0, 0.0
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inline = options.lane == "inline"
        self._judged = options.lane != "auto"
        self.lane, self.why = options.lane, "it was asked for"
        if asynchronous:
            self.lane, self.why = "coroutine", "it is an async function"
        elif not self._judged:
            self.lane, self.why = "thread", "measuring the first calls"
        self._threads = Threads(Work(self._in_thread, self.name), options.workers or THREADS, idle=10.0)

    def scheduler(self, base: Any) -> Any:
        """What granian gives requests to; base: its CallbackScheduler."""
        loop, take = self._loop, self._take

        def schedule(watcher: Any) -> None:  # granian never lets go of what it returns: None
            loop.call_soon_threadsafe(take, watcher)

        class Scheduler(base):  # type: ignore[misc]  # a class that is only known when granian is loaded
            """Passes each request to the loop, without a task of its own."""

            def __init__(self, *_: Any) -> None:
                super().__init__()
                self._schedule_fn = schedule

        return Scheduler(loop, None, None, None, None)

    async def close(self) -> None:
        """End the threads and what still runs on the loop."""
        self._ending = True
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await self._loop.run_in_executor(None, self._threads.close, 0.0)

    # -- a request ----------------------------------------------------------------------------------------------------

    def _take(self, watcher: Any) -> None:
        """On the loop: a request has come."""
        scope = watcher.scope
        request = Request(scope.method, scope.path, scope.query_string, scope.headers, scope.client)
        if self._async or self._has_body(request):
            task = self._loop.create_task(self._at_length(watcher, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._inline:
            self._here(watcher, request)
        else:
            self._elsewhere(watcher, request)

    @staticmethod
    def _has_body(request: Request) -> bool:
        headers = request._pairs
        return "content-length" in headers or "transfer-encoding" in headers

    async def _at_length(self, watcher: Any, request: Request) -> None:
        try:
            if self._has_body(request):
                await self._read(watcher.proto, request)
            if self._async:
                self._answer(watcher, request, render(await self._work(request)))
            elif self._inline:
                self._here(watcher, request)
            else:
                self._elsewhere(watcher, request)
        except TooLarge:
            self._say(watcher, 413, "the body is too large\n", closing=True)
        except TimeoutError:
            self._say(watcher, 408, "the body did not come in time\n", closing=True)
        except BaseException as error:
            if self._ending:  # cancelled
                self._say(watcher, 503, "the server ends\n", closing=True)
                raise
            self._failed(watcher, request, error)

    async def _read(self, proto: Any, request: Request) -> None:
        limit, idle = self._options.max_body, self._options.idle
        if int(request.headers.get("content-length") or 0) > limit:
            raise TooLarge("content-length")
        chunks: list[bytes] = []
        size = 0
        source = aiter(proto)
        while True:
            try:
                async with asyncio.timeout(idle):
                    chunk = await source.__anext__()
            except StopAsyncIteration:
                break
            size += len(chunk)
            if size > limit:
                raise TooLarge("chunks")
            if not chunk:
                break
            chunks.append(chunk)
        request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _here(self, watcher: Any, request: Request) -> None:
        """Call a quick handler on the loop."""
        began = perf_counter()
        try:
            self._answer(watcher, request, render(self._work(request)))
        except BaseException as error:  # any that got away would end the loop
            self._failed(watcher, request, error)
        ended = perf_counter()
        if ended - began > HELD:
            self._stall(began, ended)

    def _elsewhere(self, watcher: Any, request: Request) -> None:
        self._threads.start(Batch((next(self._numbers),), [(watcher, request)]), _ignore)

    def _in_thread(self, given: tuple[Any, Request]) -> None:
        watcher, request = given
        began = perf_counter()
        try:
            answer = render(self._work(request))
            if not self._judged:
                self._loop.call_soon_threadsafe(self._judge, perf_counter() - began)
            self._answer(watcher, request, answer)
        except BaseException as error:  # a text that is no UTF-8 is found out when it is sent
            self._loop.call_soon_threadsafe(self._failed, watcher, request, error)

    # -- where it runs ------------------------------------------------------------------------------------------------

    def _judge(self, seconds: float) -> None:
        if self._judged:
            return
        self._times.append(seconds)
        if len(self._times) < SEEN:
            return
        from duodao.cost.advise import duration

        self._judged = True
        usual = median(self._times)
        self._times.clear()
        self._inline = usual < TINY
        self.lane = "inline" if self._inline else "thread"
        self.why = f"a call takes {duration(usual)}, {'less' if self._inline else 'more'} than a thread would cost"

    def _stall(self, began: float, ended: float) -> None:
        self._stalled = max(0.0, self._stalled - SHARE * (began - self._since)) + ended - began
        self._since = ended
        if self._stalled < STALLED:
            return
        self._held += 1
        took = (ended - began) * 1e3
        if self._options.lane == "inline":
            if self._held == 1:
                _log.warning("%s held the event loop for %.0f ms: nobody else was served; lane='auto' would run it "
                             "elsewhere", self.name, took)  # fmt: skip
            return
        _log.warning("%s held the event loop, the last time for %.0f ms: its calls go to threads", self.name, took)
        self._stalled, self._since = 0.0, 0.0
        self._inline, self.lane, self.why = False, "thread", "its calls held the event loop"
        self._judged = self._held >= CHANCES

    # -- a response: from any thread ----------------------------------------------------------------------------------

    def _answer(self, watcher: Any, request: Request, answer: tuple[int, Headers, str | bytes]) -> None:
        status, headers, body = answer
        if self._draining():
            headers = [*headers, CLOSE]
        if type(body) is str:
            watcher.proto.response_str(status, headers, body)
        else:
            watcher.proto.response_bytes(status, headers, body)
        watcher.done()
        figures = self._figures
        with self._counting:
            figures.messages += 1
            figures.received += len(request.body)
            figures.sent += len(body)

    def _failed(self, watcher: Any, request: Request, error: BaseException) -> None:
        """On the loop: the handler raised."""
        _log.error("%s failed for %s %s of %s", self.name, request.method, request.path[:200], request.peer,
                   exc_info=error)  # fmt: skip
        self._say(watcher, 500, "internal server error\n")

    def _say(self, watcher: Any, status: int, text: str, *, closing: bool = False) -> None:
        with self._counting:
            self._figures.messages += 1
            self._figures.failed += status == 500
            self._figures.overrun += status == 413
            self._figures.expired += status == 408
        watcher.proto.response_str(status, [*_PLAIN, CLOSE] if closing or self._draining() else _PLAIN, text)
        watcher.done()


def _ignore(_: Any) -> None:
    """Outcomes are responses, which have been sent."""
