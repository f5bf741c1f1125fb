"""Backward pass and optimizer step: the protocol, and plain torch on one or more ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 128 << 20  # large enough for a link's full rate, small enough to fit beside the gradients

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> {"step", "exp_avg", "exp_avg_sq"}, full tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Result of one optimizer step; the same on every rank."""

    applied: bool  # False: the gradient was not finite, and nothing changed
    grad_norm: float  # global norm before clipping; inf or NaN if not finite


class Strategy(Protocol):
    """Implementation of the operations of `Engine`."""

    module: nn.Module  # the wrapped module: call it to run the forward pass
    optimizer: torch.optim.Optimizer  # its `param_groups` hold the learning rates

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context for forward and backward of one micro-batch of an update."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        ...

    def step(self, max_grad_norm: float) -> StepOutcome:
        """Average over ranks, clip, step unless the gradient is not finite, clear the gradients."""
        ...

    def discard_gradients(self) -> None:
        """Discard the gradients accumulated since the last step."""
        ...

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the whole tensors behind the parameters, detached; views unless they are sharded."""
        ...

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters (and any master copy of them)."""
        ...

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """Return AdamW's moments of every parameter, whole; empty before the first step."""
        ...

    def assign_optimizer_state(self, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
        """Overwrite AdamW's moments."""
        ...


class TorchStrategy:
    """Strategy for one process or data parallelism: every rank holds the whole module; gradients meet only in `step`.

    DistributedDataParallel would reduce them inside the last backward pass. That saves the few milliseconds of
    transferring adapters, but leaves the other ranks waiting if one runs out of memory there.

    Args:
        module: on its device; the trainable parameters of all ranks start as rank 0's.
        optimizer: optimizer of its trainable parameters.
        num_ranks: ranks in the process group; 1 needs no group.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, num_ranks: int = 1) -> None:
        self.module = module
        self.optimizer = optimizer
        self._num_ranks = num_ranks
        # In the same order on every rank.
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if num_ranks > 1:
            for bucket in in_buckets([parameter.detach() for parameter in self._parameters]):
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                dist.broadcast(flat, src=0)
                copy_from_flat(bucket, flat)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Do nothing."""
        del last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Run the plain backward pass."""
        loss.backward()

    def step(self, max_grad_norm: float) -> StepOutcome:
        """Average, clip by the norm (then identical on all ranks), step, clear."""
        if self._num_ranks > 1:
            self._average_gradients()
        grad_norm = clip_by_norm([it.grad for it in self._parameters if it.grad is not None], max_grad_norm)
        applied = math.isfinite(grad_norm)
        if applied:
            self.optimizer.step()
        self.discard_gradients()
        return StepOutcome(applied=applied, grad_norm=grad_norm)

    def discard_gradients(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def _average_gradients(self) -> None:
        """Average in place, a few large buffers at a time: an adapter's gradients are hundreds of small tensors.

        All transfers are started before waiting for the first.
        """
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        transfers = []
        for bucket in in_buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            transfers.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, transfer in transfers:
            transfer.wait()
            copy_from_flat(bucket, flat.div_(self._num_ranks))

    def full_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return views of the parameters."""
        return {name: parameter.detach() for name, parameter in parameters.items()}

    def assign_parameters(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Copy in place, so that memory shared with other processes stays shared."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
        """Return views of the moments."""
        state = self.optimizer.state
        return {name: dict(state[parameter]) for name, parameter in parameters.items() if parameter in state}

    def assign_optimizer_state(self, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
        """Copy everything to the parameter's device, including the step count: fused AdamW reads it there."""
        self.optimizer.state.clear()
        for name, entry in state.items():
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                key: entry[key].detach().to(parameter.device, copy=True) for key in ("step", *MOMENTS)
            }


def clip_by_norm(gradients: list[Tensor], max_norm: float) -> float:
    """Scale gradients of one dtype and device in place so that their global norm is at most `max_norm`.

    The same arithmetic as `torch.nn.utils.clip_grad_norm_`, which also multiplies gradients by 1 that are short enough,
    and sorts them by device: with a small policy that takes as long as the optimizer.

    Returns:
        The norm before; if it is not finite, the gradients are left as they are.
    """
    if not gradients:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    before = float(norm)
    if math.isfinite(before) and before + 1e-6 > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return before


def in_buckets(tensors: Sequence[Tensor], *, max_bytes: int = BUCKET_BYTES) -> list[list[Tensor]]:
    """Split a list into runs of one dtype and at most `max_bytes`, in order; a larger tensor is a run of its own."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not buckets or buckets[-1][0].dtype != tensor.dtype or size + tensor.nbytes > max_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


def copy_from_flat(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy the parts of `flat`, in order, into the tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
