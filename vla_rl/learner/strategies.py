"""How a backward pass and an optimizer step are carried out: in one process, under DDP, under DeepSpeed ZeRO.

The only module that imports accelerate and deepspeed.

Who divides, pinned down once (accelerate 1.15, deepspeed 0.19; the tests of `tests/learner/test_ranks.py` hold it):

* `Accelerator.backward` divides the loss by its `gradient_accumulation_steps`, except under DeepSpeed.
* `DeepSpeedEngine.backward` divides it by its own `gradient_accumulation_steps`.
* DDP and every ZeRO stage average gradients over the ranks.

Both accumulation counts are left at 1 here and the boundary is set by hand, so nothing is divided by the number of
micro-batches (which may also change during a run). What is left is the average over ranks; `Engine.update` undoes it.
`DeepSpeedEngine.step` clips, steps, clears and refuses a norm that is not finite by itself; `TorchStrategy.step` does
the same in the same order.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterable

StrategyName = Literal["single", "ddp", "deepspeed"]
OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> {"step", "exp_avg", "exp_avg_sq"}, full tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step came to; the same on every rank."""

    applied: bool  # False: the gradient was not finite and nothing changed
    grad_norm: float  # global norm before clipping; inf or nan where not finite


class Strategy(Protocol):
    """Carries out what `Engine` decides."""

    module: nn.Module  # the wrapped module: call it to run the forward pass
    optimizer: torch.optim.Optimizer  # its `param_groups` hold the learning rates

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Entered around forward and backward of one micro-batch; gradients meet the other ranks' in the last."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        ...

    def step(self, max_grad_norm: float) -> StepOutcome:
        """Clip, step unless the gradient is not finite, clear the gradients."""
        ...

    def discard_gradients(self) -> None:
        """Forget what was accumulated since the last step."""
        ...

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The whole tensors behind the parameters, detached; views where nothing is sharded."""
        ...

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters (and any master copy of them)."""
        ...

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """AdamW's moments of every parameter, whole; empty before the first step."""
        ...

    def assign_optimizer_state(self, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
        """Overwrite AdamW's moments."""
        ...


class TorchStrategy:
    """One process, or DistributedDataParallel."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer

    @contextlib.contextmanager
    def _no_sync(self) -> Any:  # noqa: ANN401 - a generator that yields nothing
        if isinstance(self.module, DistributedDataParallel):
            with self.module.no_sync():
                yield
        else:
            yield

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Under DDP, all but the last micro-batch accumulate locally."""
        return contextlib.nullcontext() if last else self._no_sync()

    def backward(self, loss: Tensor) -> None:
        """Plain backward."""
        loss.backward()

    def step(self, max_grad_norm: float) -> StepOutcome:
        """Clip by the global norm (identical on all ranks after DDP's reduction), step, clear."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
        applied = math.isfinite(grad_norm)
        if applied:
            self.optimizer.step()
        self.discard_gradients()
        return StepOutcome(applied=applied, grad_norm=grad_norm)

    def discard_gradients(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Views of the parameters."""
        return {name: parameter.detach() for name, parameter in parameters.items()}

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Copy in place, so that memory shared with other processes stays shared."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """Views of the moments."""
        state = self.optimizer.state
        return {name: dict(state[parameter]) for name, parameter in parameters.items() if parameter in state}

    def assign_optimizer_state(self, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
        """Moments go to the parameter's device; AdamW keeps its step count on the CPU."""
        self.optimizer.state.clear()
        for name, entry in state.items():
            parameter = parameters[name]
            moments = {key: entry[key].detach().to(parameter.device, copy=True) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": entry["step"].detach().cpu().clone(), **moments}


class DeepSpeedStrategy:
    """DeepSpeed ZeRO, stages 1 to 3."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401 - deepspeed is untyped
        self._engine = engine
        self.module: nn.Module = engine
        self.optimizer: torch.optim.Optimizer = engine.optimizer

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Any:  # noqa: ANN401 - a generator that yields nothing
        """Tells the engine where the accumulation ends."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor) -> None:
        """The engine's backward; `step` follows by hand, so its internal step runs at the boundary only."""
        self._engine.backward(loss)

    def step(self, max_grad_norm: float) -> StepOutcome:
        """The engine clips, steps, gathers and clears; it skips the step where the norm is not finite."""
        del max_grad_norm  # DeepSpeed took it with its configuration
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(applied=applied, grad_norm=float(norm) if applied else math.inf)

    def discard_gradients(self) -> None:
        """Not offered by DeepSpeed once gradients were reduced into its partitions."""
        raise RuntimeError("gradients accumulated under DeepSpeed cannot be discarded")

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Views under stages 1 and 2; under stage 3 gathered from all ranks and copied to the CPU."""
        if self._engine.zero_optimization_stage() < 3:
            return {name: parameter.detach() for name, parameter in parameters.items()}
        return {name: tensor.cpu() for name, tensor in self._gather(parameters, None).items()}

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """The working copy and the fp32 partition that the optimizer owns."""
        import deepspeed

        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(values[name])
            self._scatter(parameter, values[name], None)

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """Whole moments, gathered from the partitions, on every rank."""
        steps = [entry["step"] for entry in self._base_optimizer().state.values() if "step" in entry]
        if not steps:
            return {}
        self._link_moments()
        moments = {key: self._gather(parameters, key) for key in MOMENTS}
        return {name: {"step": steps[0], **{key: moments[key][name] for key in MOMENTS}} for name in parameters}

    def assign_optimizer_state(self, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
        """Scatter whole moments into the partitions; DeepSpeed itself creates them with its first step."""
        if not state:
            return
        self._create_moments(next(iter(state.values()))["step"])
        for name, parameter in parameters.items():
            for key in MOMENTS:
                self._scatter(parameter, state[name][key], key)

    def _base_optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, self._engine.optimizer.optimizer)

    def _create_moments(self, step: Tensor) -> None:
        """AdamW creates its state in its first step; a resumed run needs the places before that."""
        optimizer = self._engine.optimizer
        base = self._base_optimizer()
        for partition in self._partitions(optimizer):
            base.state[partition] = {"step": step.detach().cpu().clone()}
            base.state[partition] |= {key: torch.zeros_like(partition) for key in MOMENTS}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell every parameter where its slice of the moments lies (stages 1 and 2).

        DeepSpeed does it once, after the step of the first parameter group: the second one's moments do not exist yet.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        optimizer = self._engine.optimizer
        if self._engine.zero_optimization_stage() < 3:
            partitions = optimizer.single_partition_of_fp32_groups
            for group, partition in zip(optimizer.bit16_groups, partitions, strict=True):
                lazy_init_hp_params_optimizer_state(group, partition, self._base_optimizer().state)

    def _partitions(self, optimizer: Any) -> Iterable[Tensor]:  # noqa: ANN401 - deepspeed is untyped
        stage3 = self._engine.zero_optimization_stage() == 3
        return cast(
            "list[Tensor]",
            optimizer.fp32_partitioned_groups_flat if stage3 else optimizer.single_partition_of_fp32_groups,
        )

    def _scatter(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Give this rank's partition its part of a whole tensor: of the fp32 parameter, or of the moment `key`."""
        from deepspeed import utils

        value = value.to(parameter.device)
        if self._engine.zero_optimization_stage() < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # DeepSpeed's own setters of whole tensors refuse sizes that do not divide by the number of ranks.
        size = cast(Any, parameter).ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        local = padded[size * dist.get_rank() :][:size]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, local)
        else:
            utils.safe_set_local_optimizer_state(parameter, local, key)

    def _gather(self, parameters: Mapping[str, nn.Parameter], key: str | None) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if key is None:
            return {name: safe_get_full_fp32_param(parameter) for name, parameter in parameters.items()}
        return {name: safe_get_full_optimizer_state(parameter, key) for name, parameter in parameters.items()}


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
        ValueError: strategy "single" in a process that was launched as one of several ranks; DeepSpeed is not there.
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
    # Frozen tensors are the same on all ranks (same checkpoint): neither broadcast at the start nor watched afterwards.
    names = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    names += [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # autocast lives in the wrapped module, the same for every strategy
        kwargs_handlers=[
            _process_group(device, timeout_s),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    return TorchStrategy(accelerator.prepare_model(module), optimizer), accelerator.device


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
    # Of torch, about calls that DeepSpeed makes: once per call site and rank, and nothing for the user to do.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    _pretend_launched()
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = {
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, used for its throughput log alone
        "gradient_accumulation_steps": 1,  # see the head of this module
        "gradient_clipping": max_grad_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": device == "cuda", "contiguous_gradients": True},
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


def gather_with_wrapper(module: nn.Module) -> None:
    """ZeRO-3 gathers a parameter around calls of the module that holds it; a policy's own are used by the wrapper."""
    import deepspeed

    for child in module.children():
        for parameter in child.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(module, parameter)


def _pretend_launched() -> None:
    """DeepSpeed insists on a process group; one process that nobody launched is a group of one."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def close_process_group() -> None:
    """Leave the process group, if there is one; every rank calls it at its orderly end."""
    if dist.is_initialized():
        dist.destroy_process_group()
