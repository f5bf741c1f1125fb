"""Whether shared memory of a given size fits, asked before it is allocated.

/dev/shm is a tmpfs: it grants any size at once and delivers SIGBUS when a page cannot be found later. A worker that
dies of SIGBUS in the middle of an episode explains nothing, so the question is asked first.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from vla_rl.ipc.container import memory_below_limit

SHM_DIRECTORY = Path("/dev/shm")
_MORE_SHARED = "Give the container more shared memory (docker run --shm-size=<size>, or --ipc=host)"
_IN_A_RECIPE = "replay.capacity, rollout.num_workers or rollout.envs_per_worker"


class NoRoomError(ValueError):
    """A size that memory cannot hold.

    Args:
        found: what is needed and what there is.
        remedy: what to do about the machine.
        settings: that ask for less where they are lowered; who asked under other names raises it anew.
    """

    def __init__(self, found: str, remedy: str, *, settings: str = _IN_A_RECIPE) -> None:
        super().__init__(f"{found}. {remedy}, or lower {settings}.")
        self.found, self.remedy = found, remedy


def check_room(bytes_needed: int) -> None:
    """Refuse a size that shared memory or the machine's memory cannot hold.

    Raises:
        NoRoomError: with what is needed, what is free, and what to change.
    """
    stat = os.statvfs(SHM_DIRECTORY)
    free, size = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    needed = f"shared memory: {readable(bytes_needed)} are needed, but"
    if bytes_needed > free:
        raise NoRoomError(f"{needed} {SHM_DIRECTORY} has {readable(free)} free of {readable(size)}", _MORE_SHARED)
    available = available_memory()
    if bytes_needed > available:
        found = f"{needed} only {readable(available)} of memory are available to this process"
        raise NoRoomError(found, "Free memory")


def available_memory() -> int:
    """Bytes of memory this process can still take: the machine's, or what its container's limit leaves."""
    available = int(psutil.virtual_memory().available)
    below_limit = memory_below_limit()
    return available if below_limit is None else min(available, below_limit)


def readable(num_bytes: int) -> str:
    """1_500_000_000 to '1.4 GiB'."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
