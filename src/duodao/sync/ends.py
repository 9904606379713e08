"""When a holder ends: a thread or task that is waited for is watched, so that its end is told and nobody waits on.

The uncontended path costs nothing: the waiter sets the watch. For a `threading.Thread` that is its own `_delete`, the
last step of its bookkeeping, replaced on that one object; for a task a done-callback. Threads that `threading` doesn't
know (`_thread.start_new_thread`, C code), and one that is just leaving, tell nobody: who waits for such a one looks
again every 50 ms.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from typing import Any

from duodao.sync import graph, greenlets
from duodao.sync.units import active

SLICE = 0.05
"""Seconds between two looks at a holder whose end nobody tells."""

_Dummy: type = getattr(threading, "_DummyThread", type(None))
_left: dict[int, str] = {}  # names of threads that were watched and have ended, the last ones
_watched: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def lives(who: graph.Unit) -> bool:
    """Can this unit still release what it holds? True for one of another process: its table knows."""
    if isinstance(who, int):
        known = greenlets.lives(who)
        return known if known is not None else who in active or who in sys._current_frames()
    return not (isinstance(who, asyncio.Task) and (who.done() or who.get_loop().is_closed()))


def name_of(who: graph.Unit) -> str:
    """As messages name a unit, perhaps one that has ended."""
    if isinstance(who, int) and who not in active and who in _left:
        return _left[who]
    return graph.name_of(who)


def attend(on: graph.On) -> bool:
    """See to it that a waiter is told when one of `on`'s resolvers ends. False: nobody will, so look every `SLICE`."""
    told = True
    for who in on.resolvers() or ():
        if isinstance(who, int):
            told = _attend_thread(who) and told
        elif isinstance(who, asyncio.Task) and who not in _watched:
            _attend_task(who)
    return told


def _attend_thread(ident: int) -> bool:
    told = greenlets.attend(ident, graph.gone)
    if told is not None:
        return told
    thread: Any = active.get(ident)
    if thread is None or isinstance(thread, _Dummy):
        return False
    if thread is threading.main_thread():
        return True  # its end is the program's
    own = vars(thread)
    if "_delete" not in own:
        delete = getattr(thread, "_delete", None)
        if delete is None:
            return False

        def leave() -> None:
            own.pop("_delete", None)
            if len(_left) > 100:
                _left.clear()
            _left[ident] = graph.name_of(ident)
            delete()
            graph.gone(ident)

        own["_delete"] = leave
    return True


def _attend_task(task: asyncio.Task[Any]) -> None:
    _watched.add(task)
    loop = task.get_loop()
    if asyncio._get_running_loop() is loop:
        task.add_done_callback(graph.gone)
        return
    try:
        loop.call_soon_threadsafe(task.add_done_callback, graph.gone)
    except RuntimeError:  # closed: the task will never run again, nor be done
        return
