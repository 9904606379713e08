"""What processes wait on: robust mutexes and futex words in the arena, by ctypes. Linux only.

A robust mutex belongs to one thread. When that thread ends while it holds it, in whatever way, the kernel says so to
the next one that takes it (pthread_mutexattr_setrobust(3)), which repairs what the dead one left half done.

Invariants:
  1. No wait is longer than SLICE in one go: the interpreter runs signal handlers between slices, so Ctrl-C works, and a
     wake-up that died with the process it was meant for costs the others at most SLICE.
  2. A mutex is set up once and its memory never serves anything else afterwards: a thread that still waits in it, or
     comes late, meets a mutex, whatever it protects by then.
  3. `consistent` is called as soon as a death was told: a mutex that is unlocked without it can never be taken again.
  4. What gives a mutex back is a C function from the first instruction on. The interpreter looks for signals where a
     Python function begins, so Ctrl-C at the end of a block could else leave the mutex with a thread that lives on.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import operator
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from duodao import arena
from duodao.errors import UsageError
from duodao.sync import greenlets, speed

SIZE = 64
"""Bytes that a Mutex takes in the arena: 40 to 48 are the C library's, then our word for work that was left undone."""
SLICE = 0.09
"""Seconds. A waiter that was killed between being woken and taking the lock may have taken the wake-up with it."""
BUSY, DEAD, OWN, OVER, GONE = errno.EBUSY, errno.EOWNERDEAD, errno.EDEADLK, errno.ETIMEDOUT, errno.ENOTRECOVERABLE
_TID = 0x3FFFFFFF  # of the mutex's first word; above it are the kernel's bits: somebody waits, the owner died
_UNDONE = 14  # the 4-byte word of a Mutex that is not 0 while `held` is on
_PSHARED, _ROBUST, _RECURSIVE, _ERRORCHECK = 1, 1, 1, 2
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_FUTEX_CALLS = {"x86_64": 202, "ppc64le": 221, "ppc64": 221, "s390x": 238}  # asm/unistd.h; 98 on all newer ones
ALL = 0x7FFFFFFF


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Native:
    """The C library's functions: those that can't block keep the GIL, which costs less than giving it back."""

    def __init__(self) -> None:
        missing = what_is_missing()
        if missing:
            raise UsageError(
                f"locks and queues between processes (shared=True, via='shared') can't be had here: {missing}. "
                "Use those of one process, or a queue with via='pipe' or via='unix:PATH'"
            )
        quick, slow = ctypes.PyDLL(None), ctypes.CDLL(None, use_errno=True)
        # Without argtypes, and called with what `byref` gives, which is what ctypes converts fastest.
        self.trylock, self.unlock = quick.pthread_mutex_trylock, quick.pthread_mutex_unlock
        self.consistent = quick.pthread_mutex_consistent
        self.initialize = quick.pthread_mutex_init
        self.initialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._unlock_at: Any = ctypes.cast(self.unlock, ctypes.c_void_p).value
        if speed.ROBUST is not None:
            self.trylock, self.unlock = speed.ROBUST.trylock, speed.ROBUST.unlock
            self.consistent = speed.ROBUST.consistent
        self._lock: Callable[..., Any]
        if hasattr(slow, "pthread_mutex_clocklock"):
            self._lock, self._clock = slow.pthread_mutex_clocklock, time.CLOCK_MONOTONIC
            slow.pthread_mutex_clocklock.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        else:  # C libraries other than glibc from 2.30 on: a clock that is set makes one slice longer or shorter
            timed = slow.pthread_mutex_timedlock
            timed.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            self._lock, self._clock = (lambda mutex, _clock, until: timed(mutex, until)), time.CLOCK_REALTIME
        self._wait, self._wake = slow.syscall, quick.syscall
        self._futex = ctypes.c_long(_FUTEX_CALLS.get(platform.machine(), 98))
        self._kinds = {kind: self._attributes(quick, kind) for kind in (_ERRORCHECK, _RECURSIVE)}

    @staticmethod
    def _attributes(library: ctypes.PyDLL, kind: int) -> Any:
        made = ctypes.create_string_buffer(64)
        library.pthread_mutexattr_init(made)
        library.pthread_mutexattr_setpshared(made, _PSHARED)
        library.pthread_mutexattr_setrobust(made, _ROBUST)
        library.pthread_mutexattr_settype(made, kind)
        return made

    def make(self, mutex: ctypes.c_void_p, *, again: bool) -> None:
        """Set up a free mutex. again: its owner may take it again."""
        code = self.initialize(mutex, self._kinds[_RECURSIVE if again else _ERRORCHECK])
        if code:
            raise OSError(code, f"no robust mutex: {os.strerror(code)}")

    def leave(self, mutex: ctypes.c_void_p, told: Callable[[int], None] | None = None) -> Callable[..., None]:
        """An `__exit__` that unlocks. told: gets 0 or an errno, afterwards; the fastest is a method in C."""
        if speed.ROBUST is not None:
            quick: Callable[..., None] = speed.ROBUST.Leave(mutex, told)
            return quick
        function: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._unlock_at)
        function.argtypes = [ctypes.c_void_p, _Ignored, _Ignored, _Ignored]
        function.restype = told
        return functools.partial(function, mutex)

    def leaver(self, mutex: ctypes.c_void_p, told: Callable[[int], None]) -> Callable[[], None]:
        """The same without arguments."""
        if speed.ROBUST is not None:
            quick: Callable[..., None] = speed.ROBUST.Leave(mutex, told)
            return quick
        function: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._unlock_at)
        function.argtypes = [ctypes.c_void_p]
        function.restype = told
        return functools.partial(function, mutex)

    def lock(self, mutex: ctypes.c_void_p, seconds: float) -> int:
        """Wait for the mutex without the GIL; 0 or an errno."""
        until = _time(time.clock_gettime(self._clock) + seconds)
        return int(self._lock(mutex, self._clock, ctypes.byref(until)))

    def wait(self, word: ctypes.c_void_p, expected: int, seconds: float) -> bool:
        """Wait while the word is `expected`; False when the time was over."""
        limit = _time(seconds)
        if self._wait(self._futex, word, _FUTEX_WAIT, ctypes.c_uint32(expected), ctypes.byref(limit)) == 0:
            return True
        return ctypes.get_errno() != OVER

    def waker(self, word: ctypes.c_void_p) -> Callable[[int], int]:
        """Wakes as many as it is told of those that wait for the word."""
        return functools.partial(self._wake, self._futex, word, _FUTEX_WAKE)


