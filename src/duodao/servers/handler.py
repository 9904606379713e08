"""What the user gave a server to call, checked before anything listens."""

from __future__ import annotations

import inspect
from typing import Any

from duodao.errors import UsageError
from duodao.lanes.base import Work
from duodao.pipeline.stages import Pipeline, make_stage
from duodao.servers.options import Options


class Handler:
    """kind: "message", called with each message, or "session", a coroutine per connection. text: messages are str.

    lane: "auto", "inline", "thread", "process" or "coroutine". workers: calls in flight at most, None for the lane's
    own width. framing: of its messages.
    """

    __slots__ = ("framing", "kind", "lane", "text", "work", "workers")

    def __init__(self, work: Any, options: Options) -> None:
        """Raises UsageError that names what a handler can be."""
        if isinstance(work, Pipeline):
            raise UsageError(
                "a server takes one function, handler(bytes) -> bytes; call the Pipeline's functions in it"
            )
        if not callable(work):
            raise UsageError(f"a handler is a function of one message, not {work!r}")
        self.work: Work = make_stage(work, {}).work
        self.lane, self.workers, self.framing = options.lane, options.workers, options.framing
        parameter = _parameter(work)
        note = _annotation(parameter)
        session = parameter is not None and (note in ("Session", "duodao.Session") or parameter.name == "session")
        self.kind = "session" if session else "message"
        self.text = options.text if options.text is not None else note == "str"
        self._check()

    def encode(self, reply: Any) -> bytes:
        """A reply as bytes. Raises TypeError that names what a handler may return."""
        if self.text:
            if isinstance(reply, str):
                return reply.encode()
        elif isinstance(reply, (bytes, bytearray, memoryview)):
            return bytes(reply)  # of bytes: the same object
        valid = "str" if self.text else "bytes"
        raise TypeError(f"{self.work.name} returned {type(reply).__name__}; {valid}, or None for no reply, is needed")

    def _check(self) -> None:
        name, lane = self.work.name, self.lane
        if self.text and self.framing == "raw":
            raise UsageError(f"{name} takes text, and framing='raw' cuts it anywhere, in a character too: take bytes")
        if self.kind == "session" and not self.work.is_async:
            raise UsageError(f"{name} takes a session, so it must be a coroutine: async def {name}(session)")
        if self.work.is_async and lane not in ("auto", "coroutine"):
            raise UsageError(f"{name} is an async function: it runs on lane='coroutine', not {lane!r}")
        if not self.work.is_async and lane == "coroutine":
            raise UsageError(f"{name} is a plain function: it would block the loop; use lane='thread' or make it async")
        if lane == "process":
            from duodao.lanes.shipping import unsendable

            reason = unsendable(self.work)
            if reason:
                raise UsageError(f"lane='process': {reason}")


def decode(messages: list[bytes]) -> tuple[list[str], Exception | None]:
    """Whole messages as text, up to the first that isn't UTF-8; and what is wrong with that."""
    texts: list[str] = []
    try:
        for message in messages:
            texts.append(message.decode())  # noqa: PERF401 - what came before the error is kept
    except UnicodeDecodeError as error:
        return texts, error
    return texts, None


def _parameter(work: Any) -> inspect.Parameter | None:
    """The one that gets the message."""
    try:
        return next(iter(inspect.signature(work).parameters.values()), None)
    except (ValueError, TypeError):  # many builtins don't tell
        return None


def _annotation(parameter: inspect.Parameter | None) -> str:
    """As its source would have it, whether or not annotations are texts there."""
    note = None if parameter is None else parameter.annotation
    if note is None or note is inspect.Parameter.empty:
        return ""
    return note.strip("'\"") if isinstance(note, str) else getattr(note, "__name__", str(note))
