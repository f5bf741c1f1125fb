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


Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Plain numbers of the optimizer. Warm-ups and step counts are in optimizer steps."""

    policy_lr: float
    value_lr: float
    policy_warmup: int = 0
    value_warmup: int = 0
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    total_steps: int = 1
    final_lr_fraction: float = 0.0  # of the peak, at which cosine and linear end
    critic_only_steps: int = 0  # first steps, in which only the value head moves

    def __post_init__(self) -> None:
        longest = max(self.critic_only_steps + self.policy_warmup, self.value_warmup)
        if self.schedule != "constant" and longest >= self.total_steps:
            raise ValueError(
                f"warm-up must end before the run does: policy_warmup {self.policy_warmup} after critic_only_steps "
                f"{self.critic_only_steps}, value_warmup {self.value_warmup}, total_steps {self.total_steps}; shorten "
                "the warm-up or use schedule 'constant'"
            )


def learning_rate(
    step: int, *, peak: float, warmup: int, total_steps: int, schedule: Schedule, final_fraction: float = 0.0
) -> float:
    """Return the learning rate of the update with index `step` (0 is the first).

    Warm-up rises linearly and reaches `peak` with update `warmup` (the first of `warmup` updates is already at
    peak / warmup, never at 0); then constant, or down along half a cosine or a straight line to `final_fraction` of the
    peak at `total_steps`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / (total_steps - warmup))
    left = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1.0 - final_fraction) * left)


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
    """Set every group's learning rate for the update with index `step` and return it by group name.

    While only the critic is trained the policy's rate is exactly 0, at which AdamW leaves a weight as it is, decay
    included; the policy's schedule begins afterwards. Its moments are averaged meanwhile.
    """
    before = settings.critic_only_steps
    rates = {
        POLICY_GROUP: 0.0
        if step < before
        else learning_rate(
            step - before,
            peak=settings.policy_lr,
            warmup=settings.policy_warmup,
            total_steps=settings.total_steps - before,
            schedule=settings.schedule,
            final_fraction=settings.final_lr_fraction,
        ),
        VALUE_GROUP: learning_rate(
            step,
            peak=settings.value_lr,
            warmup=settings.value_warmup,
            total_steps=settings.total_steps,
            schedule=settings.schedule,
            final_fraction=settings.final_lr_fraction,
        ),
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return rates
