"""A long-lived program that speaks JSON lines: {"id": 7, "input": …} in, {"id": 7, "output": …} or "error" out.

Answers may come in any order. Several calls are in its pipe where a call takes so little that waiting for each answer
would cost more; a program that dies then has them run again one by one, so that the guilty one is named.
"""

from __future__ import annotations

import json
from time import monotonic

from duodao.errors import CommandFailed, NotPicklable
from duodao.lanes.base import PROMPT, Failure
from duodao.lanes.program import Command, encoded
from duodao.lanes.running import Call, Fault, Outcome, Running, Then

DEPTH = 128
"""Calls that one program may have at once."""
_QUOTED = 200


class Dialogue(Running):
    """One worker. room: calls that it is given at once, as many as take it PROMPT together."""

    def __init__(self, command: Command, argv: list[str], then: Then) -> None:
        self._line: list[bytes] = []
        self._size = 0
        self._last = 0
        self._heard = False
        super().__init__(command, argv, then, feeds=True)
        self.state = "idle"
        self.room = 1
        self._per = PROMPT
        self._mark = self.began

    def has_room(self, call: Call) -> bool:
        """Whether the call may be given to it now."""
        if call.alone:
            return not self.calls
        return len(self.calls) < self.room and not any(other.alone for other in self.calls.values())

    @property
    def barren(self) -> bool:
        """It never took a call nor answered one."""
        return not self._heard

    def begin(self, call: Call, number: int) -> None:
        """Raises NotPicklable for an item that is no JSON."""
        try:
            data = f'{{"id":{number},"input":{encoded(call.item)}}}\n'.encode()
        except (TypeError, ValueError, RecursionError) as error:
            refused = NotPicklable(f"the input can't be written as JSON: {error}", "input")
            refused.__cause__ = error
            raise refused from error
        call.began = monotonic()
        call.size = len(data)
        if not self.calls:
            self._mark = call.began
        self.calls[number] = call
        self._last = number
        self.write(data)

    def take(self, data: bytes) -> list[Outcome]:
        *lines, rest = data.split(b"\n")
        outcomes = []
        now = monotonic()
        try:
            for line in lines:
                self._grow(line)
                whole = b"".join(self._line)
                self._line.clear()
                self._size = 0
                if whole.strip():
                    outcomes.append(self._answer(whole))
            self._grow(rest)
        except Fault as fault:
            fault.outcomes = outcomes
            raise
        finally:
            if outcomes:
                self._learn(now, outcomes)
        return outcomes

    def _grow(self, part: bytes) -> None:
        limit = self.command.max_output
        self._size += len(part)
        if self._size > limit:
            raise Fault(f"printed a line longer than max_output={limit} bytes and was killed")
        if part:
            self._line.append(part)

    def _learn(self, now: float, outcomes: list[Outcome]) -> None:
        """What calls take, and so how many it is given at once: at most twice as many as before."""
        share = (now - self._mark) / len(outcomes)
        for call, _, _ in outcomes:
            call.began = now - share
        self._heard = True
        self._per += 0.3 * (share - self._per)
        self.room = max(1, min(DEPTH, 2 * self.room, int(PROMPT / max(self._per, 1e-9))))
        self._mark = now

    def _answer(self, line: bytes) -> Outcome:
        try:
            answer = json.loads(line.decode())
        except (ValueError, RecursionError):
            raise self._garbage("printed what is no JSON", line) from None
        if not isinstance(answer, dict) or "id" not in answer or ("output" in answer) == ("error" in answer):
            raise self._garbage('printed what is no answer, {"id": …, "output": …} or {"id": …, "error": …}:', line)
        number = answer["id"]
        call = self.calls.pop(number, None) if type(number) is int else None
        if call is None:
            again = type(number) is int and 0 < number <= self._last
            fault = self._garbage("answered twice:" if again else "answered what it was not asked:", line)
            fault.fatal = fault.fatal or again  # the call that it has now is not to blame
            raise fault
        if "output" in answer:
            return call, answer["output"], None
        said = answer["error"]
        said = said if isinstance(said, str) else json.dumps(said)
        return call, None, Failure(CommandFailed(f"{self.what()} answered: {said}", stderr=self.stderr))

    def _garbage(self, text: str, line: bytes) -> Fault:
        return Fault(f"{text} {_quoted(line)} and was killed", fatal=not self.calls)

    def printed(self) -> bytes:
        return b"".join(self._line)

    def ended(self, code: int) -> list[Outcome]:
        calls = list(self.calls.values())
        if calls and self.unread() >= sum(call.size for call in calls):  # it ended before it read any of them
            self.calls.clear()
            return [(call, None, Failure(None, "lost")) for call in calls]
        self._heard = True
        half = f" in the middle of the line {_quoted(self.printed())}" if self._line else ""
        error = self.failed(code=code)
        if half:
            error.args = (f"{error}{half}",)
        return self.blame(error, "died")


def _quoted(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…")
