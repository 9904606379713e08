"""Lock and RLock between processes: what `Lock(shared=True)` makes. Linux only.

The mutex of a cell in the arena is the lock, so the kernel frees it when its holder is killed, and says so to the next
one. A handle travels as a number, also to tasks that already run. An uncontended `with` is two calls of C and a look at
the stamp; a wait that lasts longer than PATIENCE is published to this process (`graph`) and to the others (`table`).

`__exit__` and `release` are C functions: see `robust.py`, invariant 4.
"""

from __future__ import annotations

import _thread
import itertools
import os
import sys
import threading
import warnings
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from duodao.errors import Closed, Deadlock, OwnerDied
from duodao.sync import cells, graph, lines, lot, table, threads
from duodao.sync.named import checked, site
from duodao.sync.robust import BUSY, DEAD, OVER, OWN, SLICE, InC, native

PATIENCE = 0.003
"""Seconds of waiting before a wait is published: most are shorter."""
CHECKS = (0.02, 0.03)
"""Seconds until a circle is looked for again, then again, then after each slice; the first time is at the begin."""
_ME = threads.ME
_S = TypeVar("_S", bound="Handle")


class Handle(lines.Shared):
    """What all shared primitives are: a name, and a cell that goes with the last handle unless it was sent."""

    __slots__ = ("__weakref__", "_cell", "_name")
    _kind = "Lock"
    _again = False
    _busy_for = 0.0  # seconds that others may have the mutex in passing

    def __init__(self, *, name: str | None = None) -> None:
        name = checked(name)
        self._adopt(cells.new(again=self._again), _place() if name is None else name)

    def _adopt(self, cell: cells.Cell, name: str) -> None:
        self._cell = cell
        self._name = name
        weakref.finalize(self, cell.drop).atexit = False
        table.get()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (type(self), self._cell, self._name)

    @property
    def name(self) -> str:
        """As given, else where it was made: "app.py:12"."""
        return self._name

    @property
    def offset(self) -> int:
        """Where it lies in the arena: the same for all its handles in all processes."""
        return self._cell.offset

    def close(self) -> None:
        """End it for all processes; what is used afterwards raises Closed. RuntimeError while another holds it."""
        self._check_open()
        if not self._cell.retire(patience=self._busy_for):
            raise RuntimeError(f"{self.describe()} can't be closed: {_name_of(self._cell.mutex.owner())} holds it")

    def describe(self) -> str:
        """As messages name it."""
        return f"{self._kind} {self._name!r}"

    def _check_open(self) -> None:
        if not self._cell.is_open():
            self._refuse_closed()

    def _refuse_closed(self) -> NoReturn:
        raise Closed(f"{self.describe()} was closed, here or in another process: make a new one")

    def _waiters(self) -> tuple[str, ...]:
        entries = [entry for entry in table.get().entries() if entry.target == self.offset and entry.is_of_cell]
        entries.sort(key=lambda entry: entry.since)
        return tuple(threads.describe(entry.pid, entry.tid, entry.thread) for entry in entries)

    def _no_async(self, *_arguments: object, **_options: object) -> NoReturn:
        raise TypeError(
            f"{self.describe()} is shared by processes and has no async form: waiting for it blocks the thread. "
            "Use it in a thread (asyncio.to_thread), or a lock of this process with shared=False"
        )

    aacquire = __aenter__ = __aexit__ = _aacquire_restore = _no_async


