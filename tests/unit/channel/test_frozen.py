"""Values that can't be changed in place, and copies of them that can. Source: M12."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import io
import json
import pickle
import threading
import types
from typing import NamedTuple

import pytest

from duodao.channel.frozen import freeze, thaw


@dataclasses.dataclass
class Point:
    x: int
    more: list


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: list


class Plain:
    def __init__(self):
        self.a = {"k": [1]}

    def bump(self):
        self.a = 2


class Slotted:
    __slots__ = ("q",)

    def __init__(self):
        self.q = [1]


class Pair(NamedTuple):
    a: int
    b: list


def value():
    """One of everything."""
    return {
        "list": [1, {2, 3}], "bytes": bytearray(b"x"), "point": Point(1, [2]), "plain": Plain(), "slotted": Slotted(),
        "fixed": Fixed([1]), "tuple": (1, [2]), "named": Pair(1, [2]),
    }  # fmt: skip


CHANGES = [
    'v["x"] = 1', 'del v["list"]', "v.update(x=1)", 'v.pop("list")', "v |= {1: 2}", 'v["list"].append(1)',
    'v["list"] += [1]', 'v["list"].sort()', 'v["list"][0] = 1', 'v["list"][1].add(4)', 'v["bytes"][0] = 1',
    'v["bytes"].append(1)', 'v["point"].x = 2', 'v["point"].more.append(3)', 'del v["point"].x', 'v["plain"].bump()',
    'v["plain"].a["k"].append(1)', 'v["plain"].new = 1', 'vars(v["plain"])["new"] = 1', 'v["slotted"].q = 1',
    'v["slotted"].q.append(1)', 'v["fixed"].x.append(1)', 'v["tuple"][1].append(1)', 'v["named"].b.append(1)',
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place(change):
    """It raises TypeError, nothing is changed, and the message says what to do instead."""
    frozen = freeze(value())
    with pytest.raises(TypeError) as caught:
        exec(change, {"v": frozen})
    assert "thaw" in str(caught.value) or "mappingproxy" in str(caught.value)
    assert json.dumps(frozen["list"][0]) == "1"


def test_it_is_what_it_was():
    """isinstance, ==, json and repr see no difference."""
    frozen = freeze(value())
    assert isinstance(frozen, dict)
    assert isinstance(frozen["list"], list)
    assert isinstance(frozen["list"][1], set)
    assert isinstance(frozen["point"], Point)
    assert frozen["point"] == Point(1, [2])
    assert Point(1, [2]) == frozen["point"]
    assert frozen["fixed"] == Fixed([1])
    assert frozen["list"] == [1, {2, 3}]
    assert repr(frozen["point"]) == repr(Point(1, [2]))
    assert json.dumps(freeze({"a": [1, {"b": None}]})) == '{"a": [1, {"b": null}]}'


@pytest.mark.parametrize("way", [thaw, copy.deepcopy, lambda v: v.thaw(), lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_can_be_changed(way):
    """.thaw(), deepcopy and pickle give ordinary objects all through; the frozen value stays."""
    frozen = freeze(value())
    made = way(frozen)
    assert type(made) is dict
    assert type(made["point"]) is Point
    made["list"].append(1)
    made["list"][1].add(9)
    made["bytes"][0] = 1
    made["point"].x = 5
    made["point"].more.append(1)
    made["plain"].bump()
    made["slotted"].q.append(2)
    made["fixed"].x.append(2)
    made["tuple"][1].append(3)
    assert frozen["list"] == [1, {2, 3}]
    assert frozen["point"] == Point(1, [2])
    assert frozen["slotted"].q == [1]


def test_a_shallow_copy():
    """copy.copy gives an ordinary container or object; what is in it is frozen still."""
    frozen = freeze({"a": [1]})
    made = copy.copy(frozen)
    made["b"] = 1
    with pytest.raises(TypeError):
        made["a"].append(1)
    point = copy.copy(freeze(Point(1, [2])))
    point.x = 2
    assert type(point) is Point


def test_arrays():
    """An array raises on every change in place, its views too; what is computed from it is ordinary."""
    numpy = pytest.importorskip("numpy")
    frozen = freeze({"a": numpy.arange(4)})["a"]
    for change in (
        "a[0] = 1",
        "a += 1",
        "a.sort()",
        "a.fill(1)",
        "a.setflags(write=True)",
        "a[1:][0] = 1",
        "a.resize(2)",
    ):
        with pytest.raises(TypeError, match="thaw"):
            exec(change, {"a": frozen})
    assert isinstance(frozen, numpy.ndarray)
    assert (frozen == numpy.arange(4)).all()
    for made in (frozen + 1, frozen.thaw(), frozen.copy(), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert type(made) is numpy.ndarray
        made[0] = 7
    assert frozen.sum() == 6
    with pytest.raises(TypeError, match="array of objects"):
        freeze(numpy.array([[], None], dtype=object))


def test_values_that_meet_themselves():
    """A list that holds itself, and one that is there twice, are frozen once."""
    twice = [1]
    loop = [twice, twice]
    loop.append(loop)
    frozen = freeze(loop)
    assert frozen[2] is frozen
    assert frozen[0] is frozen[1]


@pytest.mark.parametrize(
    "refused",
    [
        collections.deque([1]),
        collections.OrderedDict(a=1),
        collections.Counter("a"),
        io.BytesIO(),
        ValueError("x"),
        types.SimpleNamespace(a=1),
        functools.partial(int, base=2),
    ],
)
def test_what_cannot_be_made_read_only(refused):
    """It is refused, wherever it is, and the message names its type."""
    with pytest.raises(TypeError, match=type(refused).__name__):
        freeze([{"a": (refused,)}])


def test_atoms_stay():
    """What nobody can change is not copied."""
    for atom in (1, "x", None, 2.5, b"x", test_atoms_stay, int, threading):
        assert freeze(atom) is atom
