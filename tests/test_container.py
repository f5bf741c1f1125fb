"""Limits of containers, read from folders as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_rl import container

VERSION_2 = "0::/user/job"
VERSION_1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc"


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Writes the files of groups, and under which names this process is in them."""
    monkeypatch.setattr(container, "_MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(container, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(128)))

    def write(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "membership").write_text(membership + "\n")
        for name, content in files.items():
            path: Path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")

    return write


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "800000 100000"}, 8),  # in a container, which sees itself as the topmost group
        (VERSION_2, {"user/cpu.max": "250000 100000", "user/job/cpu.max": "max 100000"}, 2),
        (VERSION_2, {"user/cpu.max": "1600000 100000", "user/job/cpu.max": "50000 100000"}, 1),
        (VERSION_2, {"user/job/cpu.max": "max 100000"}, 128),
        (VERSION_1, {"cpu,cpuacct/cpu.cfs_quota_us": "800000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
        (VERSION_1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 128),
        (VERSION_1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000",
                     "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 3),
    ],
)  # fmt: skip
def test_a_share_of_time_counts_as_so_many_cores(groups, membership, files, cores):
    groups(membership, files)
    assert container.usable_cores() == cores


def limit(place, names, maximum, used, cached):
    first, second, third = names
    statistics = f"anon 1\n{third} {cached}"
    return {f"{place}{first}": str(maximum), f"{place}{second}": str(used), f"{place}memory.stat": statistics}


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/", limit("", V2, 1000, 700, 200), 500),
        ("0::/", limit("", V2, "max", 700, 200), None),
        (VERSION_2, limit("user/", V2, 5000, 4000, 0) | limit("user/job/", V2, 2000, 700, 0), 1000),
        (VERSION_2, limit("user/job/", V2, 1000, 1100, 0), 0),
        (VERSION_1, limit("memory/", V1, 1000, 700, 200), 500),
        (VERSION_1, limit("memory/docker/abc/", V1, 900, 700, 0) | limit("memory/", V1, 2**63 - 4096, 9999, 0), 200),
        (VERSION_1, limit("unified/docker/abc/", V2, 1000, 900, 0), 100),
        ("", {}, None),
    ],
)
def test_the_tightest_limit_on_memory_counts_and_file_cache_does_not(groups, membership, files, left):
    groups(membership, files)
    assert container.memory_below_limit() == left


def test_a_system_without_groups_has_no_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(container, "_MEMBERSHIP", tmp_path / "nothing")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2})
    assert (container.memory_below_limit(), container.usable_cores()) == (None, 3)
