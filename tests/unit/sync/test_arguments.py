"""Wrong arguments of the primitives: refused as they are made, shared or not, by an error that says what is needed."""

from __future__ import annotations

import pickle

import pytest

from duodao import sync
from duodao.errors import UsageError


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition"])
def test_names(kind, shared):
    """A name is a text; also an empty one is kept."""
    make = getattr(sync, kind)
    with pytest.raises(UsageError, match="name=5: a text is needed"):
        make(name=5, shared=shared)
    assert make(name="", shared=shared).name == ""


@pytest.mark.parametrize("shared", [False, True])
def test_numbers(shared):
    """Permits and parties are whole: with half a party a Barrier would never open."""
    semaphore = sync.Semaphore(1, shared=shared)
    for wrong in (
        lambda: sync.Semaphore(1.5, shared=shared), lambda: sync.Semaphore("1", shared=shared),
        lambda: sync.Barrier(1.5, shared=shared), lambda: semaphore.release(1.5), lambda: semaphore.release(None),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="integer"):
            wrong()
    assert semaphore.statistics().value == 1


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_called_or_held(shared):
    """A Barrier's action can be called, a Condition's lock is a lock."""
    with pytest.raises(UsageError, match="a function without arguments"):
        sync.Barrier(2, action=5, shared=shared)
    with pytest.raises(UsageError, match="a Lock or RLock"):
        sync.Condition(5, shared=shared)


@pytest.mark.parametrize("make", [sync.Lock, sync.RLock, sync.Semaphore, sync.Event, sync.Condition])
def test_what_belongs_to_one_process_is_not_sent(make):
    """Pickling one says what to make in its place."""
    with pytest.raises(TypeError, match=rf"'mine' belongs to one process .* {make.__name__}\(shared=True\)"):
        pickle.dumps(make(name="mine"))


def test_a_closed_barrier_has_a_repr():
    """A message that shows one doesn't fail for it."""
    barrier = sync.Barrier(2, shared=True)
    barrier.close()
    assert "closed" in repr(barrier)