class Exclusive(Handle):
    """What Lock and RLock share."""

    __slots__ = ("_give", "_leave", "_mutex", "_ref", "_stamp", "_trylock", "_words")
    _holder = None  # no task ever holds it; as the locks of one process have it, for `order.py`
    _number = Handle.offset

    def _adopt(self, cell: cells.Cell, name: str) -> None:
        super()._adopt(cell, name)
        self._mutex = cell.mutex
        self._ref = cell.mutex.ref
        self._stamp = cell.stamp
        self._words = cell.words
        self._trylock = native().trylock
        told = _Told(cell, f"{self._kind} {name!r}")
        self._leave = native().leave(cell.mutex.pointer, told.__getitem__)
        self._give = native().leaver(cell.mutex.pointer, told.__getitem__)
        held = table.get().locks
        held[id(self)] = cell.mutex
        weakref.finalize(self, held.pop, id(self), None).atexit = False

    if TYPE_CHECKING:

        def release(self) -> None:
            """Give it back. RuntimeError, naming the holder, for anyone but the one that holds it."""

        def __exit__(self, *error: object) -> None: ...

    else:
        release, __exit__ = InC("_give"), InC("_leave")

    def __repr__(self) -> str:
        state = "locked" if self._mutex.owner() else "unlocked"
        return f"<{state} sync.{self._kind} object {self._name!r} at {self.offset} of the arena>"

    def locked(self) -> bool:
        """Does anybody hold it now?"""
        self._check_open()
        return self._mutex.owner() != 0

    def statistics(self) -> lot.Statistics:
        """Who holds it and who waits, in all processes, now."""
        self._check_open()
        owner = self._mutex.owner()
        return lot.Statistics(self._name, owner != 0, _name_of(owner) if owner else None, self._waiters())

    def resolvers(self) -> tuple[graph.Unit, ...]:
        """Its holder."""
        owner = self._owner()
        return () if owner is None else (owner,)

    def _owner(self) -> graph.Unit | None:
        owner = self._mutex.owner()
        return threads.unit_of(owner) if owner else None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool | OwnerDied:
        """Take it; False when it could not be had at once (blocking=False) or within `timeout` seconds.

        A truthy OwnerDied, and one RuntimeWarning, when the last holder ended without releasing it: what the lock
        protects may be half done. ValueError, OverflowError for a time-out as in `threading`; Deadlock when waiting
        would close a circle, or for a Lock that the caller holds; Closed; TableFull when too many wait.
        """
        if timeout != -1:
            check_timeout(blocking, timeout)
        own = self._mutex.owner() == _ME.tid and not self._again
        try:
            code = OWN if own else self._trylock(self._ref)
            if code in {0, DEAD}:
                return self._settle(code)
        except BaseException:
            if not own:
                self._let_go()
            raise
        return self._wait(code, timeout if timeout >= 0 else None) if blocking else self._busy(code)

    def __enter__(self) -> bool | OwnerDied:
        try:
            code = self._trylock(self._ref)
            if not code and self._words[0] == self._stamp:
                self._words[1] = _ME.word
                return True
            if code in {0, DEAD}:
                return self._settle(code)
        except BaseException:  # Ctrl-C after it was taken: nobody would give it back
            self._let_go()
            raise
        return self._wait(code, None)

    def _busy(self, code: int) -> bool:
        if code not in {BUSY, OWN}:
            raise OSError(code, f"{self.describe()} can't be taken")
        self._check_open()
        return False

    def _settle(self, code: int) -> bool | OwnerDied:
        """This thread has the mutex: is it still the lock that was meant, and is there a death to tell?"""
        words = self._words
        if code == DEAD:
            self._mutex.consistent()
        if words[0] != self._stamp:
            if words[0] != self._stamp | cells.UNTOLD:
                if code == DEAD:
                    words[0] |= cells.UNTOLD  # of another lock, which has this cell now: for its next holder
                self._mutex.unlock()
                self._refuse_closed()
            code = DEAD
            words[0] = self._stamp
        if code != DEAD:
            words[1] = _ME.word
            return True
        holder = self._cell.last_holder()
        words[1] = _ME.word
        who = f"by {holder}, which" if holder else "by one that"
        message = f"{self.describe()} was held {who} ended without releasing it: check what it protects"
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=_depth())
        except RuntimeWarning:  # where warnings are errors: nobody holds it after an error
            self._mutex.unlock()
            raise
        return OwnerDied(message, holder)

    def _let_go(self) -> None:
        """After an interrupt: what was just taken is given back, and a death that was told is kept for the next one."""
        if self._mutex.owner() != threading.get_native_id():
            return
        if self._mutex.consistent() == 0 and self._words[0] == self._stamp:
            self._words[0] = self._stamp | cells.UNTOLD
        self._mutex.unlock()

    def _wait(self, code: int, timeout: float | None) -> bool | OwnerDied:
        deadline = None if timeout is None else monotonic() + timeout
        if code == OWN:
            return self._wait_for_itself(timeout)
        if code != BUSY:
            raise OSError(code, f"{self.describe()} can't be taken")
        try:
            code = self._mutex.lock(PATIENCE if timeout is None else min(PATIENCE, timeout))
            if code == OVER and (deadline is None or monotonic() < deadline):
                code = self._wait_in_public(deadline)
            return self._settle(code) if code in {0, DEAD} else self._busy_after(code)
        except BaseException:
            self._let_go()
            raise

    def _busy_after(self, code: int) -> bool:
        return self._busy(BUSY if code == OVER else code)

    def _wait_in_public(self, deadline: float | None) -> int:
        """Wait where everybody can see it; OVER at the deadline."""
        shared = table.get()
        line = shared.claim()
        wait: graph.Wait | None = None
        try:
            line.write(lines.LOCK, self.offset, self.describe(), timed=deadline is not None)
            wait = shared.begin(line, _thread.get_ident(), self, timed=deadline is not None)
            for longest in itertools.chain(CHECKS, itertools.repeat(SLICE)):
                pause = longest
                if deadline is not None:
                    pause = min(pause, deadline - monotonic())
                    if pause <= 0:
                        return OVER
                code = self._mutex.lock(pause)
                if wait.doom is not None:
                    raise wait.doom
                if code != OVER:
                    return code
                self._check_open()
                shared.check(line, wait)
            raise AssertionError
        finally:
            shared.leave(line, wait)

    def _wait_for_itself(self, timeout: float | None) -> bool:
        """Nobody else could end that wait: Deadlock at once, or, with a time-out, False after it."""
        if timeout is not None:
            bell = _thread.allocate_lock()
            bell.acquire()
            bell.acquire(True, timeout)
            return False
        me = _thread.get_ident()
        line = f"{graph.name_of(me)} waits for {self.describe()}, held by itself"
        raise Deadlock(f"{line}: it holds it already", (line,), ((line, graph.stack_of(me)),))

    # What a Condition needs of its lock

    def _is_owned(self) -> bool:
        return self._mutex.owner() == threading.get_native_id()

    def _recursion_count(self) -> int:
        """How often this thread holds it."""
        return self._mutex.words[1] if self._is_owned() else 0

    def _release_save(self) -> int:
        """Give it back entirely; how often it was taken."""
        if not self._is_owned():
            self.release()  # which says who holds it
        count = self._recursion_count() if self._again else 1
        while self._mutex.unlock() == 0:
            continue
        return count

    def _acquire_restore(self, count: int) -> None:
        """Take it again, as often as before. What stops that is marked: who unwinds isn't blamed for not holding it."""
        try:
            self.__enter__()
        except BaseException as error:
            lot.lose(error, self._cell)
            raise
        for _ in range(count - 1):
            self._mutex.trylock()


