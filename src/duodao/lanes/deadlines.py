"""Limits on a call that runs: its time and its worker's memory. Read from the progress slots, enforced by a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import monotonic

from duodao.lanes import wire
from duodao.lanes.base import Work
from duodao.lanes.link import Link

HANDSHAKE = 2.0
"""Seconds that an idle worker has, whatever the grace, to close what `setup=` opened."""
_SAMPLED = 0.05
"""Seconds between looks at the memory of workers that run an item, where max_memory is set."""


def due(
    links: Sequence[Link], work: Work, closing: float | None, again: float | None, idle: float | None = None
) -> float | None:
    """When the lane has to look though nothing arrives; None when it needn't.

    A worker that is in no item now can't exceed its time-out sooner than one that begins now.
    """
    now = monotonic()
    when = [] if closing is None else [closing]
    when += [link.ending for link in links if link.ending is not None]
    if closing is not None:
        when = [each for each in when if each > now]  # what is past was acted on: its death is awaited
    if again is not None:
        when.append(again)
    if idle is not None:
        when += [link.rested + idle for link in links if not link.leases and link.ending is None]
    busy = [link for link in links if link.leases and link.killed is None]
    if busy and work.max_memory is not None:
        when.append(now + _SAMPLED)
    if work.timeout is not None:
        for link in busy:
            seq, _, since = link.slot.read()
            when.append((since if seq else now) + work.timeout)
    return min(when, default=None)


def enforce(links: Sequence[Link], work: Work) -> None:
    """Kill the workers that run too long or have grown too large."""
    if work.timeout is None and work.max_memory is None:
        return
    for link in links:
        if not link.leases or link.killed is not None:
            continue
        seq, item, since = link.slot.read()
        if not seq or (seq, item) != link.slot.read()[:2]:
            continue  # it changed as we looked, so it has just begun
        if work.timeout is not None and monotonic() - since >= work.timeout:
            link.kill("timeout", seq, item)
        elif work.max_memory is not None and resident(link) > work.max_memory:
            link.kill("memory", seq, item)


def rest(links: Sequence[Link], idle: float | None) -> None:
    """Let go the workers that had nothing to do for `idle` seconds: they stay warm for other runs a little longer."""
    if idle is None:
        return
    now = monotonic()
    for link in links:
        if link.ending is not None:
            if now >= link.ending:
                link.kill("close")
        elif not link.leases and now - link.rested >= idle:
            _end(link, now + HANDSHAKE)


def wind_up(links: Sequence[Link], closing: float) -> None:
    """One step of closing: idle workers are let go, busy ones killed when their time is over."""
    now = monotonic()
    for link in links:
        if link.ending is None and not link.leases:
            _end(link, max(closing, now + HANDSHAKE))
        elif now >= (closing if link.ending is None else link.ending):
            link.kill("close")


def _end(link: Link, until: float) -> None:
    link.ending = until
    link.write(wire.parts(wire.END))


def resident(link: Link) -> int:
    """Bytes of memory that the worker holds now; 0 when it has ended."""
    pid = link.child.pid if link.child is not None else 0
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
