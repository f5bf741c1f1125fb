"""Weights of the total loss: the recipe's section `loss`, handed to the learner as it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vla_rl.rl.ratios import RatioName
from vla_rl.section import Section, Weight


class LossWeights(Section):
    """Weights of the terms of the total loss, and what happens to the advantages."""

    value_coefficient: Weight = Field(0.5, description="weight of the squared value error")
    entropy_coefficient: Weight = Field(0.0, description="weight of the entropy bonus")
    kl_coefficient: Weight = Field(
        0.0, description="weight of the exact KL(behaviour || policy); above 0 the ring also stores behaviour logits"
    )
    ratio: RatioName = Field(
        "token",
        description="importance ratios: one per action token, per control step, or per decision (joint); the last "
        "two are products of token ratios",
    )
    aggregation: Literal["token", "trajectory", "constant"] = Field(
        "token",
        description="mean of the policy term. token: over all ratios; trajectory: within each episode, then over "
        "episodes; constant: sum divided by the ratios of the longest possible episode. The last two need "
        "targets.name=group",
    )
    normalize_advantages: bool = Field(
        True, description="normalise advantages to mean 0 and deviation 1 over the batch of all ranks"
    )
    advantage_moments: Literal["batch", "running"] = Field(
        "batch",
        description="mean and deviation to normalise by. batch: those of the batch; running: those of about the last "
        "ten updates, which are known beforehand, so that values, targets and loss take one pass",
    )
