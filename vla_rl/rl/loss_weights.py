"""Weights of the total loss: the recipe's section `loss`, handed to the learner as it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vla_rl.section import Section, Weight


class LossWeights(Section):
    """Weights of the terms of the total loss, and what happens to the advantages."""

    value_coefficient: Weight = Field(0.5, description="weight of the squared value error")
    entropy_coefficient: Weight = Field(0.0, description="weight of the entropy bonus")
    kl_coefficient: Weight = Field(
        0.0, description="exact KL(behaviour || policy); the ring stores behaviour logits when > 0"
    )
    ratio: Literal["token", "step", "joint"] = Field(
        "token",
        description="importance ratios: one per action token, per control step, or (joint) per decision; the latter "
        "two are products of token ratios",
    )
    aggregation: Literal["token", "trajectory", "constant"] = Field(
        "token",
        description="what weighs the same in the policy term: every ratio, every episode, or every ratio over a "
        "constant, the ratios of the longest possible episode; the latter two need whole episodes (targets.name=group)",
    )
    normalize_advantages: bool = Field(True, description="to mean 0 and deviation 1 over the batch of all ranks")
    advantage_moments: Literal["batch", "running"] = Field(
        "batch",
        description="the mean and deviation to normalise by. batch: its own; running: of about the last ten updates, "
        "known beforehand, so that one pass makes values, targets and loss",
    )
