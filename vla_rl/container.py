"""Resources of the machine that a container may use, from its control groups (cgroups, versions 1 and 2).

Source: the Linux kernel's documentation, admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")  # one line per hierarchy: number:controllers:path
# For versions 2 and 1: the limit, the usage, and the part of it that is reclaimable file cache.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def usable_cores() -> int:
    """Return the number of processors that this process may use, limited by its container's CPU quota; at least 1."""
    shares = [share for group in _groups("cpu") if (share := _share_of_time(group)) is not None]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(share) for share in shares)]))


def memory_below_limit() -> int | None:
    """Return the bytes that this process can still take before its container's limit; None without a limit."""
    left = [bytes_left for group in _groups("memory") for bytes_left in _memory_left(group)]
    return max(0, min(left)) if left else None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the groups that bind this process: its own and all visible ones above it.

    A container sees its own group as the topmost, or gets the host's path to it, most of which does not exist inside.
    """
    for line in (_content(_MEMBERSHIP) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2; `unified` beside version 1
            roots = [_MOUNT, _MOUNT / "unified"]
        else:
            roots = [_MOUNT / controllers, _MOUNT / controller] if controller in controllers.split(",") else []
        own = PurePosixPath(path.lstrip("/"))
        yield from (root / place for root in roots for place in (own, *own.parents))


def _share_of_time(group: Path) -> float | None:
    """Return a group's CPU quota in processors; None without a limit."""
    both = _content(group / "cpu.max")
    if both is None:
        quota, period = _content(group / "cpu.cfs_quota_us"), _content(group / "cpu.cfs_period_us")
    else:
        quota, period = both.split()
    if quota is None or period is None or quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _memory_left(group: Path) -> Iterator[int]:
    for limit_file, usage_file, reclaimable in _MEMORY_FILES:
        limit, usage, statistics = (_content(group / name) for name in (limit_file, usage_file, "memory.stat"))
        if limit is None or usage is None or limit == "max":
            continue
        cached = dict(line.split() for line in (statistics or "").splitlines())
        yield int(limit) - int(usage) + int(cached.get(reclaimable, 0))


def _content(file: Path) -> str | None:
    """Return a file's content; None if it is missing or not readable."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return None
