"""Priorities as bytes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.channel.sortable import sort_key

NUMBERS = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.integers(-(10**320), 10**320)
NUMBERS |= st.integers(2**53 - 9, 2**53 + 9) | st.sampled_from([math.inf, -math.inf, 10**400, -(10**400), 0.0, -0.0])
KINDS = [NUMBERS, st.text(), st.binary(), st.tuples(NUMBERS, st.text()), st.lists(NUMBERS).map(tuple)]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_bytes_sort_as_the_values_do(kind):
    """The bytes of two priorities of one kind compare as Python compares them, equal ones included."""

    @given(KINDS[kind], KINDS[kind])
    def check(a, b):
        one, other = sort_key([a]), sort_key([b])
        assert (one < other) == (a < b)
        assert (one == other) == (a == b)

    check()


def test_of_a_pair_the_first_half_counts():
    """The anything of (priority, anything) is not looked at; of a longer tuple what can't be sorted ends the key."""
    assert sort_key((2, object())) == sort_key((2, object())) < sort_key((3, None))
    assert sort_key((1, 5, object())) == sort_key((1, 5, object())) < sort_key((1, 6, object()))


@pytest.mark.parametrize("item", [None, {1}, object(), (None, 1)])
def test_other_priorities_are_refused(item):
    """A priority that has no place among the others is a TypeError."""
    with pytest.raises(TypeError, match="can't be a priority"):
        sort_key(item)
