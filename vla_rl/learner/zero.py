"""DeepSpeed's engine behind the `Strategy` protocol. The only module that imports deepspeed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vla_rl.learner.stepping import MOMENTS, OptimizerState, StepOutcome


class DeepSpeedStrategy:
    """DeepSpeed ZeRO, stages 1 to 3."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401 - deepspeed is untyped
        self._engine = engine
        self.module: nn.Module = engine
        self.optimizer: torch.optim.Optimizer = engine.optimizer

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Tell the engine where the accumulation ends."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Run the engine's backward; `step` is called separately, so its internal step runs at the boundary only."""
        self._engine.backward(loss)

    def step(self, max_grad_norm: float) -> StepOutcome:
        """Clip, step, gather and clear by the engine, which skips the step if the norm is not finite."""
        del max_grad_norm  # part of DeepSpeed's configuration
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(applied=applied, grad_norm=float(norm) if applied else math.inf)

    def discard_gradients(self) -> None:
        """Raise: DeepSpeed cannot discard gradients after reducing them into its partitions."""
        raise RuntimeError("gradients accumulated under DeepSpeed cannot be discarded")

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return views under stages 1 and 2; under stage 3 tensors gathered from all ranks and copied to the CPU."""
        if self._engine.zero_optimization_stage() < 3:
            return {name: parameter.detach() for name, parameter in parameters.items()}
        return {name: tensor.cpu() for name, tensor in self._gather(parameters, None).items()}

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Overwrite the working copy and the fp32 partition that the optimizer owns."""
        import deepspeed

        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(values[name])
            self._scatter(parameter, values[name], None)

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """Return whole moments, gathered from the partitions, on every rank."""
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
        """Create AdamW's state, which otherwise appears in its first step, for a resumed run."""
        state = self._base_optimizer().state
        for partition in self._partitions():
            moments = {key: torch.zeros_like(partition) for key in MOMENTS}
            state[partition] = {"step": step.detach().to(partition.device, copy=True), **moments}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell every parameter where its slice of the moments is stored (stages 1 and 2).

        DeepSpeed does it once, after the step of the first parameter group, when the second one's moments do not exist
        yet.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        optimizer = self._engine.optimizer
        if self._engine.zero_optimization_stage() < 3:
            partitions = optimizer.single_partition_of_fp32_groups
            for group, partition in zip(optimizer.bit16_groups, partitions, strict=True):
                lazy_init_hp_params_optimizer_state(group, partition, self._base_optimizer().state)

    def _partitions(self) -> list[Tensor]:
        """Return this rank's flat fp32 tensors, which AdamW steps."""
        optimizer, stage = self._engine.optimizer, self._engine.zero_optimization_stage()
        partitions = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
        return cast("list[Tensor]", partitions)

    def _scatter(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Copy a whole tensor's part into this rank's partition of the fp32 parameter or of the moment `key`."""
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


def gather_with_wrapper(module: nn.Module) -> None:
    """Let the wrapper use a policy's own parameters: ZeRO-3 gathers only around calls of the module that holds them."""
    import deepspeed

    for child in module.children():
        for parameter in child.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(module, parameter)


def without_compiled_collectives() -> None:
    """Make DeepSpeed skip its shared-memory collectives for CPUs; call it before DeepSpeed is initialised.

    It would compile them on first use, which needs a compiler and half a minute; and a process killed meanwhile leaves
    a lock on which every later run waits forever. Gloo does the same work.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