class _Ignored:
    """The type of an argument that the C function doesn't look at: any object will do."""

    from_param = callable  # in C, and true or false for anything


def _time(seconds: float) -> _Time:
    whole = int(seconds)
    return _Time(whole, int((seconds - whole) * 1e9))


def what_is_missing() -> str:
    """Why this platform has no locks between processes; "" where it has them."""
    if sys.platform != "linux":
        return f"{sys.platform} has no robust mutexes and no futexes (Linux has)"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "a 64-bit Python is needed"
    if not hasattr(ctypes.PyDLL(None), "pthread_mutexattr_setrobust"):
        return "its C library has no pthread_mutexattr_setrobust"
    if not hasattr(ctypes.PyDLL(None), "gnu_get_libc_version"):
        return "its C library is not glibc, whose mutexes we read"  # where the owner stands, and how often it has it
    return ""


class _Home:
    """Where the C library's functions are kept, once somebody needs them."""

    native: _Native | None = None


def native() -> _Native:
    """The C library's functions. UsageError where there are no such locks: it names what is missing."""
    if _Home.native is None:
        if greenlets.patched():
            raise UsageError(
                "what processes share (shared=True, via='shared', duodao.Shared) is held by a thread, so the greenlets "
                "of one thread would all hold it at once, and a wait for it would stop them all: use it on "
                "lane='thread' or 'process', or a lock or queue of this process"
            )
        _Home.native = _Native()
    return _Home.native


