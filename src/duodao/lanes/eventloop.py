"""An event loop in a thread of its own: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class LoopThread:
    """Runs from the first moment; ends, and closes its loop, when something on the loop calls `loop.stop()`.

    The thread is a daemon: a call that blocks the loop can't be stopped, and must not keep the program alive.
    """

    def __init__(self) -> None:
        try:
            import uvloop
        except ImportError:
            self.loop = asyncio.new_event_loop()
        else:
            self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="duodao-coroutine", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def join(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        self._thread.join(seconds)


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
