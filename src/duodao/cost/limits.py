"""What this process may use: CPUs and memory, after affinity and control groups have had their say.

`root` is the directory that holds proc/ and sys/; tests give a made-up one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

UNLIMITED = 1 << 60
"""Bytes. Version 1 control groups write "no limit" as a number near 2**63."""


def cpus(root: str = "/") -> int:
    """CPUs this process may keep busy, at least 1: the smallest of its affinity, every control-group quota above it
    (versions 1 and 2, rounded up: a quota of 1.5 keeps 2 workers busy three quarters of the time), and the machine.

    Read anew at each call: a quota can be changed while a program runs. Source: M30.
    """
    bounds = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        bounds.append(len(os.sched_getaffinity(0)))
    bounds += [_whole(quota) for quota in _quotas(root)]
    return max(1, min(bounds))


def memory(root: str = "/") -> int | None:
    """Bytes this process may use: the smallest of the control groups' limits and the machine's memory, or None."""
    bounds = [limit for limit in _memory_limits(root) if limit < UNLIMITED]
    total = _meminfo(root)
    if total is not None:
        bounds.append(total)
    return min(bounds, default=None)


def _whole(quota: float) -> int:
    return max(1, -int(-quota // 1))


def _quotas(top: str) -> Iterator[float]:
    for version, folder in _groups(top, "cpu"):
        if version == 2:
            words = (_text(folder, "cpu.max") or "max").split()
            if words[0] != "max":
                yield int(words[0]) / int(words[1] if len(words) > 1 else 100_000)
        else:
            quota, period = _text(folder, "cpu.cfs_quota_us"), _text(folder, "cpu.cfs_period_us")
            if quota and period and int(quota) > 0:
                yield int(quota) / int(period)


def _memory_limits(top: str) -> Iterator[int]:
    for version, folder in _groups(top, "memory"):
        text = _text(folder, "memory.max" if version == 2 else "memory.limit_in_bytes")
        if text and text != "max":
            yield int(text)


def _meminfo(top: str) -> int | None:
    for line in (_text(top, "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _groups(top: str, controller: str) -> Iterator[tuple[int, str]]:
    """(version, folder) of our control group and of every group above it: a limit holds for all below."""
    paths = {}
    for line in (_text(top, "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if not names:
            paths[2] = path
        elif controller in names.split(","):
            paths[1] = path
    for version, root, mount in _mounts(top, controller):
        if version not in paths:
            continue
        # Inside a container the mount shows only our part of the tree, or the path is not below it at all.
        path = paths[version]
        inside = path[len(root.rstrip("/")) :] if path.startswith(root) else ""
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        for count in range(len(parts), -1, -1):
            yield version, os.path.join(top, mount.lstrip("/"), *parts[:count])


def _mounts(top: str, controller: str) -> Iterator[tuple[int, str, str]]:
    """(version, root, mount point) of the hierarchies that may hold this controller. Source: proc(5), mountinfo."""
    for line in (_text(top, "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        if kind[0] == "cgroup2":
            yield 2, fields[3], fields[4]
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            yield 1, fields[3], fields[4]


def _text(folder: str, name: str) -> str | None:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