def address_of(offset: int, size: int) -> int:
    """Where the `size` bytes at `offset` of the arena are in this process. ValueError when they are not inside it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(arena.get().view(offset, size)))


class Mutex:
    """A lock between all threads of all processes, for short pieces of work on shared memory.

    with mutex.held() as undone:
        if undone: ...  # the last one was killed, or interrupted, in here: repair what it may have left half done
        ...
        mutex.done()    # the last statement: without it the next one is told to repair

    offset: of SIZE bytes in the arena, a multiple of 8. Not a user's lock: no deadlock is looked for, and a signal
    handler that takes it while its own thread holds it gets a RuntimeError.
    """

    __slots__ = ("_held", "_native", "offset", "pointer", "ref", "words")

    def __init__(self, offset: int) -> None:
        self._native = native()
        self.offset = offset
        self.pointer = ctypes.c_void_p(address_of(offset, SIZE))
        self.ref: Any = ctypes.byref(ctypes.c_char.from_buffer(arena.get().view(offset, SIZE)))
        if speed.ROBUST is not None:
            self.ref = self.pointer.value
        self.words = arena.get().view(offset, SIZE).cast("I")
        self._held = Held(self)

    def init(self, *, again: bool = False) -> None:
        """Set it up, free. Once, by one process, before any other knows the offset.

        again: its owner may take it again, and then has to give it back as often; `held` is not for such ones.
        """
        self.words.cast("B")[:] = bytes(SIZE)
        self._native.make(self.pointer, again=again)

    def trylock(self) -> int:
        """0 when it was free, else BUSY, DEAD (taken; its last owner died), OWN (this thread has it) or GONE."""
        return int(self._native.trylock(self.ref))

    def lock(self, seconds: float) -> int:
        """As trylock, after at most `seconds`, then OVER. Waits without the GIL, deaf to signals: at most SLICE."""
        return self._native.lock(self.pointer, min(seconds, SLICE))

    def unlock(self) -> int:
        """0, or errno.EPERM when this thread doesn't have it."""
        return int(self._native.unlock(self.ref))

    def consistent(self) -> int:
        """After DEAD: the next ones needn't be told again. 0, or errno.EINVAL when there was nothing to say."""
        return int(self._native.consistent(self.ref))

    def owner(self) -> int:
        """The native thread number of who has it; 0 for nobody, also when the last owner died."""
        return self.words[0] & _TID

    def held(self) -> Held:
        """A context manager: have the mutex. Gives True when the last one that had it never came to `done`."""
        return self._held

    def done(self) -> None:
        """What the mutex protects is whole again."""
        self.words[_UNDONE] = 0

    def take(self) -> bool:
        """What `held` does at its begin."""
        own = False
        try:
            code = self.trylock()
            while code in (BUSY, OVER):
                code = self.lock(SLICE)
            if code == DEAD:
                self.consistent()
            elif code:
                own = True
                raise _refusal(code)  # noqa: TRY301  nothing of it is caught
            undone = code == DEAD or self.words[_UNDONE] != 0
            self.words[_UNDONE] = 1
        except BaseException:  # Ctrl-C, after the lock was taken: nobody would give it back
            if not own:
                self.let_go()
            raise
        return undone

    def let_go(self) -> None:
        """After an interrupt between taking it and knowing so: give it back, if this thread has it."""
        if self.owner() == threading.get_native_id():
            self.consistent()
            self.unlock()


class Held:
    """`with` for a Mutex; without state of its own, so one serves all threads."""

    __slots__ = ("__enter__", "__exit__")

    def __init__(self, mutex: Mutex) -> None:
        # As slots these are looked up on the object when the block begins: what runs at its end is C alone.
        self.__enter__ = mutex.take  # type: ignore[method-assign]
        self.__exit__ = mutex._native.leave(mutex.pointer)  # type: ignore[method-assign]

    if TYPE_CHECKING:

        def __enter__(self) -> bool: ...
        def __exit__(self, *error: object) -> None: ...


def _refusal(code: int) -> Exception:
    if code == OWN:
        return RuntimeError(
            "this thread is already inside this piece of shared memory: a signal handler can't use what its own "
            "thread was just using; let the handler set a flag, and use it afterwards"
        )
    return OSError(code, f"shared memory can't be entered: {os.strerror(code)}")


class InC(property):
    """A method that is, on an object, the C function in its attribute `where`: no Python runs at its begin.

    Called on the class, as `contextlib.ExitStack` does, it is an ordinary method.
    """

    def __init__(self, where: str) -> None:
        super().__init__(operator.attrgetter(where))

    def __call__(self, it: Any, *arguments: Any) -> Any:
        return self.__get__(it)(*arguments)


class Word:
    """A 4-byte number in the arena that threads of all processes can wait on (futex(2)). offset: a multiple of 4.

    wake(n): wake `n` that wait on it, those that came first first; returns how many there were. ALL: every one.
    """

    __slots__ = ("_native", "_pointer", "_view", "offset", "wake")

    def __init__(self, offset: int) -> None:
        self._native = native()
        self._pointer = ctypes.c_void_p(address_of(offset, 4))
        self._view = arena.get().view(offset, 4).cast("I")
        self.offset = offset
        self.wake = self._native.waker(self._pointer)

    @property
    def value(self) -> int:
        """What it is now. Reading and writing are atomic, adding is not."""
        return self._view[0]

    @value.setter
    def value(self, value: int) -> None:
        self._view[0] = value & 0xFFFFFFFF

    def wait(self, expected: int, seconds: float = SLICE) -> bool:
        """Wait while it is `expected`, at most `seconds` and at most SLICE; False when that time was over.

        True says no more than "look again": it changed, somebody woke us, or a signal came.
        """
        return seconds > 0 and self._native.wait(self._pointer, expected, min(seconds, SLICE))


def end_of(timeout: float | None) -> float | None:
    """When `timeout` seconds from now will be, by time.monotonic(). ValueError: nan, which is never over."""
    if timeout is None:
        return None
    if timeout != timeout:  # noqa: PLR0124  # nan
        raise ValueError("the timeout is not a number (nan)")
    return time.monotonic() + timeout


def futex_wait(offset: int, expected: int, timeout: float) -> bool:
    """As Word(offset).wait, which is faster where the word is used again."""
    return Word(offset).wait(expected, timeout)


def futex_wake(offset: int, n: int) -> int:
    """As Word(offset).wake."""
    return Word(offset).wake(n)
