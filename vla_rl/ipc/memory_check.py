"""Check that shared memory of a given size fits, made before it is allocated.

If a size does not fit, the kernel kills some process, in a container any of the container's. A killed process explains
nothing, so the size is checked first.
"""

from __future__ import annotations

import psutil

from vla_rl.container import memory_below_limit

_IN_A_RECIPE = "replay.capacity, rollout.num_workers or rollout.envs_per_worker"


class NoRoomError(ValueError):
    """Size that does not fit in memory.

    Args:
        found: the needed and the available memory.
        settings: settings that need less memory when lowered; a caller with other names for them raises a new error.
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
        NoRoomError: it does not fit; names what is needed, what is free, and what to change.
    """
    available = available_memory()
    if bytes_needed > available:
        raise NoRoomError(
            f"shared memory: {readable(bytes_needed)} are needed, but only {readable(available)} of memory are "
            "available to this process"
        )


def available_memory() -> int:
    """Return the bytes that this process can still take: the machine's, or those below its container's limit."""
    available = int(psutil.virtual_memory().available)
    below_limit = memory_below_limit()
    return available if below_limit is None else min(available, below_limit)


def readable(num_bytes: int) -> str:
    """Format 1_500_000_000 as '1.4 GiB'."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
