"""What runs in a worker process: runs, each with its function, and batches of items, until the pipe ends.

It is forked from the guard with one pipe for each direction and a progress slot in the arena. It holds a record lock on
its task pipe while it reads a frame, so that its lane can take back, whole, what it has not begun to read: a batch
behind an item that turns out long then goes to a worker that is free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import fcntl
import gc
import importlib
import logging
import os
import pickle
import random
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

from duodao import arena
from duodao.errors import NotPicklable, SetupFailed
from duodao.lanes import payload, wire
from duodao.lanes.base import Work, bind
from duodao.lanes.fleet import changed, is_own
from duodao.lanes.forward import LineStream, LogHandler, apply_levels
from duodao.lanes.loops import FAST, Flusher, Job, Slot, run_careful, run_fast
from duodao.lanes.resources import open_all
from duodao.lanes.seeds import bind_pairs
from duodao.lanes.wire import CAREFUL, ITEMISED, LAST, Frame, Raised, dump_error, dumps

IDLE = 10.0
"""Seconds. A worker without a run ends itself then."""
_MEMORY_EVERY = 0.005
_MARKER = "DUODAO_GUARD"


def main(arg: bytes, fds: list[int]) -> int:
    """The entry that the guard calls: fds are the task pipe's read end and the result pipe's write end."""
    faulthandler.enable(2)
    _Worker(int(arg), *fds).serve()
    return 0


class _Worker:
    def __init__(self, slot: int, tasks: int, results: int) -> None:
        self._tasks = tasks
        self._results = results
        self._slot = Slot(arena.get().view(slot, arena.SLOT))
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._flusher = Flusher(self._flush)
        self._born = _wall_ns()
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._kept: list[payload.Views] = []
        self._outbox: payload.Outbox | None = None
        self._run: _Run | None = None
        self._streams = (LineStream(1, self._print), LineStream(2, self._print))
        self._logs = LogHandler(self._log)
        sys.stdout, sys.stderr = self._streams
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A child of ours must neither hold our pipes open nor write frames of its own into them."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.root.removeHandler(self._logs)
        for fd in (self._tasks, self._results):
            with contextlib.suppress(OSError):
                os.close(fd)

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

    def _send(self, kind: int, seq: int = 0, **fields: Any) -> None:
        pieces: list[Any] = list(wire.parts(kind, seq, **fields))
        with self._writing:
            while pieces:
                wrote = os.writev(self._results, pieces)
                while pieces and wrote >= len(pieces[0]):
                    wrote -= len(pieces.pop(0))
                if wrote:
                    pieces[0] = memoryview(pieces[0])[wrote:]

    def _print(self, number: int, text: str) -> None:
        self._send(wire.OUTPUT, number, body=text.encode("utf-8", "surrogatepass"))

    def _log(self, record: bytes) -> None:
        self._send(wire.LOG, body=record)

    # Runs

    def _begin(self, frame: Frame) -> None:
        self._outbox = None
        cwd, path, argv, environ, levels, common = frame.meta
        try:
            _adopt(cwd, path, argv, environ)
            apply_levels(levels, self._logs)
            self._run = _Run(pickle.loads(frame.body), common)
        except Raised as error:
            self._send(wire.UNLOADED, body=dump_error(error))
            return

    def _end(self) -> None:
        """Forget the run. Whoever still holds shared memory of it can't be used again: it would see others' data."""
        run, self._run = self._run, None
        clean = run is None or run.close()
        self._kept = payload.release_all(self._kept, lambda _: None)
        self._outbox = None
        if not clean or self._kept or (run is not None and not run.release()):
            gc.collect()
            self._kept = payload.release_all(self._kept, lambda _: None)
            clean = clean and not self._kept and (run is None or run.release())
        for stream in self._streams:
            stream.finish()
        modules = _own_modules()
        clean = clean and all(when < self._born for _, when in modules)
        self._send(wire.ENDED, meta=(clean, modules))

    # Batches

    def _batch(self, run: _Run, frame: Frame) -> bool:
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
        if run.work.seed is not None:
            items = list(zip(items, range(*ids) if isinstance(ids, tuple) else ids or (), strict=True))
        job.began = monotonic()
        count = len(items)
        if count > 1:
            self._flusher.begin(job)
        whole = True
        if careful:
            whole = run_careful(call, items, job, self._slot, self._flush, self._full if run.work.max_memory else None)
        else:
            run_fast(call, items, job)
        run.pace = (monotonic() - job.began) / count
        self._flusher.end()
        del items, call
        self._flush(job, last=whole)
        self._slot.idle()
        if not whole:
            self._send(wire.REPLACE, job.seq)
        return whole

    def _unread(self, job: Job, count: int, error: BaseException) -> None:
        """The items can't be unpickled. One alone has its error; of several the lane must send each by itself."""
        if count == 1:
            job.errors[0] = _unpicklable(error)
            job.out.append(None)
            self._flush(job, last=True)
        else:
            self._send(wire.UNREAD, job.seq)
        self._slot.idle()

    def _flush(self, job: Job, last: bool = False) -> None:
        """Send what is done and was not sent yet. Called by the loops and by the flusher's thread."""
        with self._flushing:
            first, end = job.sent, len(job.out)
            if end <= first and not last:
                return
            seconds = monotonic() - job.began - job.told
            job.told += seconds
            job.sent = end
            values = job.out[first:end]
            errors = {index - first: blob for index, blob in list(job.errors.items()) if first <= index < end}
            each = job.each[first:end] if job.each is not None else None
            body, itemised, large = self._pack(job, values, errors)
            where, wanted = None, 0
            if large is not None:
                where, wanted, body = self._place(large, body, values)
            del values
            kept, freed = self._let_go(job) if last else (False, [])
            plain = not (errors or each or where or wanted or kept or freed)
            meta = None if plain else (errors, each, where, wanted, kept, freed)
            flags = (ITEMISED if itemised else 0) | (LAST if last else 0)
            self._send(wire.PART, job.seq, flags=flags, count=end - first, seconds=seconds, meta=meta, body=body)

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
        try:
            body, large = payload.pack(values)
        except Raised:
            blobs, bad = wire.dump_each(values, "result")
            errors.update({index: dump_error(error) for index, error in bad.items()})
            return wire.plain(blobs), True, None
        return body, False, large

    def _place(
        self, large: payload.Buffers, body: bytes, values: list[Any]
    ) -> tuple[tuple[int, list[payload.Place]] | None, int, bytes]:
        """Large results into the outbox; without one, or without room in it, into the pickle after all."""
        where = self._outbox.put(large) if self._outbox is not None else None
        if where is not None:
            return where, 0, body
        wanted = large.size if self._outbox is None or large.size > self._outbox.room else 0
        return None, wanted, dumps(values)

    def _full(self) -> bool:
        """Does the worker hold more than `max_memory`? Looked at every 5 ms at most: reading it takes 10 us."""
        run = self._run
        now = monotonic()
        if run is None or now - run.looked < _MEMORY_EVERY:
            return False
        run.looked = now
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * self._page > (run.work.max_memory or 0)


