"""Shared memory without a name. It cannot be left behind: the kernel frees it with the last process that has it.

The memory is a file of Linux's `memfd_create`, which is in no folder. A spawned process inherits the open descriptor,
so a `MemoryFile` can be pickled only while such a process starts. The size of /dev/shm does not matter; a container's
memory limit counts it like any other memory.
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
    """Result of `DupFd` for a descriptor; in the receiving process it returns the descriptor."""

    def detach(self) -> int: ...


class MemoryFile:
    """Open descriptor of shared memory; closed by `close`, or with the last reference to the object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls, label: str, num_bytes: int) -> Self:
        """Reserve zeroed memory.

        Args:
            label: name of the memory in /proc/PID/maps.
            num_bytes: size, reserved at once, so that no page can be missing later.

        Raises:
            OSError: the memory or the descriptor is not available.
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
        mapping.madvise(mmap.MADV_DONTDUMP)  # otherwise a crashing simulator's core dump contains the whole replay ring
        return mapping

    def close(self) -> None:
        """Close the descriptor: no further process can receive the memory. Idempotent."""
        self._close()

    def __reduce__(self) -> tuple[Callable[[_Sent], MemoryFile], tuple[_Sent]]:
        assert_spawning(self)
        if not self._close.alive:
            raise ValueError("this shared memory was closed")
        return _receive, (DupFd(self._descriptor),)


def _receive(sent: _Sent) -> MemoryFile:
    descriptor = sent.detach()
    os.set_inheritable(descriptor, False)  # it was inherited through one exec and must not be through another
    return MemoryFile(descriptor)


def _memfd_create(label: str) -> int:
    """Call `memfd_create` of the C library, which `os` has only if Python was built against a library with it."""
    descriptor: int = ctypes.CDLL(None, use_errno=True).memfd_create(label.encode(), _MFD_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"memfd_create: {os.strerror(number)}")
    return descriptor
