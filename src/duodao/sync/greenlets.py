"""Locks where gevent has patched the threads: the holder is a greenlet, and whoever waits lets its hub go on.

Greenlets are the threads there: `_thread.get_ident` tells them apart, and what `_thread.allocate_lock` makes waits
in the hub, so that all of `sync` is right as it is, but for two things. The C types under the locks know one holder
for all greenlets of a thread: `Held` takes their place. And the interpreter knows no greenlet by its number: whether
one lives, and where it stands, is asked here.
Rejected: the greenlet in each place that has a thread now; another graph, which would see no circle with threads.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

_known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Greenlets that hold a lock somebody asked about, or that wait; by the number `_thread.get_ident` gives."""

_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_current: Callable[[], Any] | None = None


def patched() -> bool:
    """Are the threads of this process greenlets?"""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("_thread"))


def note(greenlet: Any) -> int:
    """Its number; from now on it can be asked about."""
    number = id(greenlet)
    _known[number] = greenlet
    return number


def lives(number: int) -> bool | None:
    """Does that greenlet run still? None for one that is not known."""
    found = _known.get(number)
    return None if found is None else not found.dead


def attend(number: int, gone: Callable[[int], object]) -> bool | None:
    """Have `gone` called when that greenlet ends. None for one that is not known, False where nobody will tell."""
    found = _known.get(number)
    if found is None:
        return None
    if not hasattr(found, "rawlink"):
        return found.parent is None  # the main one, whose end is the program's
    if found not in _watched:
        _watched.add(found)
        found.rawlink(lambda _: gone(number))
    return True


def name_of(number: int) -> str | None:
    """As messages name it; None for one that is not known, or has no name."""
    name = getattr(_find(number), "name", None)
    return None if name is None else f"greenlet {name!r}"


def frame_of(number: int) -> FrameType | None:
    """Where a greenlet stands: suspended, or the caller's own."""
    found = _find(number)
    if found is None or found.dead:
        return None
    return found.gr_frame or sys._getframe(1)


def _find(number: int) -> Any:
    me = None if _current is None else _current()
    return me if id(me) == number else _known.get(number)


if patched():
    from gevent.monkey import get_original
    from greenlet import getcurrent

    _current = getcurrent
    _allocate = get_original("_thread", "allocate_lock")

    class Held:
        """What speed.py asks of a base: a lock that knows which greenlet holds it, and how often.

        `_gate` is a native lock: threads that are none of gevent's, such as its pool's, may come here, too.
        """

        __slots__ = ("__weakref__", "_count", "_gate", "_who")
        _count: int
        _gate: Any
        _who: Any

        def __new__(cls, *_arguments: object, **_options: object) -> Any:
            """Free."""
            self = super().__new__(cls)
            self._at_fork_reinit()
            return self

        def __repr__(self) -> str:
            who = self._who
            state, owner = ("unlocked", 0) if who is None else ("locked", note(who))
            return f"<{state} greenlet lock owner={owner} count={self._count} at {id(self):#x}>"

        def acquire(self, blocking: bool = False, timeout: float = -1) -> bool:
            """Take it if it is free or the caller's. It never waits: waiting is lock.py's."""
            del blocking, timeout
            me = getcurrent()
            if self._who is me:
                self._count += 1
                return True
            if not self._gate.acquire(False):
                return False
            self._who = me
            self._count = 1
            return True

        def release(self) -> None:
            """Give it back. RuntimeError for who doesn't hold it."""
            if self._who is not getcurrent():
                raise RuntimeError("cannot release un-acquired lock")
            self._count -= 1
            if not self._count:
                self._who = None
                self._gate.release()

        def _is_owned(self) -> bool:
            return self._who is getcurrent()

        def _release_save(self) -> tuple[int, int]:
            if self._who is not getcurrent():
                raise RuntimeError("cannot release un-acquired lock")
            state = self._count, note(self._who)
            self._count = 0
            self._who = None
            self._gate.release()
            return state

        def _at_fork_reinit(self) -> None:
            self._gate = _allocate()
            self._who = None
            self._count = 0
