"""Several processes that serve one address, kept alive."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from duodao.servers.figures import Figures
from duodao.servers.options import Options


class Herd:
    """Serves `sockets`, one process each. What Server does for processes > 1; every method from any thread.

    error: why it has ended by itself, or None.
    """

    error: BaseException | None = None

    def __init__(self, work: Any, options: Options, sockets: Sequence[socket.socket]) -> None: ...

    def start(self) -> None:
        """Returns when every process accepts; raises what kept one of them from it. The sockets stay the caller's."""

    def pids(self) -> list[int]:
        """The numbers of the processes that serve now."""
        return []

    def figures(self) -> list[Figures]:
        """One per socket; a process that took another's place counts on from that one's last figures."""
        return []

    def drain(self) -> None:
        """Stop accepting, let calls in flight end within options.grace; returns when all processes have ended."""

    def close(self) -> None:
        """End all processes now."""

    def wait(self, timeout: float | None = None) -> bool:
        """Until all processes have ended: after drain, close, or by `error`."""
        return True
