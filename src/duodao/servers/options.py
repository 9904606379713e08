"""What a server was asked for, checked before anything listens."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

from duodao.errors import UsageError

Framing = Literal["line", "length", "raw"]
FRAMINGS = ("line", "length", "raw")
SCHEMES = ("tcp", "http", "https")
LANES = ("auto", "inline", "thread", "process", "coroutine")
"""Where handlers may run. "inline" and "coroutine" are the server's own event loop."""


class ServeOptions(TypedDict, total=False):
    """Options of serve and Server; all have a default that holds under load.

    framing: "line" (ends with a line feed, which the handler neither sees nor writes), "length" (4 bytes big-endian,
    then so many bytes), "raw" (what has come, as it comes). text: messages are str (UTF-8); None: when the handler's
    parameter is annotated `str`. lane: "auto" measures; workers: calls in flight at most, None for the lane's default.
    processes: that many, each with its own listening socket (SO_REUSEPORT); 1 is this process.
    backlog, max_connections: of each process. max_frame, write_high: bytes; max_body: bytes of an HTTP request's body.
    idle, first_byte: seconds without traffic, and until the first byte, after which a connection is closed; None for no
    limit. stall: seconds that a peer may leave its replies unread. grace: seconds that calls in flight get to end when
    the server is asked to end.
    tls: (certificate file, key file), or an ssl.SSLContext. proxy_from: networks whose PROXY header is believed, and
    from which one is demanded.
    """

    framing: Framing
    text: bool | None
    lane: str
    workers: int | None
    processes: int
    backlog: int
    max_connections: int
    max_frame: int
    max_body: int
    write_high: int
    idle: float | None
    first_byte: float | None
    stall: float | None
    grace: float
    tls: tuple[str, str] | ssl.SSLContext | None
    proxy_from: Sequence[str]


@dataclass(frozen=True, slots=True)
class Options:
    """ServeOptions, checked, with the address taken apart. host and port: to bind; port 0: any that is free."""

    scheme: str
    host: str
    port: int
    framing: Framing = "line"
    text: bool | None = None
    lane: str = "auto"
    workers: int | None = None
    processes: int = 1
    backlog: int = 4096
    max_connections: int = 20_000
    max_frame: int = 64 << 10
    max_body: int = 1 << 20
    write_high: int = 64 << 10
    idle: float | None = 60.0
    first_byte: float | None = 10.0
    stall: float | None = 30.0
    grace: float = 30.0
    tls: tuple[str, str] | ssl.SSLContext | None = None
    proxy_from: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()


_WHOLE = ("processes", "backlog", "max_connections", "max_frame", "max_body", "write_high")
_SECONDS = ("idle", "first_byte", "stall")


def check(address: str, options: dict[str, Any]) -> Options:
    """Raises UsageError that names what is wrong and what is valid."""
    from duodao.pipeline.stages import unknown_option

    for name in options:
        if name not in ServeOptions.__annotations__:
            raise unknown_option(name, tuple(ServeOptions.__annotations__))
    scheme, host, port = _address(address)
    for name, valid in (("framing", FRAMINGS), ("lane", LANES)):
        if name in options and options[name] not in valid:
            raise UsageError(f"{name}={options[name]!r}: there is no such {name} (valid: {', '.join(valid)})")
    workers = options.get("workers")
    for name in (*_WHOLE, *(("workers",) if workers is not None else ())):
        _check(name, options, lambda value: isinstance(value, int) and value >= 1, "a whole number from 1")
    for name in _SECONDS:
        _check(name, options, lambda value: value is None or _positive(value), "seconds over 0, or None,")
    _check("backlog", options, lambda value: value < 1 << 31, "a whole number under 2**31")
    _check("grace", options, lambda value: _positive(value) or value == 0, "seconds from 0")
    given = {**options, "proxy_from": _networks(options.get("proxy_from", ()))}
    tls = given.get("tls")
    if isinstance(tls, tuple) and len(tls) == 2 and all(isinstance(file, (str, os.PathLike)) for file in tls):
        for file in tls:
            if not os.path.isfile(file):
                raise UsageError(f"tls={tls!r}: there is no file {file}")
    elif tls is not None and not isinstance(tls, ssl.SSLContext):
        raise UsageError(f"tls={tls!r}: (certificate file, key file) or an ssl.SSLContext is needed")
    if scheme == "https" and tls is None:
        raise UsageError(f"{address!r} needs tls=(certificate file, key file)")
    return Options(scheme, host, port, **given)


def _check(name: str, options: dict[str, Any], valid: Callable[[Any], bool], needed: str) -> None:
    value = options.get(name, 1)
    if isinstance(value, bool) or not valid(value):
        raise UsageError(f"{name}={value!r}: {needed} is needed")


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _address(address: str) -> tuple[str, str, int]:
    example = "write tcp://127.0.0.1:1688 or http://0.0.0.0:8000"
    try:
        parts = urlsplit(address)
        port, more = parts.port, parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{address!r} is no address: {example}") from None
    if parts.scheme not in SCHEMES or port is None or not parts.hostname or more:
        raise UsageError(f"{address!r} is no address to serve at: {example}")
    return parts.scheme, parts.hostname, port


def _networks(given: Sequence[str]) -> tuple[Any, ...]:
    try:
        return tuple(
            ipaddress.ip_network(network, strict=False) for network in ([given] if isinstance(given, str) else given)
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"proxy_from={given!r}: {error}") from None
