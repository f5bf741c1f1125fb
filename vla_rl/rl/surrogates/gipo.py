"""Gaussian importance sampling, the surrogate for old experience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, by_sign, log_ratio_weight
from vla_rl.section import Scale

if TYPE_CHECKING:
    from torch import Tensor


class Gipo(Surrogate):
    """Gaussian importance sampling (arXiv 2603.03955, equations 5 and 6): J = sg(ω) ρ A, ω = exp(−x² / (2σ²)).

    σ = sigma where A > 0 and sigma · negative_sigma_scale elsewhere: a factor below 1 trusts bad actions less.
    """

    name: Literal["gipo"]
    sigma: Scale = Field(1.0, description="width of the trust weight in log-ratio; larger trusts older data more")
    negative_sigma_scale: Scale = Field(
        1.0, description="sigma is multiplied by this where the advantage is not positive"
    )

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return ω ρ A, with the trust weight ω held constant.

        ω and ρ share one exponent, because e^x · ω is inf · 0 long before their product leaves the range of a float;
        so m = exp(x − x² / (2σ²)) ≤ exp(σ² / 2) holds numerically too.
        """
        x, advantages = bounded_log_ratio(log_ratio), lift(advantages)
        log_trust_weight = -0.5 * (x.detach() / self._sigmas(advantages)).square()
        return (x + log_trust_weight).exp() * advantages

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m = x − x² / (2σ²); m is at most exp(σ² / 2), at x = σ²."""
        log_trust_weight = -0.5 * (bounded_log_ratio(log_ratio) / self._sigmas(lift(advantages))).square()
        return log_ratio_weight(log_ratio, advantages) + log_trust_weight

    @property
    def label(self) -> str:
        """Return a label like `gipo σ=0.5`. It includes a factor on σ for bad actions."""
        factor = f", {self.negative_sigma_scale:g} σ for bad actions" if self.negative_sigma_scale != 1.0 else ""
        return f"gipo σ={self.sigma:g}{factor}"

    def _sigmas(self, advantages: Tensor) -> Tensor:
        return by_sign(advantages, self.sigma, self.sigma * self.negative_sigma_scale)
