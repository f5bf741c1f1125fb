"""Effective weights: log m, where m is the factor of every surrogate in front of A ∇log π_θ.

Each function has the settings of its surrogate, so the same `functools.partial` arguments bind both. The logarithm is
what diagnostics need: GIPO's m underflows to 0 in float32 for small σ although its kernel is nowhere 0. Here such a
weight keeps its exponent, and −inf says that the gradient vanishes by construction: on PPO's clipped side, and for
every surrogate where the log-ratio lies outside ±`MAX_LOG_RATIO`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_rl.rl.masking import lift
from vla_rl.rl.surrogates import MAX_LOG_RATIO, bounded_log_ratio, by_sign

LogMultiplier = Callable[[Tensor, Tensor], Tensor]
"""(log_ratio, advantages) to log m, with the surrogate's own settings bound by `functools.partial`."""


def no_clip(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Of `surrogates.no_clip`: m = ρ."""
    x, _ = torch.broadcast_tensors(lift(log_ratio), advantages)
    return _dead_where(x.abs() > MAX_LOG_RATIO, bounded_log_ratio(x))


def ppo(log_ratio: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """Of `surrogates.ppo`: m = ρ, and 0 where (A > 0 and ρ > 1 + clip_high) or (A < 0 and ρ < 1 − clip_low)."""
    ratio = bounded_log_ratio(log_ratio).exp()
    clipped_above = (advantages > 0) & (ratio > 1.0 + clip_high)
    clipped_below = (advantages < 0) & (ratio < 1.0 - clip_low)
    return _dead_where(clipped_above | clipped_below, no_clip(log_ratio, advantages))


def sapo(log_ratio: Tensor, advantages: Tensor, *, tau_pos: float = 1.0, tau_neg: float = 2.0) -> Tensor:
    """Of `surrogates.sapo`: m = 4 p (1 − p) ρ, p = sigmoid(τ (ρ − 1)), τ by the sign of A."""
    gate = by_sign(lift(advantages), tau_pos, tau_neg) * (bounded_log_ratio(log_ratio).exp() - 1.0)
    log_kernel = math.log(4.0) + F.logsigmoid(gate) + F.logsigmoid(-gate)
    return no_clip(log_ratio, advantages) + log_kernel


def gipo(log_ratio: Tensor, advantages: Tensor, *, sigma: float, negative_sigma_scale: float = 1.0) -> Tensor:
    """Of `surrogates.gipo`: m = ω ρ = exp(x − x² / (2σ²)), σ by the sign of A; at most exp(σ² / 2), at x = σ²."""
    sigmas = by_sign(lift(advantages), sigma, sigma * negative_sigma_scale)
    log_trust_weight = -0.5 * (bounded_log_ratio(log_ratio) / sigmas).square()
    return no_clip(log_ratio, advantages) + log_trust_weight


def _dead_where(condition: Tensor, log_multiplier: Tensor) -> Tensor:
    return log_multiplier.masked_fill(condition, -math.inf)


LOG_MULTIPLIERS: Mapping[str, Callable[..., Tensor]] = {"gipo": gipo, "ppo": ppo, "sapo": sapo, "no_clip": no_clip}


def multiplier(log_multiplier: LogMultiplier, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Weight m itself, e.g. `multiplier(functools.partial(LOG_MULTIPLIERS["gipo"], sigma=1.0), log_ratio, advantages)`.

    ∂J/∂log π_θ = m A, element by element.
    """
    return log_multiplier(log_ratio, advantages).exp()
