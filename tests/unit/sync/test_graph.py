"""Who waits for whom: what is published, what counts as a circle, and who gives way."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest

from duodao.errors import Deadlock
from duodao.sync import graph


class On:
    """A wait for others, by name."""

    def __init__(self, *by, what="thing"):
        self.by, self.what = by, what

    def resolvers(self):
        return self.by

    def describe(self):
        return self.what


class Anyone(On):
    def resolvers(self):
        return None


class Bell:
    def __init__(self):
        self.rings = 0

    def signal(self):
        self.rings += 1
        return True


@pytest.fixture(autouse=True)
def empty():
    yield
    graph._waits.clear()
    graph._losses.clear()


def wait(who, *by, timed=False, on=None, bell=None):
    return graph.begin(who, on or On(*by, what=f"what {by} have"), timed=timed, ticket=bell)


# Units are numbers here, as of threads that don't exist.


def test_a_wait_is_published_until_it_ends():
    """`waiting` gives a unit's wait from begin to end."""
    assert graph.waiting(11) is None
    published = wait(11, 12)
    assert graph.waiting(11) is published
    graph.end(published)
    graph.end(published)
    assert graph.waiting(11) is None


def test_watchers_see_both():
    """A watcher is called as its unit's wait begins and ends, until `unwatch`."""
    seen = []
    graph.watch(11, seen.append)
    published = wait(11, 12, timed=True)
    graph.end(published)
    graph.unwatch(11)
    graph.end(wait(11, 12))
    assert seen == [published, None]


def test_the_closing_wait_raises():
    """The one that closes a circle gets Deadlock, and its wait is withdrawn."""
    wait(11, 12)
    wait(12, 13)
    with pytest.raises(Deadlock) as caught:
        wait(13, 11)
    assert len(caught.value.cycle) == 3
    assert "gives way" in str(caught.value)
    assert graph.waiting(13) is None
    assert graph.waiting(11) is not None


def test_a_deadlock_travels():
    """Its text survives pickling."""
    wait(11, 12)
    with pytest.raises(Deadlock) as caught:
        wait(12, 11)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.cycle == caught.value.cycle


@pytest.mark.parametrize("of", ["timed", "anyone", "doomed", "owner already"])
def test_no_circle(of):
    """Time-outs, waits that anyone could end, doomed ones and one that just got what it wanted are in no circle."""
    first = wait(11, 12, timed=of == "timed", on=Anyone() if of == "anyone" else None, bell=Bell())
    if of == "doomed":
        graph.doom(first, RuntimeError())
    elif of == "owner already":
        first.on.by = (11,)
    wait(12, 11)
    assert graph.waiting(12) is not None


def test_all_that_could_end_it_must_be_stuck():
    """With several resolvers, one that runs is enough; when the last of them gets stuck, it is a circle."""
    wait(11, 12, 13)
    wait(12, 11)
    with pytest.raises(Deadlock):
        wait(13, 11)
    wait(14, 11)  # waits for those in no circle of its own


def test_a_task_can_be_held_up_twice():
    """A circle through what a task waits for is found though the task's loop is held up as well, by one that runs."""

    async def main():
        here, task = threading.get_ident(), asyncio.create_task(asyncio.sleep(60))
        wait(task, 12)
        wait(here, 15)  # as if the loop's thread were blocked, by a unit that runs
        with pytest.raises(Deadlock) as caught:
            wait(12, task)
        assert len(caught.value.cycle) == 2
        graph.end(graph.waiting(task))
        wait(13, task)
        with pytest.raises(Deadlock, match="waits for the thread of its event loop"):
            wait(15, 13)
        graph.end(graph.waiting(here))
        task.cancel()

    asyncio.run(main())


def test_a_unit_that_waits_for_a_circle_is_not_its_victim():
    """Who stands outside the circle that it waits for is not told to give way."""
    wait(11, 12)
    wait(13, 11)
    with pytest.raises(Deadlock) as caught:
        wait(12, 11)
    assert len(caught.value.cycle) == 2


