"""The lane's end of one worker: its two pipes, what is leased to it, and how all of that is given back.

Everything here is called with the lane's lock held or by its dispatcher's thread alone; nothing here waits.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import termios
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from duodao import arena
from duodao.children import guard
from duodao.children.lifeline import lift
from duodao.errors import Broken
from duodao.lanes import payload, wire
from duodao.lanes.loops import Slot

if TYPE_CHECKING:
    from duodao.children.child import Child
    from duodao.lanes.base import Batch, Deliver

_PIPE = 1 << 20
_PIECES = 8  # of a writev; a batch is two


class Lease:
    """A batch that a worker has, or will have. Outcomes come in order: `done` of the `count` sent items have one.

    positions: those of the batch that were sent, None for all; piece: the arena's piece that holds its large inputs.
    """

    __slots__ = ("batch", "cancelled", "count", "deliver", "done", "parts", "piece", "positions", "seq", "size")

    def __init__(self, batch: Batch, deliver: Deliver, seq: int, positions: Sequence[int] | None, count: int) -> None:
        self.batch = batch
        self.deliver = deliver
        self.seq = seq
        self.positions = positions
        self.count = count
        self.done = 0
        self.cancelled = False
        self.piece: int | None = None
        self.parts: list[bytes] = []
        self.size = 0

    def load(self, parts: list[bytes], piece: int | None) -> None:
        """The frame to write. It is kept until the batch is done, as a worker that is free may get it in the end."""
        self.parts = parts
        self.size = sum(map(len, parts))
        self.piece = piece

    def discard(self) -> None:
        """Free its large inputs: no worker will look at them."""
        if self.piece is not None:
            arena.get().free(self.piece)
            self.piece = None

    def give_back(self, count: int) -> Sequence[int]:
        """The last `count` will not be run by this worker: their positions."""
        self.count -= count
        back = self.places(self.count, count)
        self.positions = self.places(0, self.count)
        return back

    def places(self, first: int, count: int) -> Sequence[int]:
        """The positions in the batch of the sent items from `first` on."""
        if self.positions is None:
            return range(first, first + count)
        return self.positions[first : first + count]

    @property
    def whole(self) -> bool:
        """All items were sent and none has an outcome yet."""
        return self.positions is None and self.done == 0


class Link:
    """One worker. notify: called with it, from the guard's thread, once its process has ended. entry: what it runs;
    it is given the offset of its slot, and `more` after that.

    Broken where the descriptors don't suffice for one more.
    """

    def __init__(
        self,
        notify: Callable[[Link], object],
        buffer: bytearray,
        entry: str = "duodao.lanes.worker:main",
        more: str = "",
    ) -> None:
        self.notify = notify
        self._entry = entry
        self._more = more
        self.leases: deque[Lease] = deque()
        self.child: Child | None = None
        self.offset = arena.get().slot()
        self.slot = Slot(arena.get().view(self.offset, arena.SLOT))
        self.outbox: int | None = None
        self._tasks_r = self._tasks_w = self._results_r = self._results_w = -1
        try:
            self._tasks_r, self._tasks_w = _pipe()
            self._results_r, self._results_w = _pipe()
        except OSError as error:
            self.close_fds()
            self._return_slot()
            raise Broken(f"no pipe for a worker process can be opened: {error.strerror}") from error
        os.set_blocking(self._tasks_w, False)
        os.set_blocking(self._results_r, False)
        self._out: deque[memoryview] = deque()
        self.reset(notify, buffer)

    def reset(self, notify: Callable[[Link], object], buffer: bytearray) -> None:
        """Start a run: also of a worker that another lane had."""
        self.notify = notify
        self.reader = wire.Reader(self._results_r, buffer)
        self.ready = False
        self.launched: list[bytes] = []
        self.ending: float | None = None
        self.killed: tuple[str, int, int] | None = None
        self.retiring = False
        self.at_end = False
        self.rested = monotonic()
        self.kept: set[int] = set()
        self._torn = False

    def give_outbox(self) -> None:
        """Give the worker room in the arena for large results; without it they come through the pipe."""
        memory = arena.get()
        if self.outbox is None:
            with contextlib.suppress(MemoryError, OSError):
                self.outbox = memory.allocate(payload.OUTBOX)
        if self.outbox is not None:
            memory.view(self.outbox, payload.FLAGS)[:] = bytes(payload.FLAGS)
            self.write(wire.parts(wire.OUTBOX, meta=(self.outbox, payload.OUTBOX)))

    @property
    def input_fd(self) -> int:
        """Readable when the worker has sent something, or has ended."""
        return self._results_r

    @property
    def output_fd(self) -> int:
        """Writable when the worker takes more."""
        return self._tasks_w

    @property
    def backlog(self) -> bool:
        """Something waits for room in the pipe."""
        return bool(self._out) and not self._torn

    def fork(self) -> None:
        """Start the process; takes some 2 ms. OSError, GuardDied as `guard.fork`."""
        arg = f"{self.offset} {self._more}".encode()
        self.child = guard.fork(self._entry, arg=arg, fds=[self._tasks_r, self._results_w])
        os.close(self._results_w)
        self._results_w = -1
        self.child.on_exit(lambda _: self.notify(self))

    def lease(self, lease: Lease) -> None:
        """Hand a batch over."""
        self.leases.append(lease)
        self.write(lease.parts)

    def write(self, parts: list[bytes]) -> None:
        """Write what the pipe takes now; the rest is `backlog`, for `flush`."""
        self._out.extend(map(memoryview, parts))
        self.flush()

    def flush(self) -> None:
        """Write more of the backlog."""
        out = self._out
        if self._torn:
            return
        self._torn = True  # a Ctrl-C in this loop leaves unknown what the pipe has: writing it again would run it twice
        try:
            while out:
                wrote = os.writev(self._tasks_w, [out[at] for at in range(min(len(out), _PIECES))])
                while out and wrote >= len(out[0]):
                    wrote -= len(out.popleft())
                if wrote:
                    out[0] = out[0][wrote:]
        except BlockingIOError:
            pass
        except KeyboardInterrupt:
            self.kill("torn")
            raise
        self._torn = False

    def take_back(self) -> list[Lease] | None:
        """The leases behind the one that the worker runs or will run first: it never sees them. None: not now.

        The worker holds a record lock on the pipe while it reads. With the lock ours nobody reads, so what waits is
        whole frames, the newest leases last; what comes before those that are taken is written again.
        """
        if len(self.leases) < 2:
            return []
        try:
            fcntl.lockf(self._tasks_w, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:  # no record locks on pipes here: nothing can be taken back
            return []
        try:
            in_pipe = self._in_pipe()
            waiting = in_pipe + sum(map(len, self._out))
            taken: list[Lease] = []
            size = 0
            for lease in list(self.leases)[:0:-1]:
                if size + lease.size > waiting:
                    break
                size += lease.size
                taken.append(lease)
            if not taken:
                return []
            before = b"".join([*self._drain(in_pipe), *self._out])[: waiting - size]
            self._out.clear()
            for _ in taken:
                self.leases.pop()
            self.write([before] if before else [])
        finally:
            fcntl.lockf(self._tasks_w, fcntl.LOCK_UN)
        taken.reverse()
        return taken

    def _drain(self, size: int) -> list[bytes]:
        pieces = []
        while size:
            pieces.append(os.read(self._tasks_r, size))
            size -= len(pieces[-1])
        return pieces

    def _in_pipe(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self._tasks_r, termios.FIONREAD, count)
        return count[0]

    def kill(self, why: str, seq: int = 0, item: int = 0) -> None:
        """End the process. `why`, and the item if it is for one, is remembered for the time its end is seen."""
        if self.killed is None and self.child is not None:
            self.killed = (why, seq, item)
            self.child.kill()

    def end_run(self) -> None:
        """Give back what a run took: pieces of the arena."""
        memory = arena.get()
        for piece in self.kept:
            memory.free(piece)
        self.kept.clear()
        if self.outbox is not None:
            memory.free(self.outbox)
            self.outbox = None

    def close(self) -> None:
        """Close the pipes, which also ends an idle worker, and return the slot. Idempotent."""
        if self._tasks_w < 0:
            return
        self.end_run()
        self.close_fds()
        self._out.clear()
        self._return_slot()

    def _return_slot(self) -> None:
        self.slot.numbers.release()
        self.slot.times.release()
        arena.get().release(self.offset)

    def close_fds(self) -> None:
        """In a forked copy, which owns no piece or slot, this is all there is to give back."""
        for fd in (self._tasks_r, self._tasks_w, self._results_r, self._results_w):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._tasks_r = self._tasks_w = self._results_r = self._results_w = -1


def share(links: Sequence[Link]) -> bool:
    """Move what waits behind one worker's call to idle ones; False when one that was reading could not be asked.

    It tells nothing once it has read, and may have been stopped in the middle: the lane asks again by the clock.
    """
    idle = [link for link in links if not link.leases and link.ending is None and not link.retiring]
    settled = True
    for victim in sorted(links, key=lambda link: -len(link.leases)) if idle else ():
        if len(victim.leases) < 2 or not idle:
            break
        taken = victim.take_back()
        settled = settled and taken is not None
        for lease in taken or ():
            (idle.pop() if idle else victim).lease(lease)
    return settled


def _pipe() -> tuple[int, int]:
    """A pipe of 1 MB where the kernel grants it: unprivileged users get some 64 of them, then 64 kB, then 4 kB."""
    reader, writer = (lift(end) for end in os.pipe())
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
    return reader, writer
