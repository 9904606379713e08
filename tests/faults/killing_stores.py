"""Memory that kills its process at the k-th store: to look at what a kill between any two stores leaves."""

from __future__ import annotations

import os
import signal


class Stores:
    """Counts the stores of this process to shared memory. at: the one before which it dies; 0 for never."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def step(self):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, *names):
        """From now on, stores to these memoryviews of `owner` count."""
        for name in names:
            setattr(owner, name, Watched(getattr(owner, name), self))


class Watched:
    """A memoryview whose stores are steps. A store of many bytes is several: half of it, then all."""

    def __init__(self, view, stores):
        self.view = view
        self.stores = stores

    def __getitem__(self, key):
        return self.view[key]

    def __setitem__(self, key, value):
        self.stores.step()
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self.view))
            if stop - start > 1:
                code = getattr(self.view, "format", "B")
                source = memoryview(value).cast("B").cast(code) if code != "B" else value
                half = (stop - start) // 2
                # From the end on, as memmove does where the pieces overlap upwards.
                self.view[stop - half : stop] = bytes_of(source[len(source) - half :], code)
                self.stores.step()
        self.view[key] = value

    def __len__(self):
        return len(self.view)

    def __getattr__(self, name):
        return getattr(self.view, name)


def bytes_of(part, code):
    """A copy of it, for a memoryview of this format."""
    return memoryview(bytes(part)).cast(code)


def in_child(act):
    """Run `act` in a forked copy; True when it came to its end, False when it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert status == 0
    return True
