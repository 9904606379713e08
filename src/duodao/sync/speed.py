"""What the locks stand on: `_speed.c` where it was compiled, else the C type of `threading.RLock`.

Both keep who holds a lock and how often. The compiled one also has every path on which nobody waits, so that `with`
costs less than that of `threading.Lock`. lock.py alone says how a lock behaves, in Python; `hasten` takes away there
what the base has compiled. Likewise `_robust.c` takes the place of ctypes under robust.py. The tests run on both.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from duodao.sync import greenlets

__all__ = ["COMPILED", "FIELDS", "ROBUST", "Base", "free", "hasten", "take"]

COMPILED = os.environ.get("DUODAO_SPEED") != "0" and not greenlets.patched()
"""Are the locks the compiled ones? DUODAO_SPEED=0 in the environment keeps to Python; so do greenlets."""
if COMPILED:
    try:
        from duodao.sync._speed import Held as Base
    except ImportError:  # installed without a compiler, or for another Python
        COMPILED = False
ROBUST: ModuleType | None = None
"""robust.py's calls on mutexes, where they were compiled: Linux. Else they go through ctypes."""
if COMPILED:
    with contextlib.suppress(ImportError):
        ROBUST = importlib.import_module("duodao.sync._robust")
if greenlets.patched():
    from duodao.sync.greenlets import Held as Base
elif not COMPILED:
    from _thread import RLock as Base  # type: ignore[assignment]

take: Callable[[Any, bool], bool] = getattr(Base, "_take", Base.acquire)
free: Callable[[Any], None] = getattr(Base, "_free", Base.release)
FIELDS = () if COMPILED else ("_holder", "_parked")
"""What lock.py keeps in slots of its own: the compiled base has these in its C structure."""

_PLAIN = ("acquire", "release", "locked", "_try", "_try_task")
_SPECIAL = ("__enter__", "__exit__", "__aenter__", "__aexit__")


def hasten(*kinds: Any) -> None:
    """Let the compiled methods show: those in Python step aside, and stay as `_slow_...` for what is not plain.

    kinds: lock.py's classes, after their bodies.
    """
    if COMPILED:
        for kind in kinds:
            for name in _PLAIN + _SPECIAL:
                if name in vars(kind):
                    setattr(kind, f"_slow_{name.strip('_')}", vars(kind)[name])
                    delattr(kind, name)
