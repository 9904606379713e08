"""What a lane's loop makes of an exception that came out of a call."""

from __future__ import annotations

from duodao.lanes.base import Failure, contain
from duodao.lanes.foreign import set_traceback


def caught(error: BaseException, seconds: float = 0.0) -> Failure:
    """The item's Failure: the same object, its traceback without the loop's own frame.

    That frame's locals hold the batch and the failures: with it in the traceback every error would be a reference cycle
    that keeps its whole batch alive until the collector comes by.
    """
    trace = error.__traceback__
    if trace is not None:
        set_traceback(error, trace.tb_next)
    return Failure(contain(error), "error", seconds)
