"""The test that a checkpoint must pass before anything starts from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from vla_rl.recipe import OpenVLAOFTSection, Recipe

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def check_policy(recipe: Recipe, policy: nn.Module) -> None:
    """Look for faults that fail silently in a policy that comes from a checkpoint; random weights pass.

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
    is_full_size = vla.model.config.llama == LlamaDims()  # scaled-down ones come from this program and its tests
    findings = self_test(vla, expect_trained=is_full_size)
    if findings:
        raise ValueError(
            f"{vla.source.origin} does not pass the test of checkpoints:"
            + "".join(f"\n  {finding}" for finding in findings)
            + "\npolicy.self_test=false starts all the same"
        )
