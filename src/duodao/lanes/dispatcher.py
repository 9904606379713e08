"""The thread of a lane whose calls run in other processes: it alone writes what didn't fit, reads, starts and buries.

It waits in one poll for all pipes, for a bell that other threads ring, and for the earliest of the lane's deadlines.
What a lane does then is its own: `_feed`, `_tend`, `_due`, `_bury`, `_not_started`, `_wind_up`, `_release_common`.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from time import monotonic

from duodao.errors import DuodaoError
from duodao.lanes.link import Link
from duodao.lanes.wire import Frame

_BUFFER = 256 << 10


class Dispatcher:
    """The workers of a lane, and the thread that attends to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._unborn: deque[Link] = deque()
        self._ended: deque[Link] = deque()
        self._closing: float | None = None
        self._thread: threading.Thread | None = None
        self._wake_r = self._wake_w = -1
        self._buffer = bytearray(_BUFFER)

    # What the lane does

    def _feed(self) -> None:
        raise NotImplementedError

    def _take(self, link: Link, frame: Frame) -> None:
        """Act on what a worker sent."""
        raise NotImplementedError

    def _tend(self) -> None:
        """Act on what has become due; under the lock."""
        raise NotImplementedError

    def _due(self) -> float | None:
        """When something becomes due though nothing arrives; under the lock."""
        raise NotImplementedError

    def _bury(self, link: Link) -> None:
        """Its process has ended."""
        raise NotImplementedError

    def _not_started(self, link: Link, error: Exception) -> None:
        """Its process could not be started."""
        raise NotImplementedError

    def _wind_up(self) -> bool:
        """One step of closing; True when nothing is left."""
        raise NotImplementedError

    def _release_common(self) -> None:
        """The end: no worker looks at what the run shared."""
        raise NotImplementedError

    def end(self, error: BaseException) -> None:
        """The run is over with this error."""
        raise NotImplementedError

    # The thread

    def _close_at(self, grace: float) -> None:
        """Have the thread wind up within `grace` seconds; under the lock."""
        until = monotonic() + max(grace, 0.0)
        self._closing = until if self._closing is None else min(self._closing, until)

    def _await_end(self) -> None:
        """Wait until the thread has wound up. Idempotent."""
        thread = self._thread
        if thread is None:
            self._release_common()
        elif thread is not threading.current_thread():
            self._wake()
            with contextlib.suppress(RuntimeError):  # Ctrl-C came before it had started; it ends by itself if it does
                thread.join()

    def _on_exit(self, link: Link) -> None:
        self._ended.append(link)
        self._wake()

    def _fork(self) -> None:
        while self._unborn:
            link = self._unborn.popleft()
            try:
                link.fork()
            except (OSError, DuodaoError) as error:
                self._not_started(link, error)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._wake_r, self._wake_w = os.pipe()
            os.set_blocking(self._wake_r, False)
            os.set_blocking(self._wake_w, False)
            self._thread = threading.Thread(target=self._dispatch, name="duodao-process-lane", daemon=True)
            self._thread.start()

    def _wake(self) -> None:
        with self._lock:
            if self._wake_w >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_w, b"\0")

    def _dispatch(self) -> None:
        readers: dict[int, Link] = {}
        writers: dict[int, Link] = {}
        try:
            while True:
                self._feed()
                self._fork()
                self._attend(readers, writers)
                for fd, _ in self._poll(readers, writers):
                    if fd in readers:
                        self._read(readers[fd])
                    elif fd in writers:
                        with self._lock:
                            writers[fd].flush()
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_r, 4096)
                while self._ended:
                    self._bury(self._ended.popleft())
                with self._lock:
                    self._tend()
                if self._closing is not None and self._wind_up():
                    return
        except BaseException as error:  # a fault of ours: the run must end with it, not wait for ever
            self.end(error)
            with self._lock:  # `start` may be writing to one: its number must not be another file's by then
                while self._links:
                    link = self._links.pop()
                    link.kill("fault")
                    link.close()
        finally:
            self._release_common()
            with self._lock:
                os.close(self._wake_r)
                os.close(self._wake_w)
                self._wake_r = self._wake_w = -1

    def _attend(self, readers: dict[int, Link], writers: dict[int, Link]) -> None:
        readers.clear()
        writers.clear()
        with self._lock:
            for link in self._links:
                if not link.at_end:
                    readers[link.input_fd] = link
                if link.backlog:
                    writers[link.output_fd] = link

    def _poll(self, readers: dict[int, Link], writers: dict[int, Link]) -> list[tuple[int, int]]:
        poller = select.poll()
        for fd in (self._wake_r, *readers):
            poller.register(fd, select.POLLIN)
        for fd in writers:
            poller.register(fd, select.POLLOUT)
        with self._lock:
            due = self._due()
        return poller.poll(None if due is None else min(max(0.0, (due - monotonic()) * 1000 + 1), 3_600_000))

    def _read(self, link: Link) -> bool:
        """Take what is there; False when there is nothing more."""
        try:
            for frame in link.reader.read():
                self._take(link, frame)
        except BlockingIOError:
            return False
        except EOFError:
            link.at_end = True
            return False
        return True
