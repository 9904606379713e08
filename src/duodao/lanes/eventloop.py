"""An event loop in a thread of its own: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from duodao.errors import UsageError
from duodao.sync import greenlets

_SOON = 10.0
"""Seconds for a thread that the system has made to come to its first instruction."""


def launch(thread: threading.Thread) -> None:
    """Start a thread. A Ctrl-C that comes meanwhile is raised when the thread runs, so that it can be joined."""
    try:
        thread.start()
    except BaseException:
        runs = getattr(thread, "_started", None)
        if runs is not None and thread in threading.enumerate():
            runs.wait(_SOON)
        raise


class LoopThread:
    """Runs from the first moment; ends, and closes its loop, when something on the loop calls `loop.stop()`.

    The thread is a daemon: a call that blocks the loop can't be stopped, and must not keep the program alive.
    UsageError where gevent has patched the threads.
    """

    def __init__(self) -> None:
        if greenlets.patched():
            raise UsageError(
                "async functions need a thread with an event loop, and here gevent has made greenlets of all threads: "
                "run them outside of lane='greenlet'"
            )
        try:
            import uvloop
        except ImportError:
            self.loop = asyncio.new_event_loop()
        else:
            self.loop = uvloop.new_event_loop()
        self._finishing: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._main, name="duodao-coroutine", daemon=True)
        try:
            launch(self.thread)
        except BaseException:  # Ctrl-C: it may be running, and nobody will hold it
            if self.thread.is_alive():
                post(self.loop, self.loop.stop)
            else:
                self.loop.close()
            raise

    def _main(self) -> None:
        if not hasattr(self.loop, "_thread_id"):  # uvloop keeps it to itself; the search for deadlocks asks for it
            with contextlib.suppress(AttributeError):
                self.loop._thread_id = threading.get_ident()  # type: ignore[attr-defined]
        try:
            while not self._run():
                pass
        finally:
            self.loop.close()

    def _run(self) -> bool:
        """Until something stops the loop. False: a task has called sys.exit(), which ends that task, not all others."""
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            self.loop.call_exception_handler({"message": "a task tried to end the program", "exception": error})
            return False
        return True

    def join(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        self.thread.join(seconds)

    def close(self, grace: float) -> None:
        """Cancel what still runs on the loop, and end it as asyncio.run does, in at most about `grace` seconds each."""
        post(self.loop, self._finish_soon, grace)
        if threading.current_thread() is not self.thread:
            self.join(2 * grace + 1.0)

    def _finish_soon(self, grace: float) -> None:
        if self._finishing is None:  # a second one would be left when the first has stopped the loop
            self._finishing = self.loop.create_task(self._finish(grace))

    async def _finish(self, grace: float) -> None:
        loop = self.loop
        try:
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest, timeout=grace)
            ends = [loop.create_task(loop.shutdown_asyncgens()), loop.create_task(loop.shutdown_default_executor())]
            await asyncio.wait(ends, timeout=grace)
        finally:
            loop.stop()


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any], *args: Any) -> None:
    """Call it on the loop: at once from the loop's own thread, soon from another, never when the loop is closed."""
    if asyncio._get_running_loop() is loop:
        callback(*args)
        return
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
