"""Recognition of errors that mean "out of device memory": every library words them differently."""

from __future__ import annotations

import re

import torch

# Each form with the library that writes it. Some arrive as a plain RuntimeError, some are wrapped by torch.compile in
# an error of its own that quotes the original.
_FORMS = re.compile(
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error means that a device is out of memory, whichever library raised it.

    A kernel that asks for more shared memory than a multiprocessor has ("out of resource") does not count: smaller
    batches would not help.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or _FORMS.search(str(error)) is not None
