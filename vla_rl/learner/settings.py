"""Plain numbers of the algorithm, as the learner takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.rl.targets import TimeLimit

ValueSource = Literal["current", "acting"]


@dataclass(frozen=True, slots=True)
class GaeSettings:
    """Generalised advantage estimation."""

    discount: float
    gae_lambda: float
    time_limit: TimeLimit = "bootstrap"  # what the end of the horizon is to the task
    values: ValueSource = "current"  # V in the targets: of the learner, or of the policy that acted


@dataclass(frozen=True, slots=True)
class VtraceSettings:
    """V-trace targets; the surrogate applies the ratio."""

    discount: float
    lambda_: float
    rho_bar: float
    c_bar: float
    time_limit: TimeLimit = "bootstrap"
    values: ValueSource = "current"


TargetSettings = GaeSettings | VtraceSettings


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the terms, and whether advantages are normalised over the union of the ranks' batches."""

    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    kl_coefficient: float = 0.0
    normalize_advantages: bool = True
    running_moments: bool = False  # normalise by the moments of the updates before, not of the batch itself
    joint_ratio: bool = False  # one importance ratio per decision instead of one per action token
