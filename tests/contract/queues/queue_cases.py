"""The transports that the contract suite of queues runs over. A new one joins with one line in CASES."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duodao.channel.base import ORDERS, Queue
from duodao.sync import graph

PATIENCE = 30.0
"""Seconds after which a test that waits for something fails; none waits that long when all is well."""


def copied(queue: Queue[Any]) -> Queue[Any]:
    """The handle that another task would get: by way of pickle."""
    return pickle.loads(pickle.dumps(queue))


def as_client(queue: Queue[Any]) -> Queue[Any]:
    """A handle that asks the maker over the wire, as that of another process would."""
    from duodao.channel.away import Away

    client = copied(queue)
    client._release()
    client._hold(Away(queue._place, queue._key))
    return client


@dataclass(frozen=True)
class Case:
    """A transport under test.

    via: as given to Queue; {tmp} becomes a directory of the test's own. second: another handle of the same queue, for
    its other side. unbounded: maxsize=0 is allowed. joins: it counts task_done(). waits_async: it has the async forms.
    publishes: who waits is in sync.graph, in the thread that waits.
    """

    name: str
    via: str
    orders: tuple[str, ...] = ORDERS
    second: Callable[[Queue[Any]], Queue[Any]] = copied
    unbounded: bool = False
    joins: bool = True
    waits_async: bool = False
    publishes: bool = True

    def make(self, tmp: Path, maxsize: int = 10, **options: Any) -> Queue[Any]:
        """A new queue."""
        return Queue(maxsize, via=self.via.format(tmp=tmp), **options)


CASES = [
    Case("memory", "memory", second=lambda queue: queue, unbounded=True, waits_async=True),
    Case("shared", "shared", waits_async=True),
    Case("pipe", "pipe"),
    Case("pipe client", "pipe", second=as_client),
    Case("unix client", "unix:{tmp}/queue.sock", second=as_client),
    Case("tcp client", "tcp://127.0.0.1:0", second=as_client),
    Case("file", "file:{tmp}/queue.db"),
]


class Call:
    """A call in a thread of its own: to see that it waits, and how it ends."""

    def __init__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self._call = lambda: function(*args, **options)
        self._waits = threading.Event()
        self.wait: graph.Wait | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        graph.watch(threading.get_ident(), self._note)
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error
        finally:
            graph.unwatch(threading.get_ident())

    def _note(self, wait: graph.Wait | None) -> None:
        if wait is not None:
            self.wait = wait
            self._waits.set()

    def blocked(self) -> Call:
        """Itself, as soon as the call waits; fails when it returns instead."""
        assert self._waits.wait(PATIENCE), f"the call didn't wait: {self.value!r}, {self.error!r}"
        return self

    def result(self) -> Any:
        """What the call returned; raises what it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call still waits"
        if self.error is not None:
            raise self.error
        return self.value