class Lock(Exclusive):
    """A mutex between the threads of all processes of a program. name: for messages. Source: M17, M18, M24."""

    __slots__ = ()


class RLock(Exclusive):
    """A mutex between processes that its holder may take again; it is free when released as often as taken.

    name: for messages. Source: M17, M18, M24.
    """

    __slots__ = ()
    _kind = "RLock"
    _again = True


class _Told(dict[int, None]):
    """What becomes of the number that unlocking returned: 0 is None, without a Python function in between."""

    def __init__(self, cell: cells.Cell, what: str) -> None:
        super().__init__({0: None})
        self._cell = cell
        self._what = what

    def __missing__(self, code: int) -> None:
        if not self._cell.is_open():
            raise Closed(f"{self._what} was closed while it was held")
        if lot.is_lost(sys.exc_info()[1], self._cell):  # a Condition's wait ended without it: nothing to give back
            return
        owner = self._cell.mutex.owner()
        holder = f"{_name_of(owner)} holds it" if owner else "nobody holds it"
        raise RuntimeError(f"{self._what} can't be released by {graph.name_of(_thread.get_ident())}: {holder}")


def _arrive(kind: type[_S], cell: cells.Cell, name: str) -> _S:
    """A handle of what another process, or this one, sent."""
    handle = kind.__new__(kind)
    handle._adopt(cell, name)
    return handle


def _place() -> str:
    file, line = site(sys._getframe(1))
    return f"{os.path.basename(file)}:{line}"


def _name_of(tid: int) -> str:
    return graph.name_of(threads.unit_of(tid))


def _depth() -> int:
    """How far above the caller the user's own code is, for a warning."""
    depth, frame = 1, sys._getframe(1)
    package = __file__.rpartition("sync")[0]
    while frame.f_code.co_filename.startswith(package) and frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def check_timeout(blocking: bool, timeout: float) -> None:
    """The errors of `threading` for a time-out that makes no sense."""
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if not timeout >= 0:  # nan, too
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")


if os.environ.get("DUODAO_LOCKDEP") == "1":
    from duodao.sync import order

    for _kind in (Lock, RLock):
        order.ORDER.watch(_kind)
        for _name in ("aacquire", "__aenter__", "__aexit__", "_aacquire_restore"):
            setattr(_kind, _name, Handle._no_async)
