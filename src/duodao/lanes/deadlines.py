"""Limits on a call that runs: its time and its worker's memory. Read from the progress slots, enforced by a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import monotonic

from duodao.lanes.base import Work
from duodao.lanes.link import Link

_SAMPLED = 0.05
"""Seconds between looks at the memory of workers that run an item, where max_memory is set."""


def due(links: Sequence[Link], work: Work, closing: float | None, again: float | None) -> float | None:
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


def resident(link: Link) -> int:
    """Bytes of memory that the worker holds now; 0 when it has ended."""
    pid = link.child.pid if link.child is not None else 0
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
