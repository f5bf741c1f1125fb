"""Check that trained tensors are put into the network that they were trained in.

A checkpoint holds what is trained. What else makes the network comes from the recipe, so a checkpoint records it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from torch import nn

from vla_rl.learner.checkpoint import CheckpointError, check_architecture, kept_for_the_run, load_policy
from vla_rl.policies.kind import PolicyPlan

NETWORK = "network"  # key in a checkpoint's `extra`


def network_record(policy: PolicyPlan) -> dict[str, Any]:
    """Return what a checkpoint records of a network besides its trained tensors."""
    return {name: asdict(fixed) for name, fixed in policy.fixed.items()}


def check_network(policy: PolicyPlan, checkpoint: Path, recorded: dict[str, Any] | None) -> None:
    """Refuse another network than the one that was trained.

    Args:
        policy: policy that takes the trained tensors.
        checkpoint: checkpoint that holds them, for the message.
        recorded: its record of the network; None for older versions.

    Raises:
        CheckpointError: the networks differ.
    """
    now, before = network_record(policy), recorded or {}
    different = [name for name in before if name in now and before[name]["content"] != now[name]["content"]]
    if not different:
        return
    faults = "; ".join(
        f"{name}: trained with {_setting(before[name])}, found {_setting(now[name])}"
        + (", which holds other weights" if name == "policy.checkpoint" else "")
        for name in different
    )
    back = " ".join(quote(f"{name}={_setting(before[name])}") for name in different)
    raise CheckpointError(
        f"{checkpoint}: its tensors were trained in another network, and would give other actions in this one. "
        f"{faults}. Continue with {back}"
    )


def check_checkpoint(policy: PolicyPlan, checkpoint: Path) -> dict[str, Any]:
    """Check that a policy can take a checkpoint's trained tensors, without building it; return the checkpoint's extra.

    Raises:
        CheckpointError: it is of another architecture or another network.
    """
    extra: dict[str, Any] = check_architecture(checkpoint, policy.build(device="cpu", empty=True))["extra"]
    check_network(policy, checkpoint, extra.get(NETWORK))
    return extra


def load_trained(checkpoint: Path, policy: nn.Module, plan: PolicyPlan) -> None:
    """Overwrite a policy's trainable tensors with those of a checkpoint folder, for evaluation and export.

    Raises:
        CheckpointError: there is no complete checkpoint, or it is of another network.
    """
    load_policy(checkpoint, policy)
    check_network(plan, checkpoint, kept_for_the_run(checkpoint).get(NETWORK))


def _setting(fixed: dict[str, Any]) -> str:
    setting = fixed["setting"]
    return str(setting).lower() if isinstance(setting, bool) else str(setting)
