"""FILE.py:NAME on the command line: load the file as `python FILE.py` would see it, and take the name from it."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from duodao.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType


_OURS = (
    "asyncio",
    "cloudpickle",
    "colorsys",
    "csv",
    "decimal",
    "fcntl",
    "fractions",
    "json",
    "logging",
    "mmap",
    "numbers",
    "psutil",
    "queue",
    "random",
    "resource",
    "rich",
    "sqlite3",
    "statistics",
    "string",
    "sysconfig",
    "termios",
    "uvloop",
)
"""Modules that Duodao may load after the user's folder has come first on sys.path."""


@dataclass(frozen=True, slots=True)
class Target:
    """What FILE.py:NAME named. text: as the user wrote it; path: of the file; value: the object."""

    text: str
    path: str
    name: str
    value: Any


def load(text: str) -> Target:
    """The object that `text`, FILE.py:NAME, names; NAME may be dotted (Class.method).

    Raises UsageError when the file is missing, fails to load, or has no such name.
    """
    path, colon, name = text.rpartition(":")
    if not colon or not name or os.path.exists(text):
        raise UsageError(f"{text!r} names no function: write FILE.py:FUNC")
    if not os.path.exists(path):
        raise UsageError(f"no such file: {path}")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory, not a Python file")
    return Target(text, path, name, _find(load_file(path), path, name))


def load_function(text: str) -> Any:
    """As `load`, and refuses what can't be called."""
    target = load(text)
    if not callable(target.value):
        raise UsageError(f"{text} is no function but a value of type {type(target.value).__name__}")
    return target.value


def load_file(path: str) -> ModuleType:
    """Import the file under its own name with its folder first on sys.path, so that workers import it by name as well.

    Where that name means another module (a file called json.py, numbers.py) or is no name at all (2024-run.py), it gets
    a name of its own, and what it defines travels to workers by value.
    """
    path = os.path.abspath(path)
    folder, stem = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    _load_shadowed(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if stem.isidentifier() and _is_free(stem, path):
            return importlib.import_module(stem)
        return _load_apart(stem, path)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} can't be loaded: {_reason(error, path)}") from error


def _load_shadowed(folder: str) -> None:
    """Load those of our modules that a file of this folder would stand in front of, as a user's queue.py would."""
    names = {entry.partition(".")[0] for entry in os.listdir(folder)}
    for name in names.intersection(_OURS).difference(sys.modules):
        with contextlib.suppress(ImportError):  # it is not installed, so nothing of ours needs it
            importlib.import_module(name)


def _is_free(stem: str, path: str) -> bool:
    """True when `import stem` gives, or already gave, this very file."""
    known = sys.modules.get(stem)
    if known is not None:
        return _same(getattr(known, "__file__", None), path)
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(stem)
    return spec is not None and _same(spec.origin, path)


def _same(one: str | None, other: str) -> bool:
    return one is not None and os.path.exists(one) and os.path.samefile(one, other)


def _load_apart(stem: str, path: str) -> ModuleType:
    import cloudpickle

    name = f"{stem}-{blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.machinery.SourceFileLoader(name, path)  # a name without .py has no loader of its own
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)
    return module


def _reason(error: BaseException, path: str) -> str:
    """What went wrong while loading, with the line of the user's file in which it did, on one line."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename) == path]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}".replace("\n", " ")


def _find(module: ModuleType, path: str, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [n for n, v in vars(value).items() if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise UsageError(f"{path} has no {name!r}{_hint(part, names, module)}") from None
    return value


def _hint(wanted: str, names: list[str], module: ModuleType) -> str:
    near = difflib.get_close_matches(wanted, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    own = [n for n in names if getattr(getattr(module, n, None), "__module__", None) == module.__name__]
    return f"; it defines {', '.join(sorted(own)[:8])}" if own else ""
