"""How two ends of a queue find out whether they are of one program, before either believes the other anything.

    server ── HELLO: magic, nonce, program ────────────────► client
           ◄─ PROOF: nonce, pid, HMAC(secret, both nonces) ─          a stranger sends no proof
           ── WELCOME: HMAC(secret, both nonces), what it is ►        to a stranger without one

The secret is 32 random bytes of the program that made the queue. It travels inside pickled handles, which go to our own
tasks only, and never over the wire. Who proves it is a task of ours: its items may be unpickled. Who doesn't is a
stranger: plain values only. Both directions have a label of their own in the HMAC, so an echo proves nothing, and a
nonce from each side, so a recording proves nothing. HELLO's `program` is an HMAC of the secret, too: it lets a second
maker of an address see whether the first is of its own program; it proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from dataclasses import dataclass
from typing import NoReturn

from duodao.channel.framing import CLOSED, HELLO, OURS, PROOF, REFUSED, STRANGERS, WELCOME, Frame, Seal, Stream
from duodao.errors import PeerLost

SECONDS = 10.0
"""What either side waits for the other's next word of the greeting."""
_MAGIC = b"duodao queue 1\r\n"
_NONCE = 16
_PROOF = struct.Struct("<16sI32s")
_NO_PROOF = bytes(32)

_secret: list[bytes] = []


def secret() -> bytes:
    """This program's, made on first need; forked copies have the same."""
    if not _secret:
        _secret.append(os.urandom(32))
    return _secret[0]


def prove(key: bytes, label: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over the label and the parts, which are of fixed lengths."""
    return hmac.digest(key, label + b"".join(parts), hashlib.sha256)


@dataclass(frozen=True)
class Facts:
    """What a server says about its queue."""

    maxsize: int
    order: str
    name: str


def greet(stream: Stream, key: bytes) -> bytes:
    """The server's first word; its nonce."""
    nonce = os.urandom(_NONCE)
    stream.add(HELLO, 0, [_MAGIC + nonce + _program(key)])
    return nonce


def _program(key: bytes) -> bytes:
    return prove(key, b"program")[:_NONCE]


def judge(stream: Stream, frame: Frame, nonce: bytes, key: bytes, facts: Facts, *, seal: bool) -> tuple[bool, int]:
    """The server's answer to a proof: is the client ours, and its pid. PeerLost: it must be refused."""
    if frame.kind != PROOF or len(frame.body) != _PROOF.size:
        raise PeerLost("the client speaks another language than this queue")
    theirs, pid, proof = _PROOF.unpack(frame.body)
    ours = proof != _NO_PROOF
    if ours and not hmac.compare_digest(proof, prove(key, b"client", nonce, theirs)):
        raise PeerLost("the client's handle is of another program: its queue was closed, and this one has its address")
    answer = prove(key, b"server", nonce, theirs) if ours else _NO_PROOF
    stream.add(WELCOME, 0, [answer, json.dumps([facts.maxsize, facts.order, facts.name[:100]]).encode()])
    admit(stream, key, nonce, theirs, ours=ours, seal=seal, server=True)
    return ours, pid


def admit(stream: Stream, key: bytes, *nonces: bytes, ours: bool, seal: bool, server: bool) -> None:
    """From here on frames may be long, and those of our own over TCP are marked."""
    stream.limit = OURS if ours else STRANGERS
    if seal and ours:
        down, up = (Seal(prove(key, label, *nonces)) for label in (b"to client", b"to server"))
        stream.seal_out, stream.seal_in = (down, up) if server else (up, down)


class Greeter:
    """The client's side: `hear` each frame of the server until it returns the facts of the queue."""

    def __init__(self, stream: Stream, key: bytes | None, where: str, *, seal: bool, sure: bool) -> None:
        """key: the secret that came with the handle; None: this program is a stranger there. sure: it must be the
        server's; else, where the server is of another program, this one goes on as a stranger."""
        self._stream, self.key, self._where, self._seal, self._sure = stream, key, where, seal, sure
        self._nonces: tuple[bytes, bytes] | None = None

    def hear(self, frame: Frame) -> Facts | None:
        """The next frame. PeerLost: it refused us, isn't of our program, or speaks another language."""
        if frame.kind == REFUSED:
            raise PeerLost(f"{self._where} refused this client: {bytes(frame.body).decode(errors='replace')}")
        if frame.kind == CLOSED:
            raise PeerLost(f"{self._where} is gone: its maker closed it just now")
        if self._nonces is None:
            if frame.kind != HELLO or bytes(frame.body[: len(_MAGIC)]) != _MAGIC or len(frame.body) != 3 * _NONCE:
                self._foreign()
            theirs, mine = bytes(frame.body[_NONCE : 2 * _NONCE]), os.urandom(_NONCE)
            if self.key is not None and not self._sure and frame.body[2 * _NONCE :] != _program(self.key):
                self.key = None
            proof = _NO_PROOF if self.key is None else prove(self.key, b"client", theirs, mine)
            self._nonces = theirs, mine
            self._stream.add(PROOF, 0, [_PROOF.pack(mine, os.getpid(), proof)])
            return None
        if frame.kind != WELCOME or len(frame.body) < len(_NO_PROOF):
            self._foreign()
        if self.key is not None and not hmac.compare_digest(
            frame.body[: len(_NO_PROOF)], prove(self.key, b"server", *self._nonces)
        ):
            raise PeerLost(f"{self._where} is served by another program than the one this handle came from")
        try:
            maxsize, order, name = json.loads(bytes(frame.body[len(_NO_PROOF) :]))
            facts = Facts(int(maxsize), str(order), str(name))
        except (ValueError, TypeError, OverflowError):
            self._foreign()
        key = self.key or b""
        admit(self._stream, key, *self._nonces, ours=self.key is not None, seal=self._seal, server=False)
        return facts

    def _foreign(self) -> NoReturn:
        raise PeerLost(f"{self._where} is not a queue of Duodao, or one of another version: it speaks another language")
