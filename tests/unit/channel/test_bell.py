"""A file that rings."""

from __future__ import annotations

import os
import queue
import subprocess
import sys

import pytest

from duodao.channel.bell import Listener
from duodao.channel.owners import start_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")


def test_touches_and_deaths_are_heard(tmp_path):
    """A touch of the file is heard, and the death of a process that is minded; after stop nothing is."""
    path = tmp_path / "file"
    path.touch()
    heard: queue.SimpleQueue = queue.SimpleQueue()
    listener = Listener(str(path), lambda: heard.put("!"))
    os.utime(path)
    assert heard.get(timeout=30)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        start = start_of(process.pid)
        assert start is not None
        listener.mind([(process.pid, start)])
        process.kill()
        assert heard.get(timeout=30)
    assert start_of(process.pid) is None
    listener.stop()
    os.utime(path)
    assert heard.empty()


def test_the_dead_are_heard_at_once(tmp_path):
    """Minding a process that is gone already does no harm."""
    path = tmp_path / "file"
    path.touch()
    listener = Listener(str(path), lambda: None)
    listener.mind([(2**22 + 1, 1)])
    listener.stop()
