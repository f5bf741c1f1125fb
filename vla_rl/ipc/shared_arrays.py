"""Named NumPy arrays in one block of shared memory.

    arrays = SharedArrays.create("ring", [Field("reward", (64,), np.float32)])   # the owner
    Process(target=work, args=(arrays.handle,)).start()                          # spawned, never forked
    ...
    arrays = SharedArrays.attach(handle)                                         # in `work`
    arrays["reward"][3] = 1.0                                                    # visible to all processes at once

A block has no name (see `memory_file`), so it need not be removed: however the processes that map it end, the kernel
frees it with the last of them. The owner keeps it open, so that a restarted child can attach.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vla_rl.ipc.memory_check import check_room
from vla_rl.ipc.memory_file import MemoryFile

ALIGNMENT = 64  # bytes; a cache line, so that two fields never share one


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a block."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array, without alignment."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class SharedArraysHandle:
    """Handle with which a spawned process attaches. It can be pickled only while such a process starts."""

    fields: tuple[Field, ...]
    file: MemoryFile


class SharedArrays:
    """NumPy views of one block; `arrays[name]` is a view, never a copy.

    A view stays valid as long as it is referenced, even after `close`: the memory is freed with the last view of the
    last process.
    """

    def __init__(self, handle: SharedArraysHandle, *, is_owner: bool) -> None:
        self.handle = handle
        self._is_owner = is_owner
        self._arrays = _map_fields(handle.file.map(bytes_needed(handle.fields)), handle.fields)

    @classmethod
    def create(cls, purpose: str, fields: Sequence[Field], *, poison: bool = True) -> Self:
        """Allocate a block and map its arrays.

        Args:
            purpose: word that identifies the block in /proc/PID/maps.
            fields: the arrays; names are distinct.
            poison: fill with impossible values (NaN, the smallest integer, 255, False), so that a read before the first
                write is noticed. Without it the memory is zero.

        Raises:
            ValueError: bad names, or not enough room (see `check_room`).
        """
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise ValueError(f"fields of shared block {purpose!r} must have distinct names, got {names}")
        fills = {field.name: impossible_value(field.dtype) for field in fields} if poison else {}
        nbytes = bytes_needed(fields)
        check_room(nbytes)
        try:
            file = MemoryFile.create(f"vla_rl-{purpose}", nbytes)
            arrays = cls(SharedArraysHandle(tuple(fields), file), is_owner=True)
        except OSError as error:
            raise ValueError(f"shared memory: {purpose} of {nbytes} bytes cannot be allocated: {error}") from error
        for name, value in fills.items():
            arrays[name].fill(value)
        return arrays

    @classmethod
    def attach(cls, handle: SharedArraysHandle) -> Self:
        """Map a block that another process owns.

        Raises:
            ValueError: the owner, in this process, closed it.
        """
        return cls(handle, is_owner=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def get(self, name: str) -> NDArray[Any] | None:
        """Return the array of that name, None if the block has no such field."""
        return self._arrays.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the arrays, in order."""
        return tuple(field.name for field in self.handle.fields)

    def close(self) -> None:
        """Release the views; in the owner, prevent further processes from attaching. Idempotent.

        It never fails, because the mapping ends with its last view.
        """
        self._arrays = {}
        if self._is_owner:
            self.handle.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class InSharedBlock:
    """Base of objects that are stored in one block."""

    def __init__(self, block: SharedArrays) -> None:
        self._block = block

    def close(self) -> None:
        """Release the views; in the owner, prevent further processes from attaching. Idempotent."""
        self._block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def bytes_needed(fields: Sequence[Field]) -> int:
    """Return the bytes of a block that holds `fields`, alignment included; at least one alignment unit."""
    return max(ALIGNMENT, sum(_aligned(field.nbytes) for field in fields))


def impossible_value(dtype: DTypeLike) -> float | int | bool:
    """Return the value that fills fresh memory: NaN, the smallest signed or the largest unsigned integer, False."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return float("nan")
    if kind.kind == "i":
        return int(np.iinfo(kind).min)
    if kind.kind == "u":
        return int(np.iinfo(kind).max)
    if kind.kind == "b":
        return False
    raise ValueError(f"dtype {kind} cannot be shared: use a float, an integer or bool")


def _map_fields(memory: mmap.mmap, fields: Sequence[Field]) -> dict[str, NDArray[Any]]:
    arrays, offset = {}, 0
    for field in fields:
        flat = np.frombuffer(memory, dtype=np.uint8, count=field.nbytes, offset=offset)
        arrays[field.name] = flat.view(field.dtype).reshape(field.shape)
        offset += _aligned(field.nbytes)
    return arrays


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
