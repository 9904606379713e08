"""The short way of a line, from the loop to an inline handler and back: `_quick.c` where it was compiled, else this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["answer", "in_python"]


def answer(
    call: Callable[[Any], Any], data: bytes, fd: int, limit: int, held: float, /
) -> int | tuple[Any, int, float] | None:
    """None if `data` isn't one whole line; bytes written if all went well; else (reply, bytes written, seconds).

    limit: bytes of the longest line. held: seconds that a call may take. Bytes written: -1 when the peer is gone. `fd`
    never blocks, and nothing is unsent for it elsewhere. Raises what the call raises.
    """
    line, end, rest = data.partition(b"\n")
    if rest or not end or len(data) > limit or (line and line[-1] == 13):  # a carriage return
        return None
    began = monotonic()
    reply = call(line)
    took = monotonic() - began
    if type(reply) is not bytes:
        return reply, 0, took
    size = len(reply) + 1
    try:
        wrote = os.write(fd, reply + b"\n")
    except BlockingIOError:
        wrote = 0
    except OSError:
        wrote = -1
    return wrote if wrote == size and took <= held else (reply, wrote, took)


in_python = answer
if os.environ.get("DUODAO_SPEED") != "0":
    with contextlib.suppress(ImportError):  # installed without a compiler, or for another Python
        from duodao.servers._quick import answer
