"""Opening and closing what `setup=` names: once per worker, or once per event loop.

A factory is called without arguments. What it returns is entered when it is a context manager (async ones on the
coroutine lane only), and passed as it is when it is not one (a model that was loaded). On a loop it may be async.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from duodao.errors import SetupFailed
from duodao.lanes.foreign import said

Setup = Mapping[str, Callable[[], Any]]


def open_all(setup: Setup) -> tuple[dict[str, Any], ExitStack]:
    """The opened resources by name, and the stack whose `close()` closes them in reverse order.

    Raises SetupFailed when one can't be had; those opened before it are closed first.
    """
    stack = ExitStack()
    opened: dict[str, Any] = {}
    for name, factory in setup.items():
        try:
            made = factory()
            if hasattr(type(made), "__enter__"):
                opened[name] = stack.enter_context(made)
            elif hasattr(type(made), "__aenter__") or inspect.isawaitable(made):
                if inspect.iscoroutine(made):
                    made.close()
                raise TypeError("it is asynchronous; only the coroutine lane can open it")  # noqa: TRY301
            else:
                opened[name] = made
        except BaseException as error:
            try:
                stack.close()
            except Exception as second:
                error.add_note(f"closing what was opened before it failed too: {second!r}")
            if isinstance(error, KeyboardInterrupt) and _main():  # the user's, not the resource's
                raise
            raise _failed(name, error) from error
    return opened, stack


async def open_all_async(setup: Setup) -> tuple[dict[str, Any], AsyncExitStack]:
    """As `open_all`, on an event loop: what is both forms of a context manager is entered as an async one."""
    import asyncio  # only here: workers without a loop need not load it

    stack = AsyncExitStack()
    opened: dict[str, Any] = {}
    for name, factory in setup.items():
        try:
            made = factory()
            if inspect.isawaitable(made) and not hasattr(type(made), "__aenter__"):
                made = await made
            if hasattr(type(made), "__aenter__"):
                opened[name] = await stack.enter_async_context(made)
            elif hasattr(type(made), "__enter__"):
                opened[name] = stack.enter_context(made)
            else:
                opened[name] = made
        except BaseException as error:
            try:
                await stack.aclose()
            except Exception as second:
                error.add_note(f"closing what was opened before it failed too: {second!r}")
            if isinstance(error, asyncio.CancelledError) or (isinstance(error, KeyboardInterrupt) and _main()):
                raise
            raise _failed(name, error) from error
    return opened, stack


def _main() -> bool:
    """Is this the thread that Ctrl-C interrupts?"""
    return threading.current_thread() is threading.main_thread()


def _failed(name: str, error: BaseException) -> SetupFailed:
    return SetupFailed(f"setup {name!r} could not be opened ({said(error)}); no call can run without it")
