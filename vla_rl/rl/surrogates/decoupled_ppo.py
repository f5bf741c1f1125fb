"""PPO whose trust region is not around the policy that acted: for old experience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PrivateAttr

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, dead_where, log_ratio_weight
from vla_rl.rl.surrogates.ppo import ClipHigh, ClipLow, DualClip, Ppo
from vla_rl.section import Fraction

if TYPE_CHECKING:
    from torch import Tensor


class DecoupledPpo(Surrogate):
    """Decoupled PPO (arXiv 2110.00641; with old experience arXiv 2505.24298): J = sg(w) min(r A, clip(r) A).

    Three policies: μ acted, π_θ is the learner's, and π_p between them, the proximal one, is the centre of the trust
    region. w = π_p / μ corrects for what acted, r = π_θ / π_p is clipped, and w r = ρ. Elements with w > max_weight are
    dropped: J = 0, and they still count in the mean's denominator.

    π_p is interpolated (arXiv 2512.06547), which needs no pass: log π_p = log μ + α (log π_θ − log μ), a constant of
    the update. By default α = 1 − 1 / lag: π_p stands for the learner's policy one version ago, as if log-probabilities
    had changed by equal steps. At a lag of 0 or 1, and where no lag is known, π_p = μ: PPO.
    """

    name: Literal["decoupled_ppo"]
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    dual_clip: DualClip = None
    max_weight: Annotated[float, Field(ge=1.0, le=1e6)] | None = Field(
        2.0,
        description="samples are dropped where the proximal policy's probability is more than this times the one at "
        "acting time; null: none are",
    )
    proximal: Fraction | None = Field(
        None,
        description="place of the proximal policy between the one that acted (0) and the learner's (1), in "
        "log-probability; null: 1 - 1 / policy lag",
    )
    _lag: Tensor | None = PrivateAttr(None)

    def at_lag(self, lag: Tensor) -> Self:
        """Return the surrogate of elements with these lags, broadcastable; the same if `proximal` is set."""
        bound = self.model_copy()
        bound._lag = lag
        return bound

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return w times PPO's objective of r, with w held constant; 0 where w > max_weight."""
        log_weight = self._log_proximal(log_ratio).detach()
        clipped = self._ppo.objective(bounded_log_ratio(log_ratio) - log_weight, advantages)
        weighted = log_weight.exp() * clipped
        return weighted if self.max_weight is None else weighted.masked_fill(self._is_dropped(log_weight), 0.0)

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m: m = w r = ρ, and 0 where r is clipped as PPO's ratio is, or w > max_weight."""
        live = self._ppo.log_weight(self.limited_log_ratio(log_ratio), advantages).isfinite()
        dead = ~live | self._is_dropped(self._log_proximal(log_ratio))
        return dead_where(dead, log_ratio_weight(log_ratio, advantages))

    def limited_log_ratio(self, log_ratio: Tensor) -> Tensor:
        """Return log r."""
        return bounded_log_ratio(log_ratio) - self._log_proximal(log_ratio)

    @property
    def clip_range(self) -> tuple[float, float]:
        """Return (clip_low, clip_high)."""
        return (self.clip_low, self.clip_high)

    @property
    def _ppo(self) -> Ppo:
        return Ppo.model_construct(
            name="ppo", clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip
        )

    def _log_proximal(self, log_ratio: Tensor) -> Tensor:
        """Return log w = α x."""
        x = bounded_log_ratio(log_ratio)
        if self.proximal is not None:
            return self.proximal * x
        if self._lag is None:
            return 0.0 * x
        return (1.0 - 1.0 / lift(self._lag).clamp(min=1.0)).to(x.dtype) * x

    def _is_dropped(self, log_weight: Tensor) -> Tensor:
        bound = float("inf") if self.max_weight is None else self.max_weight
        return log_weight.exp() > bound
