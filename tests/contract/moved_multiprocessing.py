"""CPython's tests of `multiprocessing` as a program that has moved: the same text, with other import lines."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from typing import Any

NAME = "moved_test_multiprocessing"

_IMPORTS = {
    r"^import multiprocessing\.connection$": (
        "from duodao.dropin import multiprocessing\n"
        "import duodao.dropin.multiprocessing.connection\nimport duodao.dropin.multiprocessing.pool\n"
        "import duodao.dropin.multiprocessing.queues"
    ),
    r"^import multiprocessing\.(dummy|heap|managers|pool|queues)$": "",
    r"^    manager_class = multiprocessing\.managers\.SyncManager$": "    manager_class = None",
    r"^(\s*)from multiprocessing\.sharedctypes import Value, copy$": (
        r"\1from duodao.dropin.multiprocessing.sharedctypes import Value"
    ),
}


def moved_text(text: str) -> str:
    """The test module's text with its imports changed, without its own mixins, which name the standard library."""
    for old, new in _IMPORTS.items():
        text = re.sub(old, new, text, flags=re.MULTILINE)
    return text[: text.index("class BaseMixin(object):")]


def load(folder: Path) -> Any:
    """The moved module, written into `folder`, from where worker processes import it; None without Python's tests."""
    spec = importlib.util.find_spec("test")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "_test_multiprocessing.py"
    if not source.exists():
        return None
    (folder / f"{NAME}.py").write_text(moved_text(source.read_text()))
    sys.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(NAME)
