"""Random state that depends on the seed and the input alone."""

from __future__ import annotations

import random

import pytest

from duodao.lanes.base import Work
from duodao.lanes.seeds import bind_pairs, derive, generator, preserved, reseed


def test_derived_seeds_never_change():
    """A run with a seed gives the same results with every version: these numbers are part of the interface."""
    assert derive(0, 0) == 15378838894278201442
    assert derive(7, 1) != derive(71, 0)
    assert len({derive(1, i) for i in range(10_000)}) == 10_000


def test_rng_reaches_every_form_of_call():
    """`rng` comes beside star arguments, common and resources, the same for the same id."""

    def call(a, b, rng, scale, thing):
        return (a + b + rng.random()) * scale, thing

    work = Work(call, "call", star=True, common={"scale": 2}, seed=5, wants_rng=True)
    bound = bind_pairs(work, {"thing": "t"}, reseeds=False)
    assert bound(((1, 2), 9)) == ((3 + generator(5, 9).random()) * 2, "t")
    assert bound(((1, 2), 9)) == bound(((1, 2), 9))


def test_without_rng_the_global_state_is_set_only_where_calls_dont_overlap():
    """reseeds=False leaves the global dice alone, as threads must."""
    work = Work(lambda x: (x, random.random()), "f", seed=5)
    reseed(5, 3)
    expected = random.random()
    assert bind_pairs(work, reseeds=True)(("x", 3)) == ("x", expected)
    random.seed(1)
    first = random.random()
    random.seed(1)
    assert bind_pairs(work, reseeds=False)(("x", 3)) == ("x", first)


def test_the_callers_dice_are_given_back():
    """`preserved` restores the state, after an exception too."""
    random.seed(2)
    expected = random.random()
    random.seed(2)
    with pytest.raises(ValueError, match="inside"), preserved():
        reseed(5, 3)
        raise ValueError("inside")
    assert random.random() == expected
