"""Clocks and memory, the same on a GPU and on a CPU."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable

import torch

GROUPS = 3  # of calls; the median of them is the measurement
GROUP_S = 0.05  # a group has as many calls as fit
MOST_CALLS = 50
GIB = 2**30


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def on_gpu() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def wait() -> None:
    """Wait for the device."""
    if on_gpu():
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object], *, warm_up: int = 2, group_s: float = GROUP_S) -> float:
    """Seconds of one call, when calls follow each other: the median of `GROUPS` groups, each waited for once.

    Launches overlap within a group, as they do in a program.
    """
    for _ in range(warm_up):
        action()
    once = _group(action, 1)
    calls = max(1, min(MOST_CALLS, round(group_s / max(once, 1e-9))))
    return statistics.median(_group(action, calls) for _ in range(GROUPS))


def _group(action: Callable[[], object], calls: int) -> float:
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        action()
    wait()
    return (time.perf_counter() - began) / calls


def once(action: Callable[[], object]) -> float:
    """Seconds of a single call, compilation and first plans included."""
    return _group(action, 1)


def forget() -> None:
    """Give the allocator's memory back and begin to count the peak anew."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> dict[str, float] | None:
    """Peak of this process since `forget`, in GiB; None on a CPU."""
    if not on_gpu():
        return None
    return {
        "allocated": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def used_on_card() -> int:
    """Bytes in use on the card, by all processes; 0 on a CPU."""
    if not on_gpu():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


class CardPeak:
    """The most that all processes together use of the card while the context is open, looked at every 20 ms."""

    PERIOD_S = 0.02

    def __init__(self) -> None:
        self.before = used_on_card()
        self.peak = self.before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="card-peak", daemon=True)

    def __enter__(self) -> CardPeak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while on_gpu() and not self._done.wait(self.PERIOD_S):
            self.peak = max(self.peak, used_on_card())
