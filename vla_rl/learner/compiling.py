"""Compilation of a policy's layers before the first update, so that its duration and failures show early."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_rl.policies.devices import is_out_of_memory
from vla_rl.types import Policy

if TYPE_CHECKING:
    from torch._dynamo.exc import TorchDynamoException

_ROWS = 2  # a batch of one row gets its own graph when it occurs

TensorForwardCall = Callable[..., tuple[Tensor, ...]]


class LayeredPolicy(Policy, Protocol):
    """Policy whose layers can be compiled."""

    def compile_layers(self) -> None:
        """Compile the layers, in place; the work is done in the first passes."""
        ...


def compile_layers(policy: nn.Module, forward: TensorForwardCall, *, device: torch.device) -> float:
    """Compile a policy's layers with the passes that an update makes; gradients are unchanged.

    Args:
        policy: a `LayeredPolicy`, on its device.
        forward: calls the policy as the learner does, see `learner.engine.TensorForward`.
        device: device of the policy.

    Returns:
        Duration in seconds; short if torch's cache (`TORCHINDUCTOR_CACHE_DIR`) is filled.

    Raises:
        ValueError: the policy has no layers to compile, or torch cannot compile here.
    """
    if not hasattr(policy, "compile_layers"):
        raise ValueError("learner.compile is 'layers', but this policy has none: set learner.compile=off")
    from torch._dynamo.exc import TorchDynamoException  # a second and a half, which most processes do without

    began, training = time.monotonic(), policy.training
    layered = cast(LayeredPolicy, policy)
    layered.compile_layers()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    try:
        for buckets in _kinds_of_prompts(layered):
            inputs, tokens = _zeros(layered, device), _zero_tokens(layered, device)
            policy.eval()
            with torch.no_grad():
                forward(*inputs, buckets)
            policy.train()
            values, logprobs = forward(*inputs, buckets, tokens)
            torch.autograd.grad(logprobs.sum() + values.sum(), trained, allow_unused=True)
    except TorchDynamoException as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(_advice(error)) from error
    finally:
        policy.train(training)
    return time.monotonic() - began


def _kinds_of_prompts(policy: Policy) -> list[tuple[int, ...] | None]:
    """Return buckets: prompts of one length, which need no mask; then of any length, unless all have the same."""
    return [(int(policy.bucket_of(np.zeros(1, dtype=np.int64))[0]),), None]


def _zeros(policy: Policy, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    spec = policy.observation_spec
    return (
        torch.zeros(_ROWS, *spec.frames_shape, dtype=torch.uint8, device=device),
        torch.zeros(_ROWS, spec.state_dim, device=device),
        torch.zeros(_ROWS, dtype=torch.int64, device=device),
    )


def _zero_tokens(policy: Policy, device: torch.device) -> Tensor:
    spec = policy.action_spec
    return torch.from_numpy(np.zeros((_ROWS, spec.num_tokens), dtype=spec.token_dtype)).to(device)


def _advice(error: TorchDynamoException) -> str:
    """Return one sentence of torch's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ or getattr(error, "inner_exception", None)
    reason = str(cause).strip().splitlines()[0] if cause is not None and str(cause).strip() else (lines or ["?"])[0]
    return (
        f"learner.compile is 'layers', but torch.compile fails here: {reason.rstrip('.')}. It needs a C++ compiler "
        "(g++; CXX names another) and on a GPU Triton, which torch's CUDA builds bring along: install what is missing, "
        "or set learner.compile=off"
    )
