"""Plain importance sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates.base import Surrogate, bounded_log_ratio, log_ratio_weight

if TYPE_CHECKING:
    from torch import Tensor


class NoClip(Surrogate):
    """Plain importance sampling: J = ρ A."""

    name: Literal["no_clip"]

    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return ρ A."""
        return bounded_log_ratio(log_ratio).exp() * lift(advantages)

    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log ρ: m = ρ."""
        return log_ratio_weight(log_ratio, advantages)
