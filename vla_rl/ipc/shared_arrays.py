"""Named numpy arrays in one block of POSIX shared memory.

    arrays = SharedArrays.create("ring", [Field("reward", (64,), np.float32)])   # the owner
    Process(target=work, args=(arrays.handle,)).start()                          # spawned, never forked
    ...
    arrays = SharedArrays.attach(handle)                                         # in `work`
    arrays["reward"][3] = 1.0                                                    # seen by everyone at once

Life of a block. Its owner creates and unlinks it; others attach. Where the owner does not get to unlink:

* The resource tracker of `multiprocessing`, a small process that outlives a kill -9 of the owner, knows the block. Only
  the owner registers it: `multiprocessing.shared_memory` registers at attaching too (bpo-38119), which ends in double
  unlinks and warnings, and is why this module maps the memory itself.
* `sweep_stale`, called when the program starts, unlinks blocks whose owner is dead; their names say who owned them.

The owner holds a shared flock on its block, which the kernel drops at its death. Where containers share /dev/shm, a
process id says nothing about a neighbour's blocks, but the lock does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vla_rl.ipc.room import SHM_DIRECTORY, check_room

ALIGNMENT = 64  # bytes; a cache line, so that two fields never share one
_PREFIX = "vla_rl"
_BLOCK_NAME = re.compile(rf"{_PREFIX}-(?P<pid>\d+)-(?P<started>\d+)-[a-z0-9_]+-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a block."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without alignment."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class SharedArraysHandle:
    """What another process needs to attach. Small and picklable."""

    block_name: str
    fields: tuple[Field, ...]


class SharedArrays:
    """Numpy views of one block; `arrays[name]` is a view, never a copy.

    A view stays valid for as long as somebody holds it, even after `close` and `unlink`: the memory itself goes with
    the last view of the last process.
    """

    def __init__(self, handle: SharedArraysHandle, memory: mmap.mmap, *, is_owner: bool) -> None:
        self.handle = handle
        self._is_owner = is_owner
        self._arrays = _map_fields(memory, handle.fields)

    @classmethod
    def create(cls, purpose: str, fields: Sequence[Field], *, poison: bool = True) -> Self:
        """Allocate a block and map its arrays.

        Args:
            purpose: lower-case word that stands in the block's name in /dev/shm.
            fields: the arrays; names are distinct.
            poison: fill with impossible values (NaN, the smallest integer, 255, False), so that a read before the first
                write shows. Without it the memory is zero.

        Raises:
            ValueError: bad purpose or names, or not enough room (see `check_room`).
        """
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise ValueError(f"fields of shared block {purpose!r} must have distinct names, got {names}")
        fills = {field.name: impossible_value(field.dtype) for field in fields} if poison else {}
        block_name = _new_block_name(purpose)
        nbytes = bytes_needed(fields)
        check_room(nbytes)
        memory = _create_block(block_name, nbytes)
        arrays = cls(SharedArraysHandle(block_name, tuple(fields)), memory, is_owner=True)
        for name, value in fills.items():
            arrays[name].fill(value)
        return arrays

    @classmethod
    def attach(cls, handle: SharedArraysHandle) -> Self:
        """Map a block that another process owns.

        Raises:
            FileNotFoundError: its owner unlinked it, or died.
        """
        descriptor = os.open(SHM_DIRECTORY / handle.block_name, os.O_RDWR)
        try:
            memory = mmap.mmap(descriptor, bytes_needed(handle.fields))
        finally:
            os.close(descriptor)
        return cls(handle, memory, is_owner=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def get(self, name: str) -> NDArray[Any] | None:
        """The array of that name, None if the block has no such field."""
        return self._arrays.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in order."""
        return tuple(field.name for field in self.handle.fields)

    def close(self) -> None:
        """Let go of the views. Idempotent; never fails, because the mapping ends with its last view."""
        self._arrays = {}

    def unlink(self) -> None:
        """Remove the block's name, in the owner; elsewhere nothing happens. Idempotent."""
        if self._is_owner:
            self._is_owner = False
            _remove_block(self.handle.block_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
        self.unlink()


class InSharedBlock:
    """Base of what lies in one block: whoever created it unlinks it, everyone closes it."""

    def __init__(self, block: SharedArrays) -> None:
        self._block = block

    def close(self) -> None:
        """Let go of the views. Idempotent."""
        self._block.close()

    def unlink(self) -> None:
        """Remove the block's name, in the owner. Idempotent."""
        self._block.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
        self.unlink()


def bytes_needed(fields: Sequence[Field]) -> int:
    """Bytes of a block that holds `fields`, alignment included; at least one alignment unit."""
    return max(ALIGNMENT, sum(_aligned(field.nbytes) for field in fields))


def impossible_value(dtype: DTypeLike) -> float | int | bool:
    """What fresh memory is filled with: NaN, the smallest signed or the largest unsigned integer, False."""
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


def sweep_stale() -> list[str]:
    """Unlink the blocks of owners that no longer live; called when the program starts.

    Returns:
        The names of the removed blocks.
    """
    removed = []
    for path in sorted(SHM_DIRECTORY.glob(f"{_PREFIX}-*")):
        match = _BLOCK_NAME.fullmatch(path.name)
        if match is None or _process_lives(int(match["pid"]), int(match["started"])):
            continue
        with _unlocked_block(path) as is_stale:
            if is_stale:
                # The tracker that cleans up after the dead owner may be ours (a killed child): tell it as well.
                resource_tracker.register(f"/{path.name}", "shared_memory")
                _remove_block(path.name)
                removed.append(path.name)
    return removed


def _map_fields(memory: mmap.mmap, fields: Sequence[Field]) -> dict[str, NDArray[Any]]:
    arrays, offset = {}, 0
    for field in fields:
        flat = np.frombuffer(memory, dtype=np.uint8, count=field.nbytes, offset=offset)
        arrays[field.name] = flat.view(field.dtype).reshape(field.shape)
        offset += _aligned(field.nbytes)
    return arrays


def _new_block_name(purpose: str) -> str:
    pid = os.getpid()
    name = f"{_PREFIX}-{pid}-{_process_start(pid)}-{purpose}-{secrets.token_hex(4)}"
    if _BLOCK_NAME.fullmatch(name) is None:
        raise ValueError(f"purpose of a shared block must be lower-case letters, digits and '_', got {purpose!r}")
    return name


def _create_block(block_name: str, nbytes: int) -> mmap.mmap:
    path = SHM_DIRECTORY / block_name
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    resource_tracker.register(f"/{block_name}", "shared_memory")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # the mapping duplicates the descriptor and so keeps the lock
        os.posix_fallocate(descriptor, 0, nbytes)
        return mmap.mmap(descriptor, nbytes)
    except OSError as error:
        _remove_block(block_name)
        raise ValueError(f"shared memory: {path.name} of {nbytes} bytes cannot be allocated: {error}") from error
    finally:
        os.close(descriptor)


def _remove_block(block_name: str) -> None:
    (SHM_DIRECTORY / block_name).unlink(missing_ok=True)
    resource_tracker.unregister(f"/{block_name}", "shared_memory")


@contextmanager
def _unlocked_block(path: Path) -> Iterator[bool]:
    """Whether nobody holds the block's lock; held against newcomers meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, PermissionError):  # somebody was quicker, or it belongs to another user
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except BlockingIOError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(descriptor)


def _process_lives(pid: int, started: int) -> bool:
    """Whether the process that had this id at that start time still runs; a reused id has another start time."""
    return _process_start(pid) == started


def _process_start(pid: int) -> int | None:
    """Start of a process in clock ticks after boot; None if there is none (or only a zombie)."""
    try:
        # The command name may hold blanks and brackets; the numbered fields start after its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start_ticks = fields[0], int(fields[19])
    return None if state == "Z" else start_ticks


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
