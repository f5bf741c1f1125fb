"""Setup of a module for one process, data parallelism or DeepSpeed ZeRO. The only importer of accelerate.

Divisions, as determined for accelerate 1.15 and deepspeed 0.19 and checked by `tests/learner/test_ranks.py`:

* `Accelerator.backward` divides the loss by its `gradient_accumulation_steps`, except under DeepSpeed.
* `DeepSpeedEngine.backward` divides it by its own `gradient_accumulation_steps`.
* `TorchStrategy` and every ZeRO stage average gradients over the ranks.

Both accumulation counts are left at 1 here and the boundary is set by hand, so nothing is divided by the number of
micro-batches (which may also change during a run). Only the average over ranks remains; `Engine.accumulate` undoes it.
`DeepSpeedEngine.step` clips, steps, clears and refuses a non-finite norm on its own; `TorchStrategy.step` does the same
in the same order.
"""

from __future__ import annotations

import os
import socket
import warnings
from datetime import timedelta
from importlib.util import find_spec
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import nn

from vla_rl.learner.stepping import Strategy, TorchStrategy
from vla_rl.learner.zero import DeepSpeedStrategy, gather_with_wrapper, without_compiled_collectives

_DEEPSPEED_BUCKET = 500_000_000  # elements; DeepSpeed's own default
StrategyName = Literal["single", "ddp", "deepspeed"]


def build_strategy(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    strategy: StrategyName,
    zero_stage: int,
    device: Literal["cpu", "cuda"],
    max_grad_norm: float,
    timeout_s: float,
) -> tuple[Strategy, torch.device]:
    """Wrap the module for a strategy and put it on its device.

    Raises:
        ValueError: strategy "single" in a process launched as one of several ranks, or DeepSpeed is not installed.
    """
    if strategy == "single":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"strategy 'single' in one of {os.environ['WORLD_SIZE']} launched ranks: use 'ddp' or 'deepspeed', "
                "or start one process"
            )
        place = torch.device(device)
        return TorchStrategy(module.to(place), optimizer), place
    if strategy == "ddp":
        return _build_ddp(module, optimizer, device=device, timeout_s=timeout_s)
    return _build_deepspeed(
        module, optimizer, zero_stage=zero_stage, device=device, max_grad_norm=max_grad_norm, timeout_s=timeout_s
    )


def _process_group(device: str, timeout_s: float) -> InitProcessGroupKwargs:
    backend = "nccl" if device == "cuda" else "gloo"
    return InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s))


def _build_ddp(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, device: str, timeout_s: float
) -> tuple[Strategy, torch.device]:
    # Frozen tensors are the same on all ranks (same checkpoint), so they are not sent.
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # the module applies autocast, the same for every strategy
        kwargs_handlers=[_process_group(device, timeout_s)],
    )
    place = accelerator.device
    return TorchStrategy(module.to(place), optimizer, num_ranks=accelerator.num_processes), place


def _build_deepspeed(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    zero_stage: int,
    device: str,
    max_grad_norm: float,
    timeout_s: float,
) -> tuple[Strategy, torch.device]:
    if find_spec("deepspeed") is None:
        raise ValueError(
            "strategy 'deepspeed' needs the package deepspeed, which is not installed: install vla-rl[deepspeed] "
            "(see scripts/setup), or use 'ddp'"
        )
    # Warnings of torch about DeepSpeed's calls: once per call site and rank, and the user can do nothing.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    _pretend_launched()
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        without_compiled_collectives()
    bucket = _bucket(sum(p.numel() for p in module.parameters() if p.requires_grad))
    config = {
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, used only for its throughput log
        "gradient_accumulation_steps": 1,  # see the head of this module
        "gradient_clipping": max_grad_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": device == "cuda",
            "contiguous_gradients": True,
            # Allocated whole, twice with overlap, so no larger than everything that is ever sent.
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
    accelerator = Accelerator(
        mixed_precision="no",
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        kwargs_handlers=[_process_group(device, timeout_s)],
    )
    engine, _ = accelerator.prepare(module, optimizer)
    if zero_stage == 3:
        gather_with_wrapper(module)
    return DeepSpeedStrategy(engine), torch.device(engine.device)


def _bucket(trainable: int) -> int:
    """Return the elements of a bucket: all, but no more than DeepSpeed's default, and an even number, as it demands."""
    return min(_DEEPSPEED_BUCKET, trainable + trainable % 2)


def _pretend_launched() -> None:
    """Create a process group of one for DeepSpeed, which requires a group, in a process that was not launched."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def close_process_group() -> None:
    """Leave the process group, if there is one; every rank calls it at an orderly end."""
    if dist.is_initialized():
        dist.destroy_process_group()
