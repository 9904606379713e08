"""How inputs are known again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.channel.keys import SIZE, checked, content, described, digester
from duodao.errors import NotPicklable, UsageError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def rebuilt(value):
    """An equal value that shares no object with it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(rebuilt, value))
    if isinstance(value, dict):
        return {rebuilt(k): rebuilt(v) for k, v in value.items()}
    if isinstance(value, str):
        return "".join(list(value))
    return value


@given(values)
def test_equal_content_equal_key(value):
    """Equal inputs have equal keys, however their parts are shared as objects."""
    assert content(value) == content(rebuilt(value))
    assert len(content(value)) == SIZE


@given(values, values)
def test_other_content_other_key(one, other):
    """Inputs that differ, in type too, have different keys."""
    same = repr(one) == repr(other)
    assert (content(one) == content(other)) == same


def test_types_are_told_apart():
    """1, "1", b"1", 1.0, True, (1,) and [1] are seven inputs."""
    items = [1, "1", b"1", 1.0, True, (1,), [1]]
    assert len({content(item) for item in items}) == len(items)


def test_arrays_are_told_apart():
    """Two arrays of the same bytes but of another type or shape are different inputs."""
    data = [np.zeros(4, "i4"), np.zeros(4, "f4"), np.zeros((2, 2), "i4")]
    assert len({content(item) for item in data}) == 3


SETS = """
import pickle, sys
from duodao.channel.keys import content
words = [chr(97 + n % 26) * (n + 1) for n in range(50)]
items = [set(words), frozenset(words), {"a": {1: set(words)}, "b": [frozenset(words)]}, {"a": "\\x8f\\u008f"}]
print([content(item).hex() for item in items])
"""


def test_sets_in_every_process():
    """A set has one key under every hash seed, wherever in the input it stands."""
    found = {
        subprocess.run(
            [sys.executable, "-c", SETS], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_cyclic_input():
    """An input that contains itself has a key."""
    loop = [1]
    loop.append(loop)
    assert content(loop) == content(loop)


def test_lone_surrogates():
    """A path that doesn't decode has a key of its own."""
    assert content("a\udcff") != content("a\udcfe")


def test_unpicklable_input_names_the_way_out():
    """An input that can't be pickled is refused with a hint to key=."""
    with pytest.raises(NotPicklable, match="key="):
        content(lambda: 1)


def test_mtime_key(tmp_path: Path):
    """A file is the same input until its size or time of change is another; a missing one has a key too."""
    key = digester("mtime")
    path = tmp_path / "f"
    missing = key(path)
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = key(path)
    assert first == key(str(path)) == key(os.fsencode(path)) != missing
    os.utime(path, ns=(1, 2))
    second = key(path)
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 2))
    assert len({first, second, key(path)}) == 3
    with pytest.raises(UsageError, match="paths"):
        key(17)
    with pytest.raises(UsageError, match="paths"):
        key("a\0b")


def test_function_key():
    """A function of the item may give a str, bytes, int or tuple; anything else is refused by name."""
    key = digester(lambda row: row["id"])
    assert key({"id": 3, "x": 1}) == key({"id": 3, "x": 2}) != key({"id": 4})
    with pytest.raises(UsageError, match="str, bytes, int or tuple"):
        key({"id": None})


def test_key_option_is_checked():
    """An unknown key names the valid ones."""
    with pytest.raises(UsageError, match="mtime"):
        checked("size")
    assert [described(k) for k in (None, "mtime", len)] == ["content", "mtime", "function"]
