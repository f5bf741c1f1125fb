"""Whether shared memory of a given size fits, asked before it is allocated.

The kernel answers a size that does not fit by ending some process: in a container it may be any of the container's. A
process that was ended so explains nothing, so the question is asked first.
"""

from __future__ import annotations

import psutil

from vla_rl.ipc.container import memory_below_limit

_IN_A_RECIPE = "replay.capacity, rollout.num_workers or rollout.envs_per_worker"


class NoRoomError(ValueError):
    """A size that memory cannot hold.

    Args:
        found: what is needed and what there is.
        settings: that ask for less where they are lowered; who asked under other names raises it anew.
    """

    def __init__(self, found: str, *, settings: str = _IN_A_RECIPE) -> None:
        super().__init__(
            f"{found}. Free memory, give a container that has a limit more (docker run --memory=<size>), or lower "
            f"{settings}."
        )
        self.found = found


def check_room(bytes_needed: int) -> None:
    """Refuse a size that the memory of the machine or of its container cannot hold.

    Raises:
        NoRoomError: with what is needed, what is free, and what to change.
    """
    available = available_memory()
    if bytes_needed > available:
        raise NoRoomError(
            f"shared memory: {readable(bytes_needed)} are needed, but only {readable(available)} of memory are "
            "available to this process"
        )


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
