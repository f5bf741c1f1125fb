"""Settings of the algorithm, as the learner takes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the terms, and whether advantages are normalised over the union of the ranks' batches."""

    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    kl_coefficient: float = 0.0
    normalize_advantages: bool = True
    running_moments: bool = False  # normalise by the moments of earlier updates, not of the batch itself
    joint_ratio: bool = False  # one importance ratio per decision instead of one per action token
