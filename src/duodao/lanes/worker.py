"""What runs in a worker process: runs, each with its function, and batches of items, until the pipe ends.

It is forked from the guard with one pipe for each direction and a progress slot in the arena. It holds a record lock on
its task pipe while it reads a frame, so that its lane can take back, whole, what it has not begun to read: a batch
behind an item that turns out long then goes to a worker that is free.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import importlib
import os
import pickle
import random
import select
import sys
import threading
import time
from time import monotonic
from typing import Any

from duodao import arena
from duodao.errors import SetupFailed
from duodao.lanes import payload, wire
from duodao.lanes.base import PROMPT
from duodao.lanes.fleet import changed, is_own
from duodao.lanes.forward import apply_levels
from duodao.lanes.loops import FAST, Flusher, Job, Slot, run_apart, run_careful, run_fast
from duodao.lanes.outlet import Outlet, packed
from duodao.lanes.stint import Stint, unread
from duodao.lanes.wire import CAREFUL, ITEMISED, LAST, Frame, Raised, dump_error, dumps

IDLE = 10.0
"""Seconds. A worker without a run ends itself then."""
_MEMORY_EVERY = 0.005
_MARKER = "DUODAO_GUARD"
_QUEUE_FILES = "duodao.channel.tray"
"""Where it is loaded, a function may have held a queue's file, often in a cycle: it must let go with its run."""


def main(arg: bytes, fds: list[int]) -> int:
    """The entry that the guard calls: fds are the task pipe's read end and the result pipe's write end."""
    faulthandler.enable(2)
    _Worker(int(arg), *fds).serve()
    return 0


