"""GPU memory that other processes map: torch's CUDA IPC, with its bookkeeping done here.

torch counts the users of memory that a process has sent away: one for every time it was sent, less one when a receiver
drops its tensor. While the count is above 0 the owner's memory stays allocated, even if nothing of the owner refers to
it any more. A receiver that ends without dropping its tensors (by `os._exit` or a signal) never counts down, so the
owner would keep the memory for good. Here memory is sent once, whatever the number of receivers, and the owner counts
that one down itself when its receivers have ended, however they did (`ExportedMemory.release`). A receiver that did
count down has done no harm: at 0 or below memory is free. See `torch/csrc/CudaIPCTypes.cpp` (`CudaIPCSentDataDelete`,
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
    """Memory cannot be shared between processes on this machine; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class CudaMemoryHandle:
    """What another process needs to map the memory. Plain values: it can be pickled any number of times."""

    rebuild: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    sample: bytes  # some of the memory's bytes, to tell whether what is mapped is what was meant

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
    """Memory of this process that was made ready to be mapped by others.

    Args:
        flat: uint8 bytes on a GPU, complete: what is written later may be seen later.

    Raises:
        SharingError: the device or the allocator cannot share it.
    """

    def __init__(self, flat: Tensor) -> None:
        try:
            torch.cuda.synchronize(flat.device)  # what is still being written would reach nobody's event
            self._rebuild, self._arguments = reduce_tensor(flat)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _cannot_share(str(error)) from error
        self._flat: Tensor | None = flat

    @property
    def handle(self) -> CudaMemoryHandle:
        """For any number of other processes."""
        assert self._flat is not None, "released"
        return CudaMemoryHandle(self._rebuild, self._arguments, sample_of(self._flat))

    def release(self) -> None:
        """Give the memory back to this process, once all others that map it have ended. Idempotent.

        It is freed when this process drops its own tensors, or now if it has.
        """
        if self._flat is None:
            return
        self._flat = None
        file, offset = _counter(self._rebuild, self._arguments)
        torch.UntypedStorage._release_ipc_counter_cuda(file, offset)
        torch.cuda.ipc_collect()


def sample_of(flat: Tensor) -> bytes:
    """Up to 64 bytes, evenly spaced."""
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu().numpy().tobytes()


def _counter(rebuild: Callable[..., Tensor], arguments: tuple[Any, ...]) -> tuple[bytes, int]:
    """The file of torch's counters and the place of this memory's in it, by the names that torch gives them."""
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
