"""Exceptions and values whose classes do as they please: each is its item's error, on every lane, and never a hang."""

from __future__ import annotations

import queue

import pytest
from lane_inbox import Outcomes

from duodao.errors import CallExited, RemoteError, SetupFailed
from duodao.lanes.base import Batch, Work
from duodao.lanes.coroutine import Coroutines
from duodao.lanes.fleet import FLEET
from duodao.lanes.foreign import arguments, said, set_cause
from duodao.lanes.inline import Inline
from duodao.lanes.process import Processes
from duodao.lanes.thread import Threads


class NoSetattr(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


class Exits(Exception):
    def __str__(self):
        raise SystemExit(3)


class BadNotes(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("notes")


class BadArguments(BaseException):
    args = property(lambda self: 1 / 0)


class Ends(BaseException):
    pass


class Interrupts(Exception):
    def __reduce__(self):
        return _interrupt, ()


def _interrupt():
    raise KeyboardInterrupt


class NoResult:
    def __reduce__(self):
        return _end, ()


def _end():
    raise Ends


class Mute:
    def __repr__(self):
        raise ValueError("mute")


ERRORS = [NoSetattr, Exits, BadNotes, BadArguments, Ends, Interrupts, NoResult]


def act(number):
    if number == 100:
        raise SystemExit(Mute())
    if number < len(ERRORS):
        made = ERRORS[number]()
        if isinstance(made, BaseException):
            raise made
        return made
    return number


async def act_async(number):
    return act(number)


@pytest.mark.parametrize("kind", [Inline, Threads, Coroutines, Processes])
def test_each_is_its_items_error(kind):
    """Whatever the class of an exception overrides, it fails its own item and the others have their values."""
    work = Work(act_async if kind is Coroutines else act, "act", is_async=kind is Coroutines)
    lane = kind(work, workers=2)
    inbox = Outcomes(lane)
    try:
        inbox.start(range(100))  # one batch, so that the thread lane's quick form is met as well
        inbox.until(100)
        for number in range(100):
            fails(lane, number, number < len(ERRORS) - (kind is not Processes))
        fails(lane, 100, True)
    finally:
        lane.close(5.0)
        FLEET.clear()


def fails(lane, number, so):
    inbox = Outcomes(lane)
    inbox.start([number])
    inbox.until(1)
    assert bool(inbox.failures) is so, number
    if 100 > number >= len(ERRORS):
        assert inbox.values == {0: number}
    if number == 100:
        assert type(inbox.failures[0].error) is CallExited


def test_a_process_says_why_it_is_another():
    """An error or a result that ends who unpickles it arrives as a RemoteError that names what was raised."""
    lane = Processes(Work(act, "act"), 1)
    inbox = Outcomes(lane)
    try:
        inbox.start([5, 6, 7])
        while len(inbox.values) + len(inbox.failures) < 3:
            result = inbox.next()
            for position, failure in list((result.errors or {}).items()):
                if failure.kind == "lost":  # the engine runs these again, alone
                    number = result.batch.ids[position if result.positions is None else result.positions[position]]
                    del inbox.failures[number]
                    batch = Batch([number], [5 + number], careful=True)
                    lane.start(batch, inbox.queue.put)
    finally:
        lane.close(5.0)
        FLEET.clear()
    assert inbox.values == {2: 7}
    assert {type(failure.error) for failure in inbox.failures.values()} == {RemoteError}
    assert "Ends" in str(inbox.failures[1].error)


@pytest.mark.parametrize("kind", [Threads, Coroutines])
def test_an_interrupt_in_a_setup_is_fatal(kind):
    """A factory that raises KeyboardInterrupt where no Ctrl-C arrives ends the run and doesn't leave it waiting."""
    work = Work(
        act_async if kind is Coroutines else act, "act", is_async=kind is Coroutines, setup={"thing": _interrupt}
    )
    lane = kind(work, 1)
    got = queue.SimpleQueue()
    try:
        lane.start(Batch(range(1), [50]), got.put)
        assert isinstance(got.get(timeout=30).fatal, SetupFailed)
    finally:
        lane.close(5.0)


def test_words():
    """What is said of an exception never raises."""
    assert said(ValueError("x")) == "ValueError: x"
    assert said(ValueError()) == "ValueError"
    assert "can't be shown" in said(Exits())
    assert arguments(SystemExit(3)) == "3"
    assert arguments(SystemExit(Mute())) == "..."
    error = NoSetattr()
    set_cause(error, cause := ValueError())
    assert error.__cause__ is cause
