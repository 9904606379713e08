"""Whose journal it is: the names of the functions, the hash of their code, the shape of the pipeline."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class Identity:
    """names: qualified names of the functions. code: a hash per function, parted by spaces. shape: of the pipeline."""

    names: tuple[str, ...]
    code: str
    shape: str = ""

    def changed(self, other: Identity) -> list[str]:
        """The names of the functions whose code differs from `other`'s."""
        pairs = zip(self.names, self.code.split(), other.code.split(), strict=False)
        return [name for name, mine, theirs in pairs if mine != theirs] or list(self.names)


def fingerprint(functions: Iterable[Callable[..., Any]], shape: str = "") -> Identity:
    """The Identity of `functions`. The code of a function is its whole module file, because it may call what is in it;
    in `__main__`, a notebook or where there is no file, it is the function's own code with all that is nested in it."""
    known = [_known(function) for function in functions]
    return Identity(tuple(name for name, _ in known), " ".join(code for _, code in known), shape)


def _known(function: Any) -> tuple[str, str]:
    """Name and hash. What is no function, such as a program, says both itself."""
    own = getattr(function, "fingerprint", None)
    if own is not None and not callable(function):
        name, code = own()
        return name, code
    function, bound = _plain(function)
    return _name(function), _code(function, bound)


def _plain(function: Any) -> tuple[Any, bytes]:
    """The function itself, and what partials bind to it, which is part of what it computes."""
    bound = b""
    while isinstance(function, functools.partial):
        bound += _constant((function.args, function.keywords))
        function = function.func
    function = inspect.unwrap(function)
    function = getattr(function, "__func__", function)
    if hasattr(function, "__qualname__"):
        return function, bound
    return type(function), bound  # an instance with __call__


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', None) or 'builtins'}.{function.__qualname__}"


def _code(function: Any, bound: bytes) -> str:
    digest = hashlib.blake2b(bound, digest_size=8)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if path is not None and getattr(module, "__name__", "") != "__main__":
        try:
            with open(path, "rb") as file:
                for block in iter(lambda: file.read(1 << 16), b""):
                    digest.update(block)
            return digest.hexdigest()
        except OSError:  # a module of a zip file, or one whose file is gone
            pass
    for part in _bodies(function):
        digest.update(part)
    return digest.hexdigest()


def _bodies(function: Any) -> Iterable[bytes]:
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        yield _flat(code)
        yield _constant((function.__defaults__, function.__kwdefaults__))
    elif isinstance(function, type):
        for name, member in sorted(vars(function).items()):
            member = getattr(member, "__func__", member)  # noqa: PLW2901 - static and class methods hold theirs
            if isinstance(getattr(member, "__code__", None), CodeType):
                yield name.encode()
                yield _flat(member.__code__)
    else:
        yield _name(function).encode()  # built in: its code is Python's own


def _flat(code: CodeType) -> bytes:
    """Everything a code object does, nothing of where it stands (file and lines)."""
    head = repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags)).encode()
    return b"\0".join([code.co_code, head, *map(_constant, code.co_consts)])


def _constant(value: Any) -> bytes:
    if isinstance(value, CodeType):
        return _flat(value)
    if isinstance(value, tuple):
        return b"(" + b",".join(map(_constant, value)) + b")"
    if isinstance(value, frozenset):  # in hash order, which differs from process to process
        return b"{" + b",".join(sorted(map(_constant, value))) + b"}"
    if isinstance(value, dict):
        return _constant(tuple(value.items()))
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{type(value).__name__}:{value!r}".encode("utf-8", "surrogatepass")
    return type(value).__qualname__.encode()  # a default that is an object: its repr may hold an address
