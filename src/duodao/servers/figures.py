"""What a server's process counts about itself."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Figures:
    """One process of a server, since it started. Source: M27.

    pid: its number; connections: open now; accepted, messages, failed (handlers that raised), received and sent
    (bytes): since the start. refused: over max_connections, or no PROXY header where one is demanded; expired: closed
    for a time-out; overrun: closed for a frame over max_frame; dropped: closed because the peer didn't read. lane:
    where handlers run now, and why.
    """

    pid: int = 0
    connections: int = 0
    accepted: int = 0
    messages: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0
    refused: int = 0
    expired: int = 0
    overrun: int = 0
    dropped: int = 0
    lane: str = "auto"
    why: str = ""

    def __add__(self, other: Figures) -> Figures:
        """Both together; of the first its pid, lane and reason."""
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.type == "int"}
        return Figures(**{**counts, "pid": self.pid}, lane=self.lane, why=self.why)
