"""AdamW with two parameter groups, and the learning rate as a pure function of the update's index."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from vla_rl.rl.optimizer_section import AdamWSection, Schedule
from vla_rl.types import Policy

POLICY_GROUP = "policy"
VALUE_GROUP = "value"


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


def build_adamw(policy: nn.Module, settings: AdamWSection) -> torch.optim.AdamW:
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


def schedule(
    optimizer: torch.optim.Optimizer, settings: AdamWSection, step: int, *, total_steps: int
) -> dict[str, float]:
    """Set every group's learning rate for the update with index `step` and return it by group name.

    While only the critic is trained the policy's rate is exactly 0, at which AdamW leaves a weight as it is, decay
    included; the policy's schedule begins afterwards. Its moments are averaged meanwhile.
    """
    before = settings.policy_begins_at

    def rate(peak: float, warmup: int, *, begins_at: int) -> float:
        if step < begins_at:
            return 0.0
        return learning_rate(
            step - begins_at,
            peak=peak,
            warmup=warmup,
            total_steps=total_steps - begins_at,
            schedule=settings.schedule,
            final_fraction=settings.final_lr_fraction,
        )

    rates = {
        POLICY_GROUP: rate(settings.policy_lr, settings.policy_warmup, begins_at=before),
        VALUE_GROUP: rate(settings.value_lr, settings.value_warmup, begins_at=0),
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return rates