class _Worker:
    def __init__(self, slot: int, tasks: int, results: int) -> None:
        self._tasks = tasks
        self._slot = Slot(arena.get().view(slot, arena.SLOT))
        self._flushing = threading.Lock()
        self._flusher = Flusher(self._look)
        self._born = _wall_ns()
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._kept: list[payload.Views] = []
        self._outbox: payload.Outbox | None = None
        self._run: Stint | None = None
        self._outlet = Outlet(results, tasks)
        self._send = self._outlet.send

    # Frames

    def serve(self) -> None:
        while True:
            frame = self._read()
            if frame is None:
                break
            if frame.kind == wire.BATCH:
                if self._run is not None and not self._batch(self._run, frame):
                    break
            elif frame.kind == wire.RUN:
                self._begin(frame)
            elif frame.kind == wire.OUTBOX:
                self._outbox = payload.Outbox(*frame.meta)
            else:
                self._end()
        if self._run is not None:
            self._run.close()
        self._outlet.finish()

    def _read(self) -> Frame | None:
        if self._run is None:
            poller = select.poll()
            poller.register(self._tasks, select.POLLIN)
            if not poller.poll(IDLE * 1000):
                return None
        with contextlib.suppress(OSError):  # a system without record locks on pipes: nothing is ever taken back
            fcntl.lockf(self._tasks, fcntl.LOCK_SH)
        try:
            return wire.read_frame(self._tasks)
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._tasks, fcntl.LOCK_UN)

    # Runs

    def _begin(self, frame: Frame) -> None:
        self._outbox = None
        cwd, path, argv, environ, levels, common = frame.meta
        try:
            adopt(cwd, path, argv, environ)
            apply_levels(levels, self._outlet.logs)
            self._run = Stint(pickle.loads(frame.body), common)
        except Raised as error:
            self._send(wire.UNLOADED, body=dump_error(error))
            return

    def _end(self) -> None:
        """Forget the run. Whoever still holds shared memory of it can't be used again: it would see others' data."""
        run, self._run = self._run, None
        clean = run is None or run.close()
        self._kept = payload.release_all(self._kept, lambda _: None)
        self._outbox = None
        if not clean or self._kept or (run is not None and not run.release()) or _QUEUE_FILES in sys.modules:
            if clean and run is not None and run.release():
                run = None
            gc.collect()
            self._kept = payload.release_all(self._kept, lambda _: None)
            clean = clean and not self._kept and (run is None or run.release())
        self._outlet.finish()
        modules = _own_modules()
        clean = clean and all(when < self._born for _, when in modules)
        self._send(wire.ENDED, meta=(clean, modules))

    # Batches

    def _batch(self, run: Stint, frame: Frame) -> bool:
        """Run one; False when this worker must be replaced."""
        try:
            call = run.opened()
            if not run.told:
                run.told = True
                self._send(wire.READY)
        except SetupFailed as error:
            self._send(wire.FATAL, meta=str(error), body=dump_error(error.__cause__ or error))
            return False
        job = Job(frame.seq, bool(frame.flags & ITEMISED))
        ids, piece, places = frame.meta if frame.meta is not None else (None, None, ())
        careful = bool(frame.flags & CAREFUL) or run.careful or run.pace >= FAST
        if job.itemised or frame.number == 1:
            self._slot.note(job.seq, 0)  # a death while it is unpickled is that item's
        if piece is not None:
            job.views = payload.Views(piece, places)
        try:
            items = pickle.loads(frame.body, buffers=job.views.buffers if job.views else ())
        except Raised as error:
            self._unread(job, frame.number, error)
            return True
        frame = frame._replace(body=b"")
        if job.itemised:
            call = run.itemised(call)
        if job.views is not None:
            items = payload.Thawed(items)
        if run.work.seed is not None:
            items = zip(items, range(*ids) if isinstance(ids, tuple) else ids or (), strict=True)
        count = frame.number
        if count > 1:
            self._flusher.begin(job)
        whole = True
        began = monotonic()
        if run.work.apart:
            run_apart(call, items, job, self._slot, self._flush)
            run.calls += len(job.out)
            whole = run.work.max_calls is None or run.calls < run.work.max_calls
        elif careful:
            whole = run_careful(call, items, job, self._slot, self._flush, self._full if run.work.max_memory else None)
        else:
            run_fast(call, items, job)
        run.pace = (monotonic() - began) / count
        self._flusher.end()
        del items, call
        self._flush(job, last=whole or run.work.apart)
        self._slot.idle()
        if not whole:
            self._send(wire.REPLACE, job.seq)
        return whole

    def _unread(self, job: Job, count: int, error: BaseException) -> None:
        """The items can't be unpickled. One alone has its error; of several the lane must send each by itself."""
        if count == 1:
            job.errors[0] = unread(error)
            job.out.append(None)
            self._flush(job, last=True)
        else:
            self._send(wire.UNREAD, job.seq)
        self._slot.idle()

    def _look(self, job: Job) -> None:
        """The batch runs long: send what is done, or give back what its present call holds up."""
        if job.rest is None:
            self._flush(job)
        elif monotonic() - self._slot.read()[2] >= PROMPT:
            with self._flushing:
                held = 0
                with contextlib.suppress(IndexError):
                    while True:
                        job.rest.pop()
                        held += 1
                if held:
                    self._send(wire.RETURNED, job.seq, count=held)

    def _flush(self, job: Job, last: bool = False) -> None:
        """Send what is done and was not sent yet. Called by the loops and by the flusher's thread."""
        with self._flushing:
            end = len(job.out)
            if end <= job.sent and not last:
                return
            while True:
                until = self._send_part(job, job.sent, end, last)
                if until >= end:
                    break

    def _send_part(self, job: Job, first: int, end: int, last: bool) -> int:
        """Send the outcomes from `first` on, as far as they may travel together; where the next ones begin."""
        values = job.out[first:end]
        errors = {index - first: blob for index, blob in list(job.errors.items()) if first <= index < end}
        body, itemised, large = self._pack(job, values, errors)
        if large is not None and large.size > payload.SPAN and len(values) > 1:
            end = first + max(1, len(values) * payload.SPAN // large.size)
            values = job.out[first:end]
            errors = {index: blob for index, blob in errors.items() if index < end - first}
            body, itemised, large = self._pack(job, values, errors)
        where = None
        if large is not None:
            where = self._outbox.put(large) if self._outbox is not None else None
            if where is None:  # no room in the outbox now: into the pickle after all
                body = dumps(values)
            job.out[first:end] = [None] * len(values)
        each = job.each[first:end] if job.each is not None else None
        last = last and end == len(job.out)
        del values, large
        kept, freed = self._let_go(job) if last else (False, [])
        if each is None:
            seconds = monotonic() - job.began - job.told
            job.told += seconds
        else:
            seconds = sum(each)
        job.sent = end
        plain = not (errors or each or where or kept or freed)
        meta = None if plain else (errors, each, where, kept, freed)
        flags = (ITEMISED if itemised else 0) | (LAST if last else 0)
        self._send(wire.PART, job.seq, flags=flags, count=end - first, seconds=seconds, meta=meta, body=body)
        return end

    def _let_go(self, job: Job) -> tuple[bool, list[int]]:
        """Release the batch's large inputs: whether one is still in use, and the pieces of earlier ones that no
        longer are."""
        freed: list[int] = []
        if self._kept:
            self._kept = payload.release_all(self._kept, freed.append)
        job.out.clear()
        if job.views is None or job.views.release():
            return False, freed
        self._kept.append(job.views)
        return True, freed

    @staticmethod
    def _pack(job: Job, values: list[Any], errors: dict[int, bytes]) -> tuple[bytes, bool, payload.Buffers | None]:
        """The values pickled; when one can't be, each by itself, and the bad ones among the errors."""
        if job.itemised:
            return wire.plain(values), True, None
        return packed(values, errors)

    def _full(self) -> bool:
        """Does the worker hold more than `max_memory`? Looked at every 5 ms at most: reading it takes 10 us."""
        run = self._run
        now = monotonic()
        if run is None or now - run.looked < _MEMORY_EVERY:
            return False
        run.looked = now
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * self._page > (run.work.max_memory or 0)


def adopt(cwd: str, path: list[str], argv: list[str], environ: dict[str, str]) -> None:
    """Be where the caller is, and start from a random state that no other worker has."""
    marker = os.environ.get(_MARKER)
    if marker is not None:
        environ = {**environ, _MARKER: marker}  # by it our own descendants are known, not the caller's
    if dict(os.environ) != environ:
        os.environ.clear()
        os.environ.update(environ)
    os.chdir(cwd)
    sys.path[:] = path
    sys.argv[:] = argv
    importlib.invalidate_caches()  # a module written a moment ago must be found
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _own_modules() -> list[tuple[str, int]]:
    """The source files, and when they changed, of the modules here that a user may be editing."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [(file, changed(file)) for file in files if isinstance(file, str) and is_own(file)]


def _wall_ns() -> int:
    """Now, as file systems stamp it: their clock ticks some 4 ms late at most, which errs on the safe side."""
    return time.time_ns()
