"""CPUs and memory a process may use, on made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from duodao.cost import limits


@pytest.fixture(autouse=True)
def big_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)), raising=False)


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


V2 = {
    "proc/self/cgroup": "0::/app/web\n",
    "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
    "proc/self/mountinfo": (
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    ),
}


def test_without_control_groups_affinity_counts(tmp_path):
    """taskset and cpusets are respected where there is no quota."""
    assert limits.cpus(str(tmp_path)) == 48


def test_a_quota_of_version_2_is_rounded_up(tmp_path):
    """1.5 CPUs keep 2 workers busy most of the time."""
    assert limits.cpus(tree(tmp_path, {**V2, "sys/fs/cgroup/app/web/cpu.max": "150000 100000\n"})) == 2


def test_the_tightest_group_above_us_counts(tmp_path):
    """A limit on a parent group holds for its children, whatever those say."""
    files = {**V2, "sys/fs/cgroup/app/web/cpu.max": "max 100000\n", "sys/fs/cgroup/app/cpu.max": "300000 100000\n"}
    assert limits.cpus(tree(tmp_path, files)) == 3


def test_a_quota_of_version_1_inside_a_container(tmp_path):
    """In a container the mount shows our group as its root, while /proc names the path outside."""
    files = {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert limits.cpus(tree(tmp_path, files)) == 1


def test_no_quota_of_version_1_is_no_limit(tmp_path):
    """-1 means unlimited."""
    files = {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert limits.cpus(tree(tmp_path, files)) == 48


def test_memory_is_the_smallest_limit(tmp_path):
    """The machine's memory, a group's limit, and a version 1 limit that is none."""
    machine = {"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 5 kB\n"}
    assert limits.memory(tree(tmp_path / "a", machine)) == 1_024_000
    assert limits.memory(tree(tmp_path / "b", {**V2, **machine, "sys/fs/cgroup/app/memory.max": "5000\n"})) == 5000
    none = {**V1, **machine, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert limits.memory(tree(tmp_path / "c", none)) == 1_024_000
    assert limits.memory(str(tmp_path / "nowhere")) is None
