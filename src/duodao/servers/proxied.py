"""The PROXY protocol, versions 1 and 2: a proxy in front says first who the real peer is.

Whoever may connect could write such a header and be anyone, so it is believed from listed peers only, and demanded of
them: one that sends none has its first message taken for garbage rather than for a header that isn't there.
Written here, not taken from PyPI: `proxy-protocol`, the one package, had no release since spring 2024 and reads from
asyncio streams, which this server does without. Source: haproxy.org/download/3.0/doc/proxy-protocol.txt.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from duodao.servers.options import Options

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = tuple[str, int]
"""Host and port."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1 = b"PROXY "
_V1_LONGEST = 107
"""Bytes with the line's end: what the standard allows, so that a peer can't make us wait for a line without one."""
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


class BadHeader(ValueError):
    """What a listed peer sent first is no PROXY header. The text says what is wrong with it."""


def listed(host: str, networks: Sequence[Network]) -> bool:
    """Is `host`, a peer as the socket knows it, in one of the networks? An IPv4 peer of an IPv6 socket counts as such.

    A host that is no address (a Unix socket's) is in none.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


def read(data: bytes | bytearray) -> tuple[int, Address | None] | None:
    """The header at the start of `data`: (its length, the real peer). None while it is incomplete.

    The peer is None when the proxy speaks for itself (a health check) or doesn't know. Raises BadHeader, at the first
    byte that can't be of one.
    """
    head = bytes(data[:16])
    if head.startswith(_SIGNATURE[: len(head)]):
        return _version_2(data) if len(data) >= 16 else None
    if head.startswith(_V1[: len(head)]):
        return _version_1(bytes(data[:_V1_LONGEST]))
    raise BadHeader(f"{head!r} begins no PROXY header")


def _version_1(data: bytes) -> tuple[int, Address | None] | None:
    line, end, _ = data.partition(b"\r\n")
    if not end:
        if len(data) >= _V1_LONGEST:
            raise BadHeader(f"a PROXY line has no end within {_V1_LONGEST} bytes")
        return None
    words = line.split(b" ")
    if len(words) > 1 and words[1] == b"UNKNOWN":
        return len(line) + 2, None
    try:
        _, family, source, _target, port, target_port = (word.decode("ascii") for word in words)
        address = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family](source)
        ports = range(65536).index(int(port)), range(65536).index(int(target_port))
    except (ValueError, KeyError):
        raise BadHeader(f"{line!r} is no PROXY line") from None
    return len(line) + 2, (str(address), ports[0])


def _version_2(data: bytes | bytearray) -> tuple[int, Address | None] | None:
    command, family, size = struct.unpack_from("!BBH", data, 12)
    if command not in (_LOCAL, _PROXY):
        raise BadHeader(f"a PROXY header has version and command {command:#04x}")
    needed = {_TCP4: 12, _TCP6: 36}.get(family, 0) if command == _PROXY else 0
    if size < needed:
        raise BadHeader(f"a PROXY header of {size} bytes is too short for its addresses")
    if len(data) < 16 + size:
        return None
    if not needed:
        return 16 + size, None
    width = 4 if family == _TCP4 else 16
    (port,) = struct.unpack_from("!H", data, 16 + 2 * width)
    return 16 + size, (str(ipaddress.ip_address(bytes(data[16 : 16 + width]))), port)


class Door(Protocol):
    """The worker, as far as a connection that isn't known yet needs it. awaited: the Limit of those who must send."""

    loop: asyncio.AbstractEventLoop
    options: Options
    awaited: Any

    def crowded(self, transport: Any) -> bool:
        """Is it one too many? Then it has been refused."""
        ...

    def refuse(self, why: str) -> None:
        """Count and log it."""
        ...


class Proxied(asyncio.Protocol):
    """A connection until its peer is known; then `make(peer)` has it, with what came behind the header.

    A peer that isn't listed goes on at once, as itself: peer is "" then. TLS, if any, begins behind the header.
    """

    def __init__(self, door: Door, make: Callable[[str], asyncio.Protocol], secure: ssl.SSLContext | None) -> None:
        self._door = door
        self._make = make
        self._secure = secure
        self._data = bytearray()
        self._transport: Any = None
        self._beginning: asyncio.Task[None] | None = None
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        """The proxy, or a peer without one, is there."""
        self._transport = transport
        name = transport.get_extra_info("peername")
        if not isinstance(name, tuple) or not listed(name[0], self._door.options.proxy_from):
            self._go_on("", b"")
        elif not self._door.crowded(transport):
            self._door.awaited.add(self)

    def data_received(self, data: bytes) -> None:
        """Some of the header, or more than it."""
        self._data += data
        try:
            found = read(self._data)
        except BadHeader as error:
            self._door.refuse(f"{self._transport.get_extra_info('peername')[0]} must send a PROXY header: {error}")
            self.abort()
            return
        if found is not None:
            size, peer = found
            self._door.awaited.drop(self)
            self._go_on("" if peer is None else f"{peer[0]}:{peer[1]}", bytes(self._data[size:]))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - a peer that goes is no event
        """It went before it was known."""
        self.lost = True
        self._door.awaited.drop(self)

    def expire(self) -> None:
        """No header in time."""
        self._door.refuse(f"{self._transport.get_extra_info('peername')[0]} sent no PROXY header in time")
        self.abort()

    def abort(self) -> None:
        """End now."""
        self._door.awaited.drop(self)
        self._transport.abort()

    def _go_on(self, peer: str, rest: bytes) -> None:
        protocol = self._make(peer)
        if self._secure is not None:
            self._transport.pause_reading()
            self._beginning = self._door.loop.create_task(self._start_tls(protocol, self._secure, rest))
            return
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

    async def _start_tls(self, protocol: asyncio.Protocol, context: ssl.SSLContext, rest: bytes) -> None:
        loop, seconds = self._door.loop, self._door.options.first_byte
        if rest:  # read too far: what belongs to the handshake is given to it when it has begun, before it reads on
            loop.call_soon(loop.call_soon, self._give, rest)
        try:
            made = await loop.start_tls(
                self._transport, protocol, context, server_side=True, ssl_handshake_timeout=seconds
            )
        except OSError:  # no TLS, or no longer there; ssl.SSLError and the time-out are OSErrors too
            self._transport.abort()
            return
        if made is not None:
            protocol.connection_made(made)

    def _give(self, rest: bytes) -> None:
        handshake = self._transport.get_protocol()
        while rest:
            room = handshake.get_buffer(len(rest))
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            handshake.buffer_updated(size)
            rest = rest[size:]
