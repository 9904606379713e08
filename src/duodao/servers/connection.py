"""One connection of a TCP server: bytes in, messages to the handler, replies out in the order of their messages.

    data_received ──► framing ──┬─► the handler, here ────────────────► one write per segment
                                ├─► calls, elsewhere ──► settle ──────► one write for all that are next in turn
                                └─► the session's queue

Invariants:
  1. Replies go out in the order of their messages, whatever order the calls end in.
  2. What a connection holds is bounded: one incomplete frame, one segment, `PIPELINED` calls, write_high of unsent
     bytes and the replies that go beyond it. At a bound reading pauses; no handler starts until the peer has read.
  3. `_quick` is set only while nothing waits and nothing is unsent: such a reply is written past the transport.
  4. Nothing is done per message but framing, the call and the counts: time limits look at the counts later.
  5. A connection that the server ends is shut down first and closed when the peer has done so too, or after `LINGER`
     seconds: closing with unread bytes makes the kernel take back replies that the peer has not read yet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from duodao.lanes.base import contain
from duodao.servers.dispatch import HELD, Call
from duodao.servers.framing import AT_ONCE
from duodao.servers.handler import decode
from duodao.servers.quick import answer
from duodao.servers.session import CROWD, Session

if TYPE_CHECKING:
    from duodao.servers.worker import Worker

PIPELINED = 64
"""Calls of one connection that may be under way."""
BREATH = 0.005
"""Seconds after which a connection with more to do lets others have a turn."""


class Connection(asyncio.Protocol):
    """received, sent: bytes; messages: whole ones. full: write_high is unsent. lost: the connection is no more."""

    __slots__ = (
        "_calls", "_dispatch", "_ended", "_fd", "_finishing", "_framer", "_handler", "_left", "_limit", "_paused",
        "_quick", "_resting", "_retiring", "_shut", "_taken", "_transport", "_trouble", "_worker", "_wrap", "_write",
        "full", "lost", "mark", "messages", "peer", "quiet", "received", "sent", "session",
    )  # fmt: skip

    def __init__(self, worker: Worker, peer: str = "") -> None:
        self._worker = worker
        self._dispatch = worker.dispatch
        self._framer = worker.framer()
        self._quick: Any = None  # the function, while a whole line may go to it at once
        self._limit = worker.options.max_frame
        self._wrap = self._framer.wrap
        self._handler = worker.handler
        self._calls: deque[Call] | None = None  # made when first needed: an empty one takes 600 bytes
        self._left: list[Any] = []  # messages that a full connection has not handled yet
        self._transport: Any = None
        self._trouble: Exception | None = None  # what came can't be read
        self._paused = False  # reading is
        self._resting = False  # others have a turn
        self._ended = False  # the peer has said all
        self._retiring = False  # what has come is still handled, more isn't read
        self._finishing = False  # nothing more is handled; calls under way are still answered
        self._shut = False  # nothing more is written
        self.full = self.lost = False
        self.received = self.sent = self.messages = 0
        self._taken = 0  # bytes that the kernel had taken when that was last asked
        self.mark, self.quiet = (0, 0, 0), 0  # kept for the time limits
        self.peer = peer  # the real one, if a proxy has told it
        self.session: Session | None = None

    # -- what the loop calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """The peer is there."""
        self._transport = transport
        self._write = transport.write
        sock = transport.get_extra_info("socket")
        self._fd = -1 if sock is None or transport.get_extra_info("ssl_object") is not None else sock.fileno()
        name = transport.get_extra_info("peername")
        if not self.peer:
            self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "a local peer")
        self._worker.admit(self, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes, cut anywhere."""
        call = self._quick or self._look()
        self.received += len(data)
        if call is not None:
            try:
                done = answer(call, data, self._fd, self._limit, HELD)
            except BaseException as error:
                self.messages += 1
                self._fail(contain(error), data.partition(b"\n")[0], [])
                return
            if type(done) is int:
                self.messages += 1
                self.sent += done
                return
            if isinstance(done, tuple):
                self.messages += 1
                self._answered(data, *done)
                return
        if not self._finishing:
            self._pump(data)

    def eof_received(self) -> bool:
        """The peer has said all it has to say; what it is owed is still sent."""
        self._ended = True
        if self.session is not None:
            self.session.wake()
        # TLS knows no half-closed connection.
        return self.owes() and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """write_high is unsent."""
        self.full = True
        self.took()
        self._worker.stalls.add(self)
        self._after()

    def resume_writing(self) -> None:
        """The peer has read."""
        self.full = False
        self._worker.stalls.drop(self)
        if self._shut:
            self._worker.lingers.add(self)
        if self.session is not None:
            self.session.wake()
        self.settle()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - a peer that goes is no event
        """It is over."""
        self.lost = self._finishing = True
        self._calls = None
        self._left = []
        if self.session is not None:
            self.session.wake()
        self._worker.forget(self)

    def _answered(self, data: bytes, reply: Any, wrote: int, seconds: float) -> None:
        """The call took the short way, and something was not plain about it."""
        if type(reply) is bytes:
            self.sent += max(0, wrote)
            if wrote >= 0:  # else the peer is gone, and the transport is about to find that out
                self.write((reply + b"\n")[wrote:])
        elif reply is not None:
            self._answer(lambda _: reply, [data.partition(b"\n")[0]])  # it says what is wrong with it
        if seconds > HELD:
            self._dispatch.held(seconds)

    # -- messages -----------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """There may be room for what waits."""
        if not self._finishing:
            self._pump()

    def _pump(self, data: bytes = b"") -> None:
        """Handle what has come and what was left, as far as the bounds allow."""
        framer, until, messages = self._framer, monotonic() + BREATH, list[Any]()
        while not self._finishing:
            if self._left:
                messages, self._left = self._left, []
            else:
                messages, data = framer.take(data, self._room()), b""
                self.messages += len(messages)
                if self._handler.text:
                    messages, self._trouble = decode(messages)
                    framer.over = framer.over or self._trouble is not None
            if messages:
                self._give(messages)
            if framer.over and not self._left:
                self._spoilt()
            elif self._room() <= 0 or not (framer.more or self._left or data):
                break
            elif monotonic() > until:
                self._resting = True
                self._worker.loop.call_soon(self._rested)
                break
        if data and not self._finishing:
            framer.take(data, 0)  # only kept
        self._after()

    def _room(self) -> int:
        """Messages it may handle now."""
        if self.full or self._resting:
            return 0
        if self.session is not None:
            return self.session.room()
        if self._dispatch.inline is not None and not self._calls:
            return AT_ONCE
        if not self._dispatch.room():
            self._dispatch.block(self)
            return 0
        return PIPELINED - len(self._calls or ())

    def _give(self, messages: list[Any]) -> None:
        inline = self._dispatch.inline
        if self.session is not None:
            self.session.feed(messages)
        elif inline is not None and not self._calls:
            self._answer(inline, messages)
        else:
            calls = [Call(self, message) for message in messages]
            if self._calls is None:
                self._calls = deque()
            self._calls += calls
            self._dispatch.submit(calls)

    def _answer(self, call: Any, messages: list[Any]) -> None:
        """Call the handler here and write its replies together."""
        replies: list[bytes] = []
        size, high = 0, self._worker.write_high
        began = monotonic()
        try:
            for at, message in enumerate(messages, 1):
                reply = call(message)
                if reply is None:
                    continue
                reply = self._handler.encode(reply)
                replies.append(reply)
                size += len(reply)
                if size > high:
                    self.write(self._wrap(replies))
                    replies, size = [], 0
                    if self.full or self._finishing:
                        self._left = messages[at:]
                        break
        except BaseException as error:
            self._fail(contain(error), message, replies)
            replies = []
        seconds = monotonic() - began
        if replies:
            self.write(self._wrap(replies))
        if seconds > HELD:
            self._dispatch.held(seconds)

    def _spoilt(self) -> None:
        """What came can't be read, and nothing behind it can."""
        if self._trouble is not None:
            self._worker.unreadable(self, self._trouble)
        else:
            self._worker.overran(self)
        self.finish()

    # -- replies ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Calls have ended, or there is room again: send the replies that are next in turn."""
        calls, replies, size, high = self._calls, list[bytes](), 0, self._worker.write_high
        while calls and calls[0].done and not self.full:
            call = calls.popleft()
            if call.error is not None:
                self._fail(call.error, call.message, replies)
                return
            if call.reply is None:
                continue
            try:
                reply = self._handler.encode(call.reply)
            except TypeError as error:
                self._fail(error, call.message, replies)
                return
            replies.append(reply)
            size += len(reply)
            if size > high:
                self.write(self._wrap(replies))
                replies, size = [], 0
        if replies:
            self.write(self._wrap(replies))
        if self._finishing or not (self._paused or self._framer.more or self._left):
            self._after()
        else:
            self._pump()

    def write(self, data: bytes) -> None:
        """Send; what is sent after the end goes nowhere."""
        if not self.lost and not self._shut and not self._transport.is_closing():
            self._quick = None  # it would overtake
            self.sent += len(data)
            self._write(data)

    def hear(self, data: bytes) -> None:
        """Send what others say. One that doesn't read is dropped: nobody waits for it."""
        if self.lost or self._shut:
            return
        self.sent += len(data)
        self._write(data)
        if self.full and self._transport.get_write_buffer_size() > CROWD * self._worker.write_high:
            self._worker.drop(self)

    def unsent(self) -> int:
        """Bytes that the kernel has not taken."""
        return 0 if self.lost else self._transport.get_write_buffer_size()

    def took(self) -> int:
        """Bytes that the kernel has taken since this was last asked."""
        known, self._taken = self._taken, self.sent - self.unsent()
        return self._taken - known

    def owes_reply(self) -> bool:
        """A call is under way."""
        return bool(self._calls)

    def _fail(self, error: BaseException, message: Any, replies: list[bytes]) -> None:
        """The handler raised: send the replies before it, and end."""
        if replies:
            self.write(self._wrap(replies))
        self._worker.failed(self, error, message)
        if self._calls:
            self._calls.clear()
        self.finish()

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more."""
        return self.lost or self._shut

    @property
    def over(self) -> bool:
        """No message will come any more that isn't here yet, or none is wanted."""
        return self._ended or self._finishing or self._retiring

    def owes(self) -> bool:
        """Something that has come is not answered yet."""
        return bool(self._calls or self._left or self._framer.more or self.session is not None)

    def retire(self) -> None:
        """Answer what has come, then end."""
        self._retiring = True
        if self.session is not None:
            self.session.wake()
        self._after()

    def finish(self) -> None:
        """Handle nothing more; end when calls under way are answered."""
        self._finishing, self._left = True, []
        self._after()

    def abort(self) -> None:
        """End now."""
        if not self.lost:
            self._transport.abort()

    def session_over(self) -> None:
        """Its coroutine has ended."""
        self.session = None
        if self.lost:
            self._worker.forget(self)
        else:
            self.finish()

    def _after(self) -> None:
        """Something has changed: is it over, and is it to be read?"""
        self._quick = None
        if self.lost or self._shut:
            return
        if self.over and not (self._calls if self._finishing else self.owes()):
            self._shut_down()
            return
        stop = bool(self.over or self._framer.more or self._left) or self._room() <= 0
        if stop is not self._paused and not self._ended and not self._transport.is_closing():
            self._paused = stop
            if stop:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def careful(self) -> None:
        """Look again before a line goes straight to the handler."""
        self._quick = None

    def _look(self) -> Any:
        """The function, if nothing waits that a line, or its reply, would have to queue behind."""
        quick = self._dispatch.quick
        if quick is not None and self._fd >= 0 and not (
            self._calls or self._left or self._resting or self._framer.rest or self.over or self.unsent()
        ):  # fmt: skip
            self._quick = quick
        return self._quick

    def _shut_down(self) -> None:
        self._shut = self._finishing = True
        self._worker.lingers.add(self)
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        if self._paused:  # what still comes is read and dropped, and so is the peer's end seen
            self._paused = False
            self._transport.resume_reading()

    def _rested(self) -> None:
        self._resting = False
        self.go_on()
