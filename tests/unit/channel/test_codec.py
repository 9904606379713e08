"""Items as bytes: two forms, and several in one frame."""

from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.channel import codec
from duodao.errors import NotPicklable, PeerLost

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=20
)


def same(a, b):
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return a == b


@given(PLAIN)
def test_plain_items_come_back_as_they_were(item):
    """What is plain comes back equal and of the same types: tuples stay tuples, keys stay ints."""
    form, blob = codec.pack_plain(item)
    assert form == codec.PLAIN
    assert same(codec.unpack((form, blob)), item)


def test_floats_that_json_lacks():
    """nan and the infinities travel, in JSON that others can read."""
    for value in (math.inf, -math.inf, math.nan):
        _, blob = codec.pack_plain(value)
        json.loads(blob, parse_constant=pytest.fail)
        back = codec.unpack_plain(blob)
        assert back == value or (math.isnan(back) and math.isnan(value))


class Number(int):
    """Not plain: a stranger's side has no such class."""


@pytest.mark.parametrize("item", [{1, 2}, object(), len, Number(3), bytearray(b"x"), [1, {"a": {2}}]])
def test_what_is_not_plain_is_refused(item):
    """Anything but exactly the plain types is refused, and the message names the type."""
    with pytest.raises(NotPicklable, match="is not a plain value"):
        codec.pack_plain(item)


def test_depth_is_bounded():
    """Neither side follows lists in lists without end."""
    deep: list = []
    for _ in range(codec.DEEPEST + 5):
        deep = [deep]
    with pytest.raises(NotPicklable, match="levels"):
        codec.pack_plain(deep)
    for levels in (codec.DEEPEST + 5, 100_000):
        with pytest.raises(PeerLost):
            codec.unpack_plain(b"[" * levels + b"]" * levels)


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"\xff", b"{", b"{}", b'{"z": 1}', b'{"b": "&"}', b'{"b": 5}', b'{"d": [[[], 1]]}', b'{"d": [1]}',
        b'{"i": "zz"}', b'{"i": 1}', b'{"f": "x"}', b'{"t": 5}', b'{"a": 1, "b": 2}',
    ],
)  # fmt: skip
def test_garbage_is_peer_lost(blob):
    """What is not a plain item is refused, never anything else."""
    with pytest.raises(PeerLost, match="plain values"):
        codec.unpack_plain(blob)


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_plain(blob):
    """No bytes at all make anything but plain values or PeerLost."""
    try:
        codec.pack_plain(codec.unpack_plain(blob))
    except PeerLost:
        pass


def test_own_items_by_value():
    """Between our own tasks a lambda travels; what can't says so."""
    assert codec.unpack(codec.pack(lambda x: x + 1))(1) == 2
    with pytest.raises(NotPicklable, match="item"):
        codec.pack(threading.Lock())


@given(st.lists(st.tuples(st.sampled_from([codec.PLAIN, codec.PICKLED]), st.binary(max_size=70)), min_size=1))
def test_frames_of_many(parcels):
    """Joined and split parcels are the same, in their order."""
    body = memoryview(b"".join(codec.join(parcels)))
    assert codec.split(body, len(parcels)) == parcels
    for wrong in (len(parcels) + 1, 0, 2**32 - 1):
        with pytest.raises(PeerLost):
            codec.split(body, wrong)
    with pytest.raises(PeerLost):
        codec.split(body[:-1] if len(body) > 5 else body[:3], len(parcels))
