"""What running out of device memory looks like."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no room: torch's own error, or that of a CUDA library without room for its workspace."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)
