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
    r"^(\s*)from multiprocessing\.(connection|pool|process|queues|sharedctypes|synchronize) import": (
        r"\1from duodao.dropin.multiprocessing.\2 import"
    ),
    r"N = 5 if sm == 'spawn' else 100$": "N = 25  # each imports all of this module first",
    r"^(\s+)from multiprocessing import Pool$": r"\1from duodao.dropin.multiprocessing import Pool",
}
_MIXINS = '''
class ProcessesMixin:
    TYPE = "processes"
    connection = multiprocessing.connection
    Process = multiprocessing.Process

    def DummyList(self):
        """The original lies in the library's own heap."""
        return multiprocessing.Manager().list()

    def check_invariant(self, cond):
        """The original counts semaphores inside of a Condition."""


class ManagerMixin:
    TYPE = "manager"
    Process = multiprocessing.Process


for _name in (
    "active_children", "Array", "Barrier", "BoundedSemaphore", "Condition", "current_process", "Event", "JoinableQueue",
    "Lock", "parent_process", "Pipe", "Pool", "Queue", "RawArray", "RawValue", "RLock", "Semaphore", "set_executable",
    "Value",
):
    setattr(ProcessesMixin, _name, staticmethod(getattr(multiprocessing, _name)))
for _name in ("dict", "list", "Lock", "Namespace", "Pool", "Queue"):
    setattr(ManagerMixin, _name, staticmethod(getattr(multiprocessing.Manager(), _name)))

for _name, _base in list(globals().items()):
    if not isinstance(_base, type):
        continue
    _types = getattr(_base, "ALLOWED_TYPES", ())
    if _name.startswith("_Test"):
        _mixin = ProcessesMixin if "processes" in _types else ManagerMixin
        _made = type("Our" + _name[5:], (_mixin, _base, unittest.TestCase), {"__module__": __name__})
        globals()[_made.__name__] = _made
    elif _name.startswith("Test"):
        globals()["Our" + _name[4:]] = _base
'''
"""In place of the module's own mixins, which name the standard library: `_TestX` and `TestX` become `OurX`."""


def moved_text(text: str) -> str:
    """The test module's text with its imports changed, and its tests' classes."""
    for old, new in _IMPORTS.items():
        text = re.sub(old, new, text, flags=re.MULTILINE)
    return text[: text.index("class BaseMixin(object):")] + _MIXINS


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
