"""How a backward pass and an optimizer step are carried out: the protocol, and plain torch with and without DDP."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
    def _no_sync(self) -> Iterator[None]:
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
        """Everything goes to the parameter's device, the step count too: fused AdamW reads it there."""
        self.optimizer.state.clear()
        for name, entry in state.items():
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                key: entry[key].detach().to(parameter.device, copy=True) for key in ("step", *MOMENTS)
            }
