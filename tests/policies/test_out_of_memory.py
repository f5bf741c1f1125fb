"""Which errors mean that the device had no room. The texts are those of the libraries."""

import pytest
import torch

from vla_rl.policies.devices import is_out_of_memory

NO_ROOM = [
    # torch's allocator, quoted by torch.compile; HIP builds say it with their own name.
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    # Calls of the runtime and of the driver, outside the allocator: contexts, graphs, expandable segments, modules.
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "The following operation failed in the TorchScript interpreter: nvrtc: CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation: out of memory",
    # Libraries that want a workspace.
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    # NCCL, connecting ranks.
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    "Last error:\nCuda failure 'out of memory'",
]

OTHERS = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA error: unspecified launch failure",
    # A kernel too large for one multiprocessor: with fewer decisions it is as large.
    "No valid triton configs. OutOfResources: out of resource: shared memory, Required: 262144",
    "Last error:\nCuda failure 1 'invalid argument'",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    "an env worker ran out of memory",
    "expected scalar type Float but found BFloat16",
]


@pytest.mark.parametrize("text", NO_ROOM, ids=lambda text: text[:40])
def test_every_librarys_way_of_saying_it_is_understood(text):
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHERS, ids=lambda text: text[:40])
def test_another_failure_is_not_taken_for_it(text):
    assert not is_out_of_memory(RuntimeError(text))


def test_torchs_own_error_is_known_by_its_type_whatever_its_text():
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("no"))
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
