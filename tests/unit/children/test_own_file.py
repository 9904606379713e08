"""Files that the guard removes when their maker has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_CODE = """
import os, sys, signal
from duodao.children import guard
path, how = sys.argv[1:]
made = os.lstat(path)
guard.own_file(path, made.st_dev, made.st_ino)
if how == "disown":
    guard.disown_file(path, made.st_dev, made.st_ino)
if how == "replace":
    os.rename(path, path + "-old")
    open(path, "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the guard ends with its program")
@pytest.mark.parametrize(("how", "stays"), [("own", False), ("disown", True), ("replace", True)])
def test_an_owned_file_goes_with_its_maker(tmp_path, how, stays):
    """After kill -9 the file is gone, unless it was disowned or another has its name."""
    path = tmp_path / "file"
    path.touch()
    done = subprocess.run([sys.executable, "-c", _CODE, str(path), how], stdout=subprocess.PIPE)  # ends with the guard
    assert done.returncode == -signal.SIGKILL
    assert os.path.exists(path) == stays
