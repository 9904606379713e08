"""What the coroutine lane remembers of a batch that is under way, and of each of its worker tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duodao.lanes.base import Batch, Deliver, Failure, Result

if TYPE_CHECKING:
    import asyncio


class Flight:
    """A batch on its way. The lists are parallel and hold what ended since the last delivery."""

    __slots__ = ("batch", "cancelled", "deliver", "dirty", "each", "errors", "positions", "values")

    def __init__(self, batch: Batch, deliver: Deliver) -> None:
        self.batch = batch
        self.deliver = deliver
        self.cancelled = False
        self.dirty = False  # it is in the lane's list of those to deliver
        self._renew()

    def _renew(self) -> None:
        self.positions: list[int] = []
        self.values: list[Any] = []
        self.each: list[float] = []
        self.errors: dict[int, Failure] = {}

    def take(self, notices: tuple[str, ...]) -> Result:
        """What ended since the last delivery."""
        each = self.each
        result = Result(
            self.batch,
            self.values,
            positions=self.positions,
            errors=self.errors or None,
            seconds=sum(each),
            each=each,
            notices=notices,
        )
        self.dirty = False
        self._renew()
        return result


class Hand:
    """One worker task. flight is None while it has no call; began: its call's start.

    mercy: set when the lane has cancelled its call: the timer after which the call is given up. expired: that was
    because of the time-out. lost: the call was given up; its outcome, should there be one, is dropped.
    """

    __slots__ = ("began", "expired", "flight", "lost", "mercy", "position", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.flight: Flight | None = None
        self.position = 0
        self.began = 0.0
        self.expired = False
        self.lost = False
        self.mercy: asyncio.TimerHandle | None = None

    def recover(self) -> None:
        """The call the lane cancelled has ended: the worker goes on, unless somebody else has cancelled it as well."""
        if self.mercy is not None:
            self.mercy.cancel()
            self.mercy = None
        if self.task is not None and self.task.uncancel():
            from asyncio import CancelledError  # not at the top: greenlets have flights, and no loop

            raise CancelledError
