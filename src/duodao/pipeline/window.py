"""Puts outcomes back into the order of their inputs, and knows how many are held for their turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class _Gap:
    """The place of an input that yields nothing of its own: it left the run, or another input speaks for it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "GAP"


GAP = _Gap()


class Failed:
    """A failed input's place in a run that raises: `error` is raised when its turn comes."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Order:
    """Outcomes by input number; `pop` gives what is next.

    Two shapes, because both are hot: whole ranges as the lists they came in (the process lane), and single numbers
    (lanes that wait). `passed` counts numbers that were handed on, gaps included; `held` those that wait for another.
    """

    __slots__ = ("held", "passed", "singles", "spans")

    def __init__(self) -> None:
        self.spans: dict[int, list[Any]] = {}
        self.singles: dict[int, Any] = {}
        self.passed = 0
        self.held = 0

    def put(self, ids: Sequence[int], values: list[Any]) -> None:
        """Outcomes of `ids`, in any order, each number once."""
        if not values:
            return
        self.held += len(values)
        if type(ids) is range and ids.step == 1:
            self.spans[ids.start] = values
        else:
            self.singles.update(zip(ids, values, strict=True))

    def gap(self, number: int) -> None:
        """`number` will never have an outcome of its own."""
        self.held += 1
        self.singles[number] = GAP

    def skip(self) -> bool:
        """Give up what is missing before the next outcome that is held; False when none is."""
        held = [*self.spans, *self.singles]
        if held:
            self.passed = min(held)
        return bool(held)

    def pop(self) -> tuple[list[Any], bool]:
        """(what is next, in order: some 4,096 at most and one span; whether it may hold GAP or Failed)."""
        spans, singles, at = self.spans, self.singles, self.passed
        out: list[Any] = []
        mixed = False
        while len(out) <= 4096:
            if at in spans:
                values = spans.pop(at)
                at += len(values)
                if out:
                    out += values
                else:
                    out = values  # nobody else holds it
            elif at in singles:
                mixed = True
                out.append(singles.pop(at))
                at += 1
            else:
                break
        self.held -= at - self.passed
        self.passed = at
        return out, mixed
