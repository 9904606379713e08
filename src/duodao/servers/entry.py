"""What a process of a server runs."""

from __future__ import annotations

import socket
from typing import Any

from duodao.servers.options import Options


def make_worker(work: Any, options: Options, sockets: list[socket.socket]) -> Any:
    """What serves `sockets` on the running loop, here or in a child: worker.Worker for tcp, http.WebWorker for http.

    Both have start, drain, abort and figures.
    """
    raise NotImplementedError
