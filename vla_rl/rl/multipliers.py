"""Log-weights of the surrogates as plain functions: log m, where m is the factor in front of A ∇log π_θ."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vla_rl.rl.surrogates import KINDS, multiplier
from vla_rl.rl.surrogates.plain import as_function

__all__ = ["LOG_MULTIPLIERS", "LogMultiplier", "multiplier"]

LogMultiplier = Callable[[Tensor, Tensor], Tensor]
"""(log_ratio, advantages) to log m: a surrogate's `log_weight`, or one of `LOG_MULTIPLIERS` with its settings bound."""

LOG_MULTIPLIERS: Mapping[str, Callable[..., Tensor]] = {
    name: as_function(kind, kind.log_weight) for name, kind in KINDS.items()
}
"""Every log-weight as a function `(log_ratio, advantages, *, <the fields>)`, by name."""
