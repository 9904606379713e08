"""CPython's tests of `threading` as a program that has moved: the same text, with other import lines."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from typing import Any

NAME = "moved_test_threading"


def moved_text(text: str) -> str:
    """The test module's text, and the programs that it starts, with other imports."""
    return re.sub(
        r"^( *)(?:import ([\w, ]*\bthreading\b[\w, ]*)|from threading import (.*))$", _moved, text, flags=re.MULTILINE
    )


def _moved(found: re.Match[str]) -> str:
    indent, names, parts = found.groups()
    if parts:
        return f"{indent}from duodao.dropin.threading import {parts}"
    others = [name for name in names.split(", ") if name != "threading"]
    return f"{indent}from duodao.dropin import threading" + (f"; import {', '.join(others)}" if others else "")


def load(folder: Path) -> Any:
    """The moved module, written into `folder`; None without Python's tests."""
    spec = importlib.util.find_spec("test")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "test_threading.py"
    if not source.exists():
        return None
    (folder / f"{NAME}.py").write_text(moved_text(source.read_text()))
    sys.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(NAME)
