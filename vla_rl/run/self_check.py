"""Test that a checkpoint must pass before it is used."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

from torch import nn

from vla_rl.recipe import OpenVLAOFTSection, PolicySection

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def check_policy(section: PolicySection, policy: nn.Module, *, way_on: str = "policy.self_test=false") -> None:
    """Check a policy from a checkpoint for silent faults; `tiny` and `random-7b` pass.

    Untrained-looking action rows only cause a warning, because a sound checkpoint may have them.

    Args:
        section: the policy's section of a recipe.
        policy: policy with its weights loaded.
        way_on: what to add to the command to skip the test.

    Raises:
        ValueError: one sentence per fault.
    """
    if not isinstance(section, OpenVLAOFTSection) or not section.self_test:
        return
    from vla_rl.policies.openvla_oft.self_test import self_test  # with transformers, which other policies do without

    vla = cast("OpenVLAOFTPolicy", policy)
    if vla.source.files is None:
        return
    findings = self_test(vla)
    if findings.untrained:
        warnings.warn(f"{vla.source.origin}: {findings.untrained}", stacklevel=2)
    if findings.broken:
        raise ValueError(
            f"{vla.source.origin} does not pass the test of checkpoints:"
            + "".join(f"\n  {fault}" for fault in findings.broken)
            + f"\n{way_on} starts all the same"
        )
