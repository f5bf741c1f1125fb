"""Memory ordering between processes that share memory without a lock."""

from __future__ import annotations

import threading


class Fence:
    """Memory fence: all reads and writes before a call are done before any after it begin.

    A sequence lock ("announce, write, announce again") needs this order. x86 guarantees it as far as needed here;
    64-bit Arm (Grace) does not. Python has no fence, but releasing a lock orders the accesses before it, acquiring one
    orders those after it, and both touch the same word. One object per writer or reader, used by one thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        """Order memory accesses; about 0.1 µs."""
        self._lock.release()
        self._lock.acquire()
