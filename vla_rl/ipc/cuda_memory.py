"""GPU memory that other processes map: torch's CUDA IPC, with its reference counts managed here.

torch counts the users of memory that a process has sent to others: plus one for each send, minus one when a receiver
drops its tensor. While the count is above 0 the owner's memory stays allocated, even if the owner has no reference to
it any more. A receiver that ends without dropping its tensors (by `os._exit` or a signal) never decrements the count,
so the owner would never free the memory. Here memory is sent once for any number of receivers, and the owner decrements
the count itself after its receivers have ended, for whatever reason (`ExportedMemory.release`). A decrement by a
receiver does no harm: at 0 or below memory is free. See `torch/csrc/CudaIPCTypes.cpp` (`CudaIPCSentDataDelete`,
`CudaIPCSentDataLimbo`) and `torch/multiprocessing/reductions.py`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

_SAMPLES = 64


class SharingError(RuntimeError):
    """Memory that processes cannot share on this machine; the message gives the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class CudaMemoryHandle:
    """Handle with which another process maps the memory. Plain values: it can be pickled any number of times."""

    rebuild: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    sample: bytes  # some of the memory's bytes, to verify that the right memory is mapped

    def open(self) -> Tensor:
        """Map the memory: flat uint8 bytes. The current device should be the memory's.

        Raises:
            SharingError: this process cannot map it, or finds something else there.
            torch.cuda.OutOfMemoryError: the device has no room for what mapping takes.
        """
        try:
            flat = self.rebuild(*self.arguments)
            found = sample_of(flat)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _cannot_share(str(error)) from error
        if found != self.sample:
            raise _cannot_share("the memory that was mapped does not hold what the other process put there")
        return flat


class ExportedMemory:
    """Memory of this process, prepared for mapping by other processes.

    Args:
        flat: uint8 bytes on a GPU, complete: later writes may become visible later.

    Raises:
        SharingError: the device or the allocator cannot share it.
    """

    def __init__(self, flat: Tensor) -> None:
        try:
            torch.cuda.synchronize(flat.device)  # pending writes are covered by no event
            self._rebuild, self._arguments = reduce_tensor(flat)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _cannot_share(str(error)) from error
        self._flat: Tensor | None = flat

    @property
    def handle(self) -> CudaMemoryHandle:
        """Return a handle for any number of other processes."""
        assert self._flat is not None, "released"
        return CudaMemoryHandle(self._rebuild, self._arguments, sample_of(self._flat))

    def release(self) -> None:
        """Return the memory to this process, after all others that map it have ended. Idempotent.

        It is freed when this process drops its own tensors, or now if it already has.
        """
        if self._flat is None:
            return
        self._flat = None
        file, offset = _counter(self._rebuild, self._arguments)
        torch.UntypedStorage._release_ipc_counter_cuda(file, offset)
        torch.cuda.ipc_collect()


def sample_of(flat: Tensor) -> bytes:
    """Return up to 64 bytes, evenly spaced."""
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu().numpy().tobytes()


def _counter(rebuild: Callable[..., Tensor], arguments: tuple[Any, ...]) -> tuple[bytes, int]:
    """Return the file of torch's counters and this memory's offset in it, from the arguments that torch passes."""
    named = inspect.signature(rebuild).bind(*arguments).arguments
    return named["ref_counter_handle"], named["ref_counter_offset"]


def _cannot_share(reason: str) -> SharingError:
    settings = [os.environ.get(name, "") for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")]
    if any("expandable_segments:true" in each.lower().replace(" ", "") for each in settings):
        remedy = (
            "expandable_segments:True is set, and sharing such memory needs a right (pidfd_getfd) that many systems "
            "keep from processes: unset it in PYTORCH_CUDA_ALLOC_CONF and PYTORCH_ALLOC_CONF"
        )
    else:
        remedy = "CUDA IPC is not available under WSL and in some containers"
    first_line = (reason.strip().splitlines() or ["no reason given"])[0]
    return SharingError(
        f"processes cannot share GPU memory here: {first_line}. {remedy}. runtime.share_frozen=false gives the "
        "inference worker its own copy of the frozen weights"
    )
