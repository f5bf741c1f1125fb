"""AdamW with two parameter groups, and the learning rate as a pure function of the update's index."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from vla_rl.types import Policy

POLICY_GROUP = "policy"
VALUE_GROUP = "value"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Plain numbers of the optimizer. Warm-ups and `total_steps` are counted in optimizer steps."""

    policy_lr: float
    value_lr: float
    policy_warmup: int = 0
    value_warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    total_steps: int = 1

    def __post_init__(self) -> None:
        longest = max(self.policy_warmup, self.value_warmup)
        if self.schedule == "cosine" and longest >= self.total_steps:
            raise ValueError(
                f"warm-up must end before the run does: policy_warmup {self.policy_warmup}, value_warmup "
                f"{self.value_warmup}, total_steps {self.total_steps}; shorten the warm-up or use schedule 'constant'"
            )


def learning_rate(
    step: int, *, peak: float, warmup: int, total_steps: int, schedule: Literal["cosine", "constant"]
) -> float:
    """Return the learning rate of the update with index `step` (0 is the first).

    Warm-up rises linearly and reaches `peak` with update `warmup` (the first of `warmup` updates is already at
    peak / warmup, never at 0); then cosine to 0 at `total_steps`, or constant.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / (total_steps - warmup))
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def trainable_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are optimised, published and saved, by name."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def build_adamw(policy: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters: one group for the policy, one for the value head, if not empty.

    Raises:
        ValueError: no parameter is trainable.
    """
    is_value = cast(Policy, policy).is_value_parameter
    groups: dict[str, list[nn.Parameter]] = {POLICY_GROUP: [], VALUE_GROUP: []}
    for name, parameter in trainable_parameters(policy).items():
        groups[VALUE_GROUP if is_value(name) else POLICY_GROUP].append(parameter)
    if not any(groups.values()):
        raise ValueError(
            "the policy has no trainable parameter: nothing requires a gradient, so nothing can be learned"
        )
    return torch.optim.AdamW(
        [{"params": parameters, "name": name} for name, parameters in groups.items() if parameters],
        lr=0.0,  # set before every update by `schedule`
        weight_decay=settings.weight_decay,
        fused=True,
    )


def schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int) -> dict[str, float]:
    """Set every group's learning rate for the update with index `step` and return it by group name."""
    rates = {
        POLICY_GROUP: learning_rate(
            step,
            peak=settings.policy_lr,
            warmup=settings.policy_warmup,
            total_steps=settings.total_steps,
            schedule=settings.schedule,
        ),
        VALUE_GROUP: learning_rate(
            step,
            peak=settings.value_lr,
            warmup=settings.value_warmup,
            total_steps=settings.total_steps,
            schedule=settings.schedule,
        ),
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return rates
