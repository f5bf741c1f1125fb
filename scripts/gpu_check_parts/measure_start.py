"""Whether torch can be imported, and what it sees. The first CUDA call is here: a hung driver costs little."""

from __future__ import annotations

import torch

from gpu_check_parts.record import Record, Setting


def measure(record: Record, setting: Setting) -> None:  # noqa: ARG001 - every phase takes both
    """Note the GPU's name, or None."""
    record.put("torch", torch.__version__)
    if not torch.cuda.is_available():
        record.put("gpu", None)
        return
    torch.zeros(1, device="cuda").add_(1).cpu()
    record.put("gpu", torch.cuda.get_device_name())
