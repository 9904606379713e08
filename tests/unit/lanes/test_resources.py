"""How `setup=` is opened and closed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from duodao.errors import SetupFailed
from duodao.lanes.resources import open_all, open_all_async


def recorder(events, name, fail_on_exit=False):
    @contextlib.contextmanager
    def resource():
        events.append(f"open {name}")
        yield name
        events.append(f"close {name}")
        if fail_on_exit:
            raise OSError("won't close")

    return resource


def broken():
    raise OSError("no database")


class Async:
    async def __aenter__(self):
        return "entered"

    async def __aexit__(self, *_):
        pass


def test_opened_in_order_and_closed_in_reverse():
    """The stack closes the last one first."""
    events = []
    opened, stack = open_all({"a": recorder(events, "a"), "b": recorder(events, "b")})
    assert opened == {"a": "a", "b": "b"}
    stack.close()
    assert events == ["open a", "open b", "close b", "close a"]


def test_what_is_no_context_manager_is_passed_as_it_is():
    """A factory may return any object, as one that loads a model does; nothing is closed then."""
    opened, stack = open_all({"model": dict})
    assert opened == {"model": {}}
    stack.close()


def test_a_factory_that_fails_closes_those_before_it():
    """SetupFailed names the resource, has the factory's error as its cause, and leaves nothing open."""
    events = []
    with pytest.raises(SetupFailed, match="'db'.*no database") as caught:
        open_all({"a": recorder(events, "a"), "db": broken})
    assert type(caught.value.__cause__) is OSError
    assert events == ["open a", "close a"]


def test_a_second_failure_is_a_note():
    """When closing fails too, the first error keeps the floor and says so."""
    with pytest.raises(SetupFailed) as caught:
        open_all({"a": recorder([], "a", fail_on_exit=True), "db": broken})
    assert "won't close" in caught.value.__cause__.__notes__[0]


def test_async_ones_are_refused_without_a_loop():
    """An async context manager or factory on another lane says where it belongs; no coroutine is left un-awaited."""

    async def factory():
        raise AssertionError

    for one in (Async, factory):
        with pytest.raises(SetupFailed, match="only the coroutine lane"):
            open_all({"client": one})


def test_ctrl_c_is_not_a_failed_setup():
    """KeyboardInterrupt during a factory passes, after what was open has been closed."""
    events = []

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_all({"a": recorder(events, "a"), "b": interrupted})
    assert events == ["open a", "close a"]


def test_on_a_loop_every_form_is_opened():
    """Sync and async context managers, async factories and plain objects, on an event loop."""

    async def factory():
        return Async()

    async def main():
        events = []
        setup = {"a": recorder(events, "a"), "b": Async, "c": factory, "d": list}
        opened, stack = await open_all_async(setup)
        assert opened == {"a": "a", "b": "entered", "c": "entered", "d": []}
        await stack.aclose()
        assert events == ["open a", "close a"]
        with pytest.raises(SetupFailed):
            await open_all_async({"a": recorder(events, "a"), "db": broken})
        assert events[2:] == ["open a", "close a"]

    asyncio.run(main())
