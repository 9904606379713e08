"""Another process of the same program, for tests: it runs source, says lines and hears single bytes."""

from __future__ import annotations

import os
import pickle
import select
import textwrap
import time

from duodao.children import guard


class Other:
    """A worker that runs `source`, which knows `fds`, `say(text)`, `hear()` and what else is given, pickled."""

    def __init__(self, source, **given):
        begin = f"import pickle; globals().update(pickle.loads({pickle.dumps(given)!r}))\n" if given else ""
        source = begin + textwrap.dedent(source)
        self._heard, said = os.pipe()
        told, self._tell = os.pipe()
        self.child = guard.fork("sync_entries:run", arg=source.encode(), fds=[said, told])
        self.pid = self.child.pid
        os.close(said)
        os.close(told)
        self._lines = b""

    def hear(self, timeout=10):
        """Its next line; "" when it has ended."""
        while b"\n" not in self._lines:
            assert select.select([self._heard], [], [], timeout)[0], "the other process says nothing"
            part = os.read(self._heard, 65536)
            if not part:
                return self._lines.decode()
            self._lines += part
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def tell(self):
        """Let its `hear()` return."""
        os.write(self._tell, b"x")

    def kill(self):
        """kill -9, and wait until it is gone."""
        self.child.kill()
        self.child.wait(10)

    def close(self):
        """End it."""
        self.kill()
        os.close(self._heard)
        os.close(self._tell)


def until(condition, what):
    """Wait for something that another thread or process brings about."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"{what}: not within 10 s"
        os.sched_yield()
