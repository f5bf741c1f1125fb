"""The test that a checkpoint must pass before anything starts from it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

from torch import nn

from vla_rl.recipe import OpenVLAOFTSection, PolicySection

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def check_policy(section: PolicySection, policy: nn.Module, *, way_on: str = "policy.self_test=false") -> None:
    """Look for faults that fail silently in a policy that comes from a checkpoint; `tiny` and `random-7b` pass.

    Action rows that look untrained are warned of: a sound checkpoint may show them too.

    Args:
        section: of the policy, in a recipe.
        policy: with its weights in place.
        way_on: what to add to the command so that it starts all the same.

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