class _Run:
    """One run in this worker: its function, bound to what it shares and what `setup=` opened."""

    def __init__(self, work: Work, common: tuple[int, list[payload.Place], list[str]] | None) -> None:
        self.work = work
        self.careful = work.timeout is not None or work.max_memory is not None or work.seed is not None
        self.pace = FAST  # the first batch is a careful one
        self.looked = 0.0
        self.told = False  # that it is ready
        self._common: dict[str, Any] = {}
        self._views: payload.Views | None = None
        self._close: Callable[[], object] | None = None
        self._call: Callable[[Any], Any] | None = None
        if common is not None:
            piece, places, names = common
            self._views = payload.Views(piece, places)
            blob, *buffers = self._views.buffers
            self._common = dict(zip(names, pickle.loads(blob, buffers=buffers), strict=True))

    def opened(self) -> Callable[[Any], Any]:
        """The callable of the loops; the first time it opens `setup=`. Raises SetupFailed."""
        if self._call is None:
            resources = self._open()
            work = dataclasses.replace(self.work, common=self._common)
            self._call = bind(work, resources) if work.seed is None else bind_pairs(work, resources, reseeds=True)
        return self._call

    def _open(self) -> dict[str, Any]:
        if not self.work.setup:
            return {}
        opened, stack = open_all(self.work.setup)
        self._close = stack.close
        return opened

    def itemised(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`call` from pickle to pickle, so that a death in either belongs to the item."""
        seeded = self.work.seed is not None

        def whole(given: Any) -> bytes:
            blob, index = given if seeded else (given, 0)
            try:
                item = pickle.loads(blob)
            except Raised as error:
                raise _unpicklable_error(error) from error
            value = call((item, index)) if seeded else call(item)
            try:
                return dumps(value)
            except Raised as error:
                raise wire.not_picklable(value, "result", error) from error

        return whole

    def close(self) -> bool:
        """Close what was opened; a failure is printed, for its run has all its results. True when it went well."""
        close, self._close, self._call = self._close, None, None
        if close is None:
            return True
        try:
            close()
        except BaseException:
            traceback.print_exc()
            return False
        return True

    def release(self) -> bool:
        """Let go of what the run shared; False while something else still looks at it."""
        self._common = {}
        return self._views is None or self._views.release()


def _unpicklable_error(error: BaseException) -> NotPicklable:
    return NotPicklable(f"the input can't be unpickled in a worker ({type(error).__name__}: {error})", "input")


def _unpicklable(error: BaseException) -> bytes:
    wrapped = _unpicklable_error(error)
    wrapped.__cause__ = error
    return dump_error(wrapped)


def _adopt(cwd: str, path: list[str], argv: list[str], environ: dict[str, str]) -> None:
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
