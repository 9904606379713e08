"""What is served, as it travels to another process."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

from duodao.servers.entry import Named


def reference(work: Any) -> Any:
    """A function as it is, for it pickles; an object that a module holds under a name, as that name.

    An application carries locks, connections and threads, and a copy of it may work and yet be another: the process
    imports its module instead. What no module but `__main__` holds is left to pickling.
    """
    if isinstance(work, (FunctionType, type)):
        return work
    for name, module in list(sys.modules.items()):
        if name == "__main__" or not hasattr(module, "__dict__"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is work:
                return Named(name, attribute, getattr(module, "__file__", None))
    return work
