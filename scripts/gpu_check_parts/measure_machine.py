"""The machine: versions, matrix rate at the shapes of the 7B network, copies, attention. torch alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_check_parts.measuring import GIB, device, on_gpu, once, seconds_of
from gpu_check_parts.record import Record, Setting
from vla_rl.container import usable_cores
from vla_rl.policies.devices import use_device

PACKAGES = ("transformers", "accelerate", "peft", "tokenizers", "safetensors", "triton", "numpy", "pydantic", "mujoco")
TOKENS = 342  # of a decision with one image and a prompt of about 30 tokens; 599 with two and proprioception
BATCHES = (1, 4, 12)
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "other"}  # of torch._fused_sdp_choice


def measure(record: Record, setting: Setting) -> None:
    """Note everything about the machine."""
    real = setting.size == "7b"
    record.put("versions", versions())
    record.put("host", host())
    use_device(device())
    if on_gpu():
        record.put("card", card())
    record.put("matrix", matrix_rates(real=real))
    record.put("copies", copies(373 << 20 if real else 4 << 20))
    record.put("attention", attention(real=real))


def versions() -> dict[str, str | None]:
    """Of torch, what it was built for, and the packages beside it."""
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    cudnn = torch.backends.cudnn.version()
    found["cudnn"] = None if cudnn is None else str(cudnn)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def host() -> dict[str, Any]:
    """What of the computer bears on the rest: cores, memory, shared memory, whether processes may share GPU memory."""
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None
    return {
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "shared_memory_gib": None if shm is None else round(shm.total / GIB, 1),
        "kernel": os.uname().release,
        "ptrace_scope": _read("/proc/sys/kernel/yama/ptrace_scope"),
        "alloc_conf": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        },
    }


def _read(path: str) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return None


def card() -> dict[str, Any]:
    """The GPU as torch and nvidia-smi tell of it."""
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    told: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(total / GIB, 1),
        "free_gib": round(free / GIB, 1),
        "gpus": torch.cuda.device_count(),
    }
    fields = ("driver_version", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu", "compute_mode")
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=15, check=False,
        )  # fmt: skip
        values = [value.strip() for value in done.stdout.split(",")]
        if done.returncode == 0 and len(values) == len(fields):
            told |= dict(zip(fields, values, strict=True))
    return told


def matrix_rates(*, real: bool) -> list[dict[str, Any]]:
    """TFLOP/s of bfloat16 products: a large square one, then those of the network, (rows x in) by (in x out)."""
    rows = BATCHES[-1] * TOKENS
    shapes = {
        "large and square": (8192, 8192, 8192),
        "attention projections of 12 decisions": (rows, 4096, 4096),
        "q, k and v as one": (rows, 4096, 3 * 4096),
        "gate or up": (rows, 4096, 11008),
        "down": (rows, 11008, 4096),
        "gate or up, 16 decisions": (16 * TOKENS, 4096, 11008),
        "gate or up, 1 decision": (TOKENS, 4096, 11008),
        "adapter, down to rank 32": (rows, 4096, 32),
        "adapter, up from rank 32": (rows, 32, 4096),
        "SigLIP's MLP, 12 images": (12 * 256, 1152, 4304),
    }
    rates = []
    for name, (m, k, n) in shapes.items():
        if not real:
            m, k, n = (max(16, size // 32) for size in (m, k, n))
        left = torch.randn(m, k, device=device(), dtype=torch.bfloat16)
        right = torch.randn(n, k, device=device(), dtype=torch.bfloat16)
        seconds = seconds_of(lambda left=left, right=right: F.linear(left, right))  # type: ignore[misc]
        rates.append({"what": name, "m": m, "k": k, "n": n, "ms": 1e3 * seconds, "tflops": 2e-12 * m * k * n / seconds})
    return rates


def copies(num_bytes: int) -> dict[str, float]:
    """GB/s of copying as many bytes as a 7B run publishes, in one piece."""
    there = torch.zeros(num_bytes, dtype=torch.uint8, device=device())
    beside = torch.zeros_like(there)
    plain = torch.zeros(num_bytes, dtype=torch.uint8)
    ways: dict[str, Callable[[], object]] = {
        "host to device, pageable": lambda: there.copy_(plain),
        "device to host, pageable": lambda: plain.copy_(there),
        "within the device": lambda: beside.copy_(there),
    }
    if on_gpu():
        pinned = plain.pin_memory()
        ways["host to device, pinned"] = lambda: there.copy_(pinned, non_blocking=True)
        ways["device to host, pinned"] = lambda: pinned.copy_(there, non_blocking=True)
    return {name: num_bytes / 1e9 / seconds_of(way) for name, way in ways.items()}


def attention(*, real: bool) -> list[dict[str, Any]]:
    """What scaled_dot_product_attention takes at the network's shapes, and the time of every backend.

    As the program settles it for all its processes; beside it what torch would take by itself.
    """
    shapes = {"Llama, 342 tokens": (32, 342, 128), "Llama, 599 tokens": (32, 599, 128)}
    if real:
        shapes |= {"DINOv2": (16, 261, 64), "SigLIP": (16, 256, 72)}
    rows = []
    for name, (heads, tokens, width) in shapes.items():
        if not real:
            heads, width = 2, 16
        for batch in BATCHES if real else (1, 2):
            q, k, v = (
                torch.randn(batch, heads, tokens, width, device=device(), dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )
            for masked in (False, True) if name.startswith("Llama") else (False,):
                mask = padding_mask(batch, tokens) if masked else None
                row = {"what": name, "batch": batch, "masked": masked, "choice": choice(q, k, v, mask)}
                with torch_s_own_settings():
                    row["choice_of_torch"] = choice(q, k, v, mask)
                rows.append(row | times(q, k, v, mask, compare=real and on_gpu() and batch == BATCHES[-1]))
    return rows


@contextmanager
def torch_s_own_settings() -> Iterator[None]:
    """Let torch choose among all its backends."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def padding_mask(batch: int, tokens: int) -> Tensor:
    """(B, 1, T, T) as transformers builds it of prompts of several lengths: the last columns are padding."""
    keep = torch.ones(batch, 1, 1, tokens, dtype=torch.bool, device=device())
    keep[:, :, :, -3:] = False
    return keep.expand(-1, 1, tokens, -1)


def choice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """The backend that torch takes by itself."""
    ask = getattr(torch, "_fused_sdp_choice", None)  # private, so it may go
    return "not told" if ask is None else CHOICES.get(int(ask(q, k, v, mask)), "other")


def times(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, compare: bool) -> dict[str, Any]:
    """Milliseconds: the first call at this shape, then forward alone and with backward; with `compare` by backend."""

    def forward() -> Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum(), (q, k, v))

    row: dict[str, Any] = {"first_ms": 1e3 * once(forward), "ms": 1e3 * seconds_of(forward, group_s=0.01)}
    row["with_backward_ms"] = 1e3 * seconds_of(both, group_s=0.01)
    for name, backend in BACKENDS.items() if compare else ():
        try:
            with sdpa_kernel(backend):
                row[f"{name}_ms"] = 1e3 * seconds_of(both, group_s=0.01)
        except RuntimeError as error:  # this backend does not take the shape or the mask
            row[f"{name}_ms"] = str(error).splitlines()[0][:80]
    return row
