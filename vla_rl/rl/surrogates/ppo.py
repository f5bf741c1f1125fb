"""The clipped surrogate of PPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, dead_where, log_ratio_weight
from vla_rl.section import Scale

if TYPE_CHECKING:
    from torch import Tensor

ClipLow = Annotated[float, Field(gt=0.0, lt=1.0, description="ratios below 1 - clip_low are clipped for bad actions")]
ClipHigh = Annotated[Scale, Field(description="ratios above 1 + clip_high are clipped for good actions")]
DualClip = Annotated[
    Annotated[float, Field(gt=1.0, le=1e6)] | None,
    Field(description="ratios above this are clipped for bad actions; null: never"),
]


class Ppo(Surrogate):
    """Clipped surrogate (arXiv 1707.06347, equation 7): J = min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A).

    With `dual_clip` = c (arXiv 1912.09729), J is no less than c A where A < 0.
    """

    name: Literal["ppo"]
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    dual_clip: DualClip = None

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return the smaller of ρ A and its clipped form; exactly on an edge the gradient is not 0."""
        ratio, advantages = bounded_log_ratio(log_ratio).exp(), lift(advantages)
        if self.dual_clip is not None:  # max(min(ρ A, ...), c A), on the ratio: gradient not 0 on this edge
            ratio = ratio.where(advantages >= 0, ratio.clamp(max=self.dual_clip))
        clipped_ratio = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return (ratio * advantages).minimum(clipped_ratio * advantages)

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m: m = ρ, and 0 where an action is clipped.

        Good actions are clipped above 1 + clip_high, bad ones below 1 − clip_low or above dual_clip.
        """
        ratio = bounded_log_ratio(log_ratio).exp()
        clipped_good = (advantages > 0) & (ratio > 1.0 + self.clip_high)
        clipped_bad = (advantages < 0) & (ratio < 1.0 - self.clip_low)
        if self.dual_clip is not None:
            clipped_bad = clipped_bad | ((advantages < 0) & (ratio > self.dual_clip))
        return dead_where(clipped_good | clipped_bad, log_ratio_weight(log_ratio, advantages))

    @property
    def clip_range(self) -> tuple[float, float]:
        """Return (clip_low, clip_high)."""
        return (self.clip_low, self.clip_high)
