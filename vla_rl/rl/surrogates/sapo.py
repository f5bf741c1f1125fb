"""The soft gate of SAPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, by_sign, log_ratio_weight
from vla_rl.section import Scale

if TYPE_CHECKING:
    from torch import Tensor


class Sapo(Surrogate):
    """Soft sigmoid gate (arXiv 2511.20347): J = (4 / τ) sigmoid(τ (ρ − 1)) A.

    τ = tau_pos where A > 0 and tau_neg elsewhere.
    """

    name: Literal["sapo"]
    tau_pos: Scale = Field(1.0, description="steepness of the gate where the advantage is positive")
    tau_neg: Scale = Field(2.0, description="steepness of the gate elsewhere")

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return (4 / τ) sigmoid(τ (ρ − 1)) A; at ρ = 1 its value is 2 A / τ, its gradient A."""
        ratio, advantages = bounded_log_ratio(log_ratio).exp(), lift(advantages)
        tau = by_sign(advantages, self.tau_pos, self.tau_neg)
        return 4.0 / tau * (tau * (ratio - 1.0)).sigmoid() * advantages

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m: m = 4 p (1 − p) ρ, p = sigmoid(τ (ρ − 1))."""
        from torch.nn import functional as F

        gate = by_sign(lift(advantages), self.tau_pos, self.tau_neg) * (bounded_log_ratio(log_ratio).exp() - 1.0)
        log_kernel = math.log(4.0) + F.logsigmoid(gate) + F.logsigmoid(-gate)
        return log_ratio_weight(log_ratio, advantages) + log_kernel
