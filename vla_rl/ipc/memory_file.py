"""Shared memory without a name. It cannot be left behind: the kernel frees it with the last process that has it.

The memory is a file of Linux's `memfd_create`, which lies in no folder. A spawned process inherits the open
descriptor, so a `MemoryFile` can be pickled while such a process starts, and at no other time. The size of /dev/shm
plays no part; a container's limit of memory counts this as any other memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from multiprocessing.context import assert_spawning
from multiprocessing.reduction import DupFd
from typing import Protocol, Self

_MFD_CLOEXEC = 1  # linux/memfd.h


class _Sent(Protocol):
    """What `DupFd` makes of a descriptor; in the process that receives it, it gives the descriptor back."""

    def detach(self) -> int: ...


class MemoryFile:
    """An open descriptor of shared memory; closed by `close`, or when nobody refers to the object any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls, label: str, num_bytes: int) -> Self:
        """Reserve zeroed memory.

        Args:
            label: stands beside the memory in /proc/PID/maps.
            num_bytes: all of it is reserved at once, so that no page can be missing later.

        Raises:
            OSError: the memory or the descriptor cannot be had.
        """
        file = cls(_memfd_create(label))
        os.posix_fallocate(file._descriptor, 0, num_bytes)
        return file

    def map(self, num_bytes: int) -> mmap.mmap:
        """Map the memory for reading and writing. The mapping outlives the descriptor.

        Raises:
            ValueError: the file is closed.
        """
        if not self._close.alive:
            raise ValueError("this shared memory was closed")
        mapping = mmap.mmap(self._descriptor, num_bytes)
        mapping.madvise(mmap.MADV_DONTDUMP)  # else a crashing simulator's core dump holds the whole replay ring
        return mapping

    def close(self) -> None:
        """Close the descriptor: no further process can be given the memory. Idempotent."""
        self._close()

    def __reduce__(self) -> tuple[Callable[[_Sent], MemoryFile], tuple[_Sent]]:
        assert_spawning(self)
        if not self._close.alive:
            raise ValueError("this shared memory was closed")
        return _receive, (DupFd(self._descriptor),)


def _receive(sent: _Sent) -> MemoryFile:
    descriptor = sent.detach()
    os.set_inheritable(descriptor, False)  # it came open through an exec, and is to go through no other
    return MemoryFile(descriptor)


def _memfd_create(label: str) -> int:
    """Call `memfd_create` of the C library; `os` has it only where Python was built against a library that had it."""
    descriptor: int = ctypes.CDLL(None, use_errno=True).memfd_create(label.encode(), _MFD_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"memfd_create: {os.strerror(number)}")
    return descriptor
