"""Plans of policies so small that they are built to be counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.policies.kind import Fixed, PolicyPlan
from vla_rl.policies.parameters import sizes_of
from vla_rl.types import PolicyBuilder


def plan_small(build: PolicyBuilder, *, kind: str, fixed: Mapping[str, Any] | None = None) -> PolicyPlan:
    """Return the plan of a policy whose memory and arithmetic are negligible.

    Args:
        build: its builder, called once with `empty=True`.
        kind: what it is, for people.
        fixed: values on which the network depends besides its trained tensors, by field of a recipe.
    """
    policy = build(device="cpu", empty=True)
    sizes = sizes_of(policy)
    return PolicyPlan(
        build=build,
        observation_spec=policy.observation_spec,
        action_spec=policy.action_spec,
        trainable_parameters=sizes.trainable,
        frozen_parameters=sizes.frozen,
        trainable_bytes=sizes.trainable_bytes,
        frozen_bytes=sizes.frozen_bytes,
        text=f"{kind} with {sizes.trainable + sizes.frozen:,} parameters",
        fixed={name: Fixed(value, value) for name, value in (fixed or {}).items()},
    )
