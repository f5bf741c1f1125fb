"""The GPU of a process: which one is its own, how float32 is computed on it, and how much of it was used."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most that torch's allocator held in this process since it started, in bytes.

    Memory that another process shares is in that process's numbers alone.
    """

    allocated: int  # by tensors
    reserved: int  # from the device: tensors and what the allocator keeps for the next ones


def use_device(device: str | torch.device) -> torch.device:
    """Make a device this process's own, before it computes anything; every process that computes calls this first.

    On a GPU it becomes torch's current device: whatever does not name one (random state, streams, graphs, NCCL) then
    means this one, and the first GPU gets no context from processes that work on another. See also `settle_arithmetic`.

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
    """Choose how a GPU computes, in learner and inference worker alike, so that their log-probabilities agree.

    * cuDNN's attention is off. Where it is on, torch may choose it by shape, so a decision could be computed by one
      kernel when it is made and by another when it is learned from. Left are flash attention where there is no mask and
      the memory-efficient kernel where there is one.
    * float32 is float32: TensorFloat-32, which rounds factors to 10 bits and which convolutions use by default, is off.
      It moves the logits of a float32 policy by about 2e-3 (emulated). A bfloat16 policy computes little in float32.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def peak_memory(device: str | torch.device) -> PeakMemory | None:
    """Return what this process used of a GPU at most; None for a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return PeakMemory(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
