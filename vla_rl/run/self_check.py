"""The test that a checkpoint must pass before anything starts from it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

from torch import nn

from vla_rl.recipe import OpenVLAOFTSection, Recipe

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def check_policy(recipe: Recipe, policy: nn.Module) -> None:
    """Look for faults that fail silently in a policy that comes from a checkpoint; `tiny` and `random-7b` pass.

    Action rows that look untrained are a fault of a network of the published size, and a warning of a smaller one.

    Raises:
        ValueError: one sentence per fault.
    """
    section = recipe.policy
    if not isinstance(section, OpenVLAOFTSection) or not section.self_test:
        return
    from vla_rl.policies.openvla_oft.config import LlamaDims  # with transformers, which other policies do without
    from vla_rl.policies.openvla_oft.self_test import self_test

    vla = cast("OpenVLAOFTPolicy", policy)
    if vla.source.files is None:
        return
    findings = self_test(vla)
    faults = findings.broken
    if findings.untrained and vla.model.config.llama == LlamaDims():
        faults = [*faults, findings.untrained]
    elif findings.untrained:  # scaled-down networks are for trying things out, mostly with random weights
        warnings.warn(f"{vla.source.origin}: {findings.untrained}", stacklevel=2)
    if faults:
        raise ValueError(
            f"{vla.source.origin} does not pass the test of checkpoints:"
            + "".join(f"\n  {fault}" for fault in faults)
            + "\npolicy.self_test=false starts all the same"
        )
