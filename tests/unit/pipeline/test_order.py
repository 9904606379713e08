"""The order of emission, and groups."""

import random

from duodao.pipeline.gather import Gatherer
from duodao.pipeline.node import Chunk
from duodao.pipeline.stages import Batched
from duodao.pipeline.window import GAP, Order


def drain(order):
    out = []
    while True:
        values, _ = order.pop()
        if not values:
            return out
        out += values


def test_spans_and_singles_come_out_in_order():
    """Whatever order ranges and single numbers arrive in, they leave in the order of their numbers."""
    for seed in range(50):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(1, 200), 20))
        parts = [range(a, b) for a, b in zip([0, *cuts], [*cuts, 200], strict=True)]
        rng.shuffle(parts)
        order, got = Order(), []
        for part in parts:
            if rng.random() < 0.5:
                order.put(part, list(part))
            else:
                mixed = list(part)
                rng.shuffle(mixed)
                order.put(mixed, list(mixed))
            got += drain(order)
        assert got == list(range(200))
        assert order.held == 0 and order.passed == 200


def test_gaps_are_passed():
    """A number that yields nothing does not hold up those after it."""
    order = Order()
    order.put([1], ["b"])
    assert order.pop() == ([], False)
    order.gap(0)
    assert order.pop() == ([GAP, "b"], True)
    assert order.passed == 2


def chunk(*numbers):
    return Chunk(list(numbers), [n * 10 for n in numbers], list(numbers))


def test_groups_follow_the_input_order():
    """In an ordered run a list holds values that follow each other, however they arrive."""
    gatherer = Gatherer(Batched(2), ordered=True)
    assert gatherer.accept(chunk(1), 0.0) == []
    assert gatherer.accept(chunk(3), 0.0) == []
    (first,) = gatherer.accept(chunk(0), 0.0)
    assert first.values == [[0, 10]] and first.ids == [0]
    (second,) = gatherer.gap(2, 0.0) + gatherer.accept(chunk(4), 0.0)
    assert second.values == [[30, 40]] and gatherer.members[3] == [3, 4]


def test_groups_close_by_time_and_at_the_end():
    """`within` counts from a list's first value; flush gives out what is half full."""
    gatherer = Gatherer(Batched(10, within=1.0), ordered=True)
    gatherer.accept(chunk(0, 1), 5.0)
    assert gatherer.closes_at == 6.0
    assert gatherer.ripe(5.9) == []
    assert gatherer.ripe(6.0)[0].values == [[0, 10]]
    gatherer.accept(chunk(2), 7.0)
    assert gatherer.flush()[0].values == [[20]]
    assert gatherer.idle()
