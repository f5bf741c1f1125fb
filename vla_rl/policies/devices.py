"""GPU of a process: selection, float32 arithmetic, peak memory, and errors that mean that its memory is used up."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass

import torch
from torch import nn

# "Out of device memory" as each library words it. Some arrive as a plain RuntimeError, some are wrapped by
# torch.compile in an error of its own that quotes the original.
_OUT_OF_MEMORY = re.compile(
    r"|".join(
        (
            r"\b(CUDA|HIP) out of memory",  # torch's caching allocator, quoted by torch.compile or by a rank
            r"\b(CUDA|HIP)( driver)? error: out of memory",  # runtime and driver calls: cudaMalloc, cuMemCreate
            r"\bTriton Error \[(CUDA|HIP)\]: out of memory",  # loading or launching a compiled kernel
            r"_STATUS_(\w+_)?ALLOC(ATION)?_FAILED",  # cuBLAS, cuSOLVER, cuSPARSE, cuDNN (from 9 on with a longer name)
            r"\bCUFFT_ALLOC_FAILED",
            r"\bCuda failure (\d+ )?'out of memory'",  # NCCL's buffers, when it connects the ranks
            r"\bCUDA_ERROR_OUT_OF_MEMORY\b",  # the driver's own name, from NVRTC and from libraries that print names
            r"\bcudaErrorMemoryAllocation\b",  # the same of the runtime
        )
    )
)


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak memory that torch's allocator held in this process since it started, in bytes.

    Memory shared by another process is counted only in that process.
    """

    allocated: int  # in tensors
    reserved: int  # reserved on the device: tensors, and what the allocator keeps for reuse


def use_device(device: str | torch.device) -> torch.device:
    """Make a device this process's own. Every process that computes calls this before it computes anything.

    On a GPU it becomes torch's current device: everything that names no device (random state, streams, graphs, NCCL)
    then uses this one, and processes that work on another GPU create no context on the first. See also
    `settle_arithmetic`.

    Args:
        device: like `cuda:1` or `cpu`; `cuda` without a number is the current GPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        settle_arithmetic()
    return device


def settle_arithmetic() -> None:
    """Set a GPU's arithmetic alike in learner and inference worker, so that their log-probabilities agree.

    * cuDNN's attention is off. If it were on, torch could choose it by shape, so acting and learning could use
      different kernels for the same decision. What remains is flash attention without a mask and the memory-efficient
      kernel with one.
    * float32 is float32: TensorFloat-32, which rounds factors to 10 bits and which convolutions use by default, is off.
      It changes the logits of a float32 policy by about 2e-3 (emulated). A bfloat16 policy computes little in float32.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def peak_memory(device: str | torch.device) -> PeakMemory | None:
    """Return this process's peak memory use on a GPU; None for a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return PeakMemory(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error means that a device is out of memory, whichever library raised it.

    A kernel that asks for more shared memory than a multiprocessor has ("out of resource") does not count: smaller
    batches would not help.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def free_failed_pass(policy: nn.Module) -> None:
    """Free the memory of a pass that failed, after its error is gone.

    Modules that hold tensors from one call to the next release them in a method `forget_pass`.
    """
    for module in policy.modules():
        forget = getattr(module, "forget_pass", None)
        if forget is not None:
            forget()
    torch.cuda.empty_cache()


def free_device_memory() -> None:
    """Free unreferenced memory: reference cycles first, then the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.ipc_collect()  # memory shared with processes that have ended
        torch.cuda.empty_cache()