def test_who_gave_way_is_spared():
    """Of two that close the same circle again and again, both give way in turn."""
    bells = {who: Bell() for who in (11, 12)}
    losers = []
    for _ in range(4):
        first = wait(11, 12, bell=bells[11])
        try:
            second = wait(12, 11, bell=bells[12])
        except Deadlock:
            losers.append(12)
            graph.end(first)
            continue
        assert isinstance(first.doom, Deadlock)
        losers.append(11)
        graph.end(second)
        graph.end(first)
    assert losers == [12, 11, 12, 11]
    assert bells[11].rings == 2


def test_one_without_a_bell_is_never_the_other_side():
    """A wait that can't be woken is not chosen to give way, however often the other did."""
    for _ in range(3):
        first = wait(11, 12)
        with pytest.raises(Deadlock):
            wait(12, 11, bell=Bell())
        graph.end(first)


def test_doom_is_told_once():
    """The first doom counts; its bell rings once."""
    bell = Bell()
    waiting, error = wait(11, 12, bell=bell), RuntimeError("first")
    graph.doom(waiting, error)
    graph.doom(waiting, RuntimeError("second"))
    assert waiting.doom is error
    assert bell.rings == 1


def test_gone_rings_those_that_wait_for_it():
    """`gone` makes those look again that wait for the unit, and nobody else."""
    bells = [Bell(), Bell()]
    wait(11, 19, bell=bells[0])
    wait(12, 18, bell=bells[1])
    graph.gone(19)
    assert [bell.rings for bell in bells] == [1, 0]


def test_units_and_names():
    """The unit is the running task where there is one, else the thread; both have names and stacks."""
    assert graph.unit() == threading.get_ident()
    assert graph.name_of(graph.unit()) == "thread 'MainThread'"
    assert graph.name_of(11) == "thread 11"
    assert graph.stack_of(11) == ()

    async def main():
        task = graph.unit()
        assert task is asyncio.current_task()
        assert graph.loop_thread(task) == threading.get_ident()
        return graph.name_of(task)

    assert asyncio.run(main()).startswith("task 'Task-")


def test_the_stack_of_a_task():
    """A suspended task shows the frames of its coroutines, the outermost first."""

    async def inner():
        await asyncio.sleep(60)

    async def outer():
        await inner()

    async def main():
        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        stack = graph.stack_of(task)
        task.cancel()
        return [function for _, _, function in stack]

    assert asyncio.run(main())[:2] == ["outer", "inner"]


class Elsewhere:
    """Other processes, as a test has them: far thread -> (whom it waits for, number, freshness)."""

    def __init__(self, waits, renews=True):
        self.waits, self.renews = waits, renews

    def waits_of(self, far):
        found = self.waits.get(far)
        if found is None:
            return None
        wait = On(found[0], what="Lock 'far'")
        return type("FarWait", (), {"on": wait, "number": found[1], "timed": False, "fresh": found[2], "stack": ()})()

    def renewed(self, far, fresh):
        return self.renews

    def name_of(self, far):
        return f"thread {far.tid} of process 1"


@pytest.mark.parametrize(("fresh", "renews", "circle"), [(None, False, True), (7, True, True), (7, False, False)])
def test_a_circle_through_another_process(monkeypatch, fresh, renews, circle):
    """Edges of other processes count; one that is a summary only when it was renewed after the first look."""
    far = graph.Far(1)
    monkeypatch.setattr(graph, "FAR", Elsewhere({far: (11, 5, fresh)}, renews))
    if not circle:
        wait(11, far)
        return
    with pytest.raises(Deadlock, match="thread 1 of process 1 waits for Lock 'far', held by"):
        wait(11, far)


def test_a_walk_that_sees_another_the_second_time_finds_nothing(monkeypatch):
    """A thread that has run between the two looks has perhaps released: no circle."""
    far, numbers = graph.Far(1), iter(range(100))

    class Moving(Elsewhere):
        def waits_of(self, far):
            self.waits = {far: (11, next(numbers), None)}
            return super().waits_of(far)

    monkeypatch.setattr(graph, "FAR", Moving({}))
    wait(11, far)
    assert graph.waiting(11) is not None
