"""The clipped surrogate of PPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, dead_where, log_ratio_weight
from vla_rl.section import Scale

if TYPE_CHECKING:
    from torch import Tensor


class Ppo(Surrogate):
    """Clipped surrogate (arXiv 1707.06347, equation 7): J = min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)."""

    name: Literal["ppo"]
    clip_low: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="ratios below 1 - clip_low are clipped for bad actions"
    )
    clip_high: Scale = Field(0.2, description="ratios above 1 + clip_high are clipped for good actions")

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return the smaller of ρ A and its clipped form; exactly on an edge the gradient is alive."""
        ratio, advantages = bounded_log_ratio(log_ratio).exp(), lift(advantages)
        clipped_ratio = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return (ratio * advantages).minimum(clipped_ratio * advantages)

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m: m = ρ, and 0 where (A > 0 and ρ > 1 + clip_high) or (A < 0 and ρ < 1 − clip_low)."""
        ratio = bounded_log_ratio(log_ratio).exp()
        clipped_above = (advantages > 0) & (ratio > 1.0 + self.clip_high)
        clipped_below = (advantages < 0) & (ratio < 1.0 - self.clip_low)
        return dead_where(clipped_above | clipped_below, log_ratio_weight(log_ratio, advantages))

    @property
    def clip_range(self) -> tuple[float, float]:
        """(clip_low, clip_high)."""
        return (self.clip_low, self.clip_high)
