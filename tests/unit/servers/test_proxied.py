"""PROXY headers: both versions, cut anywhere, and what is none."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.servers.proxied import BadHeader, listed, read

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def version_2(command: int, family: int, body: bytes) -> bytes:
    """A header as a proxy sends it."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


TCP4 = bytes([192, 0, 2, 7, 192, 0, 2, 1]) + struct.pack("!HH", 4242, 80)
TCP6 = ipaddress.IPv6Address("2001:db8::7").packed + ipaddress.IPv6Address("::1").packed + struct.pack("!HH", 4242, 80)
GOOD = {
    b"PROXY TCP4 192.0.2.7 192.0.2.1 4242 80\r\n": ("192.0.2.7", 4242),
    b"PROXY TCP6 2001:db8::7 ::1 4242 80\r\n": ("2001:db8::7", 4242),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f...f:ffff whatever 1 2\r\n": None,
    version_2(0x21, 0x11, TCP4): ("192.0.2.7", 4242),
    version_2(0x21, 0x11, TCP4 + b"\x04\x00\x03abc"): ("192.0.2.7", 4242),
    version_2(0x21, 0x21, TCP6): ("2001:db8::7", 4242),
    version_2(0x20, 0x00, b""): None,
    version_2(0x20, 0x11, TCP4): None,
    version_2(0x21, 0x31, b"\0" * 216): None,
}


@pytest.mark.parametrize("header", GOOD)
def test_headers_name_the_peer(header: bytes) -> None:
    """Each header gives its length and the real peer, whatever follows it; cut anywhere, it is merely incomplete."""
    assert read(header) == (len(header), GOOD[header])
    assert read(bytearray(header + b"hello\nPROXY ")) == (len(header), GOOD[header])
    assert [read(header[:cut]) for cut in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"PROXZ",
        b"proxy TCP4 192.0.2.7 192.0.2.1 4242 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4242\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 4242 80\r\n",
        b"PROXY TCP4 192.0.2.777 192.0.2.1 4242 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 99999 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 80\r\n",
        b"PROXY TCP4 192.0.2.7\xff 192.0.2.1 1 80\r\n",
        b"PROXY " + b"x" * 101,
        b"\r\n\r\nX",
        version_2(0x11, 0x11, TCP4),
        version_2(0x22, 0x11, TCP4),
        version_2(0x21, 0x11, TCP4[:8]),
        version_2(0x21, 0x21, TCP4),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    """A wrong word, number, address, version or length is an error, and a line without an end doesn't wait for one."""
    with pytest.raises(BadHeader):
        read(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    """Whatever comes: a header, not yet one, or BadHeader; never another error."""
    for start in (b"", b"PROXY TCP4 ", SIGNATURE):
        try:
            found = read(start + data)
        except BadHeader:
            continue
        assert found is None or found[0] <= len(start + data)


def test_only_listed_peers() -> None:
    """A peer is looked up by network; IPv4 over an IPv6 socket and scoped addresses are understood."""
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")]
    assert listed("10.1.2.3", networks)
    assert listed("::ffff:10.1.2.3", networks)
    assert listed("fe80::1%eth0", networks)
    assert not listed("11.1.2.3", networks)
    assert not listed("", networks)
    assert not listed("10.1.2.3", [])
