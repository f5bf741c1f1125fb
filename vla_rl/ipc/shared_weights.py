"""Single copy of the frozen weights for all processes of a cell.

    shared = share_tensors({name: parameter.data for name, parameter in frozen})   # learner, which owns the memory
    Process(target=serve, args=(shared.handle,)).start()
    ...
    for name, tensor in SharedWeights.attach(handle).tensors().items(): ...        # inference worker: the same memory

On a CPU the memory is a block of shared memory (see `shared_arrays` for its life). On a GPU it is one allocation that
is exported through CUDA IPC (see `cuda_memory`). The owner must outlive its users, and calls `close` after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch

from vla_rl.ipc.cuda_memory import CudaMemoryHandle, ExportedMemory
from vla_rl.ipc.shared_arrays import ALIGNMENT, Field, SharedArrays, SharedArraysHandle


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Place of one tensor in the flat bytes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int  # byte offset, a multiple of 64

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class SharedWeightsHandle:
    """Handle with which a spawned process maps the weights."""

    places: Mapping[str, TensorPlace]
    memory: SharedArraysHandle | CudaMemoryHandle  # a block (CPU), or flat uint8 bytes on a GPU


@dataclass(frozen=True, slots=True)
class NotShared:
    """Stand-in for a handle if a process is to load its own copy of the weights."""

    reason: str
    asked_for: bool  # otherwise sharing was tried and failed


class SharedWeights:
    """Named tensors that several processes map. Created by `share_tensors`, attached with a handle."""

    def __init__(self, places: Mapping[str, TensorPlace], memory: SharedArrays | torch.Tensor) -> None:
        self._places = dict(places)
        self._block = memory if isinstance(memory, SharedArrays) else None
        self._flat = torch.from_numpy(memory["bytes"]) if isinstance(memory, SharedArrays) else memory
        self._exported: ExportedMemory | None = None

    @classmethod
    def attach(cls, handle: SharedWeightsHandle) -> Self:
        """Map the weights of another process.

        Raises:
            ValueError: the owner, in this process, closed them.
            SharingError: GPU memory cannot be mapped here.
        """
        if isinstance(handle.memory, CudaMemoryHandle):
            return cls(handle.places, handle.memory.open())
        return cls(handle.places, SharedArrays.attach(handle.memory))

    @property
    def handle(self) -> SharedWeightsHandle:
        """Return a handle for any number of spawned processes.

        Raises:
            SharingError: GPU memory cannot be shared here.
        """
        if self._block is not None:
            return SharedWeightsHandle(self._places, self._block.handle)
        if self._exported is None:
            self._exported = ExportedMemory(self._flat)
        return SharedWeightsHandle(self._places, self._exported.handle)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights by name, without a copy: every process sees writes to them."""
        return {
            name: self._flat[place.start : place.start + place.nbytes].view(place.dtype).view(place.shape)
            for name, place in self._places.items()
        }

    def close(self) -> None:
        """Release the memory; in the owner, after the other processes have ended. Idempotent.

        Tensors that are still referenced stay valid; `tensors` must not be called. GPU memory is freed as soon as the
        owner's own tensors are gone.
        """
        self._flat = torch.empty(0, dtype=torch.uint8)
        if self._block is not None:
            self._block.close()
        if self._exported is not None:
            self._exported.release()
            self._exported = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def share_tensors(named: Mapping[str, torch.Tensor], *, device: torch.device | None = None) -> SharedWeights:
    """Copy tensors into memory that other processes can map.

    Args:
        named: tensors of any shape and dtype, all on one device.
        device: device of the shared memory; default: that of the tensors. If they are copied from the CPU to a GPU, the
            GPU never holds them twice.

    Raises:
        ValueError: tensors on several devices or on one that cannot be shared, or not enough room.
    """
    devices = {tensor.device for tensor in named.values()} or {torch.device("cpu")}
    if len(devices) > 1:
        raise ValueError(f"shared weights must be on one device, got {sorted(map(str, devices))}")
    device = device or devices.pop()
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"shared weights must be on a CPU or a CUDA device, got {device}")
    places, num_bytes = _place(named)
    memory: SharedArrays | torch.Tensor
    if device.type == "cuda":
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    else:
        memory = SharedArrays.create("weights", [Field("bytes", (num_bytes,), np.uint8)], poison=False)
    shared = SharedWeights(places, memory)
    for name, view in shared.tensors().items():
        view.copy_(named[name].detach())
    return shared


def _place(named: Mapping[str, torch.Tensor]) -> tuple[dict[str, TensorPlace], int]:
    places, start = {}, 0
    for name, tensor in named.items():
        places[name] = TensorPlace(tuple(tensor.shape), tensor.dtype, start)
        start += -(-places[name].nbytes // ALIGNMENT) * ALIGNMENT
    return places, start
