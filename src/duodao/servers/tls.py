"""TLS of a server: what was given as `tls=`, checked before anything listens.

A context can't travel to another process and granian takes files, so only (certificate file, key file) serves with
several processes or over HTTP. Every context made here speaks TLS 1.2 and later: the older ones are broken (RFC 8996).
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from duodao.errors import UsageError

if TYPE_CHECKING:
    from duodao.servers.options import Options

OLDEST = ssl.TLSVersion.TLSv1_2


def check(options: Options) -> None:
    """Raises UsageError for files that hold no matching certificate and key, or a context where files are needed."""
    if options.tls is None:
        return
    if isinstance(options.tls, ssl.SSLContext):
        if options.scheme != "tcp":
            raise UsageError(f"tls=SSLContext: {options.scheme}:// needs tls=(certificate file, key file)")
        if options.processes > 1:
            raise UsageError(
                f"tls=SSLContext with processes={options.processes}: a context can't be given to other processes; "
                "tls=(certificate file, key file) can"
            )
    elif options.scheme == "http":
        raise UsageError("tls= with http://: write https://")
    context(options)


def context(options: Options) -> ssl.SSLContext | None:
    """What asyncio's create_server takes as ssl=; None without TLS. Its handshake time-out is options.first_byte."""
    if options.tls is None or isinstance(options.tls, ssl.SSLContext):
        return options.tls
    certificate, key = options.tls
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = OLDEST
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"tls=({certificate!r}, {key!r}): {_said(error)}; a PEM certificate, with its chain, and its unencrypted "
            "PEM key are needed"
        ) from error
    return made


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal, which a server has nobody to answer."""
    return ""


def _said(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
