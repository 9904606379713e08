"""Whose a journal is."""

from __future__ import annotations

import functools
import importlib
import math
import os
import subprocess
import sys
import types

import pytest

from duodao.channel.identity import fingerprint


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module file that can be rewritten: call it with its text."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(text):
        (tmp_path / "some_module_of_a_user.py").write_text(text)
        sys.modules.pop("some_module_of_a_user", None)
        importlib.invalidate_caches()
        return importlib.import_module("some_module_of_a_user")

    yield load
    sys.modules.pop("some_module_of_a_user", None)


def test_whole_module_counts(module):
    """A change anywhere in the function's module changes the code, not the name."""
    before = fingerprint([module("def f(x): return g(x)\ndef g(x): return 1\n").f])
    after = fingerprint([module("def f(x): return g(x)\ndef g(x): return 2\n").f])
    assert before.names == after.names == ("some_module_of_a_user.f",)
    assert before.code != after.code
    assert before.changed(after) == ["some_module_of_a_user.f"]


def test_only_the_changed_one_is_named(module):
    """Of several functions the one whose code has changed is named."""
    before = fingerprint([math.sqrt, module("def f(x): return 1\n").f])
    after = fingerprint([math.sqrt, module("def f(x): return 2\n").f])
    assert before.changed(after) == ["some_module_of_a_user.f"]


def test_shape_is_kept():
    """The shape is what the caller says."""
    assert fingerprint([len], shape="len -> batch(3)").shape == "len -> batch(3)"


def in_main(text):
    """The function f of a program without a file."""
    module = types.ModuleType("__main__")
    exec(compile(text, "<cell>", "exec"), module.__dict__)
    return module.f


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(x): return x + 1", "\n\n# moved\ndef f(x): return x + 1", True),
        ("def f(x): return x + 1", "def f(x): return x + 2", False),
        ("def f(x): return x.a()", "def f(x): return x.b()", False),
        ("def f(x, y=1): return x", "def f(x, y=2): return x", False),
        ("def f(x): return [y + 1 for y in (lambda: x)()]", "def f(x): return [y + 1 for y in (lambda: -x)()]", False),
        ("f = lambda x: x", "f = lambda x: -x", False),
    ],
)
def test_code_of_main(one, other, same):
    """Without a module file the function's own code counts, nested functions and defaults included; lines don't."""
    assert (fingerprint([in_main(one)]).code == fingerprint([in_main(other)]).code) == same


def test_code_of_main_in_every_process():
    """The hash is the same under every hash seed, though the code holds a set."""
    program = (
        "from duodao.channel.identity import fingerprint\n"
        "def f(x): return x in {'a', 'b', 'c', 'd', 'e', 'f'}\n"
        "print(fingerprint([f]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_what_a_partial_binds_counts():
    """Two partials of one function with other arguments are other code."""
    codes = {fingerprint([functools.partial(pow, n)]).code for n in (2, 3)} | {fingerprint([pow]).code}
    assert len(codes) == 3


class Callee:
    """A callable that is no function."""

    def __call__(self, x):
        return x


def test_callables_of_all_kinds_have_one():
    """Built-in functions, instances with __call__ and bound methods have an identity."""
    names = fingerprint([math.sqrt, Callee(), Callee().__call__, str]).names
    assert [name.rpartition(".")[2] for name in names] == ["sqrt", "Callee", "__call__", "str"]
