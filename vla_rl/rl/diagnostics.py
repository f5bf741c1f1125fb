"""Diagnostics of a batch: lag, drift and use of its samples.

Every function takes plain tensors and a bool mask (True = valid, broadcastable), considers only valid elements and
returns Python floats. Means and shares divide by the number of valid elements unless stated; a quantity of no elements
is 0. Quantiles interpolate linearly.

Two quantities, as in the paper (arXiv 2603.03955, equations 41 to 47): w = m, the multiplier of ∇log π without
the advantage, and the contribution u = |w A|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.rl.surrogates import bounded_log_ratio


@dataclass(frozen=True, slots=True)
class PolicyLag:
    """Policy lag Δv of the valid samples, in versions."""

    mean: float
    p95: float
    max: float
    old_fraction: float  # share with Δv ≥ old_threshold
    old_p95: float  # 95 % quantile of Δv inside that old subset


@dataclass(frozen=True, slots=True)
class Utilization:
    """Shares of a batch that reach the gradient."""

    dead: float  # share with w = 0 by construction; a weight that merely underflows is suppressed, not dead
    suppressed: float  # share with 0 < w < suppressed_below
    near_zero: float  # share with u < near_zero_below
    old_share: float  # Σ u over the old subset / Σ u over all valid elements
    ess_old: float  # (Σ u)² / Σ u² over the old subset, divided by the size of that subset


def policy_lag(lag: Tensor, mask: Tensor, *, old_threshold: int) -> PolicyLag:
    """Compute the staleness of a batch.

    Args:
        lag: learner version − version that acted, integers of any shape.
        mask: bool, broadcastable.
        old_threshold: versions; a sample is old at this lag or more.
    """
    lags = _valid(lag, mask)
    old = lags[lags >= old_threshold]
    return PolicyLag(_mean(lags), _p95(lags), _max(lags), _share(lags >= old_threshold), _p95(old))


def mean_age(age: Tensor, mask: Tensor) -> float:
    """Return the mean age of a batch, in the unit of the argument."""
    return _mean(_valid(age, mask))


def abs_log_ratio_p95(log_ratio: Tensor, mask: Tensor) -> float:
    """Return the drift: the 95 % quantile of |log ρ| over valid tokens (equation 40), bounded as in the surrogates."""
    return _p95(_valid(bounded_log_ratio(log_ratio), mask).abs())


def approx_kl(log_ratio: Tensor, mask: Tensor) -> float:
    """Estimate KL(μ ‖ π) from samples of μ: mean of ρ − 1 − log ρ, never negative.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    x = _valid(bounded_log_ratio(log_ratio), mask)
    return _mean(torch.expm1(x) - x)


def clip_fraction(log_ratio: Tensor, mask: Tensor, *, clip_low: float, clip_high: float) -> float:
    """Return the share of ratios outside [1 − clip_low, 1 + clip_high], regardless of the sign of the advantage."""
    ratio = _valid(bounded_log_ratio(log_ratio), mask).exp()
    return _share((ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high))


def explained_variance(values: Tensor, value_targets: Tensor, mask: Tensor) -> float:
    """Return 1 − Var(target − value) / Var(target); 1 is perfect, 0 no better than a constant.

    0 if the targets are equal.
    """
    targets = _valid(value_targets, mask)
    if targets.numel() == 0 or targets.min() == targets.max():  # not the variance, which rounding keeps above 0
        return 0.0
    return 1.0 - float((targets - _valid(values, mask)).var(correction=0) / targets.var(correction=0))


def utilization(
    log_multiplier: Tensor,
    advantages: Tensor,
    old: Tensor,
    mask: Tensor,
    *,
    suppressed_below: float = 1e-3,
    near_zero_below: float = 1e-3,
) -> Utilization:
    """Compute equations 41 to 47. They imply no ordering of surrogates by `old_share` or `ess_old`.

    Args:
        log_multiplier: log w, a surrogate's `log_weight`, per ratio; −inf where w is 0 by construction.
        advantages: broadcastable, e.g. (B, T, 1).
        old: bool, broadcastable: the sample's lag has reached the old threshold.
        mask: bool, broadcastable.
        suppressed_below: τ_w, a bound on w.
        near_zero_below: τ_u, a bound on u = |w A|.
    """
    log_w, advantages, old, mask = torch.broadcast_tensors(log_multiplier, advantages, old, mask)
    log_w, contributions = log_w[mask].double(), log_w[mask].double().exp() * advantages[mask].double().abs()
    dead = log_w == -math.inf
    old_contributions = contributions[old[mask]]
    ess_old = _ratio(float(old_contributions.sum()) ** 2, float(old_contributions.square().sum()))
    return Utilization(
        dead=_share(dead),
        suppressed=_share(~dead & (log_w < math.log(suppressed_below))),
        near_zero=_share(contributions < near_zero_below),
        old_share=_ratio(float(old_contributions.sum()), float(contributions.sum())),
        ess_old=_ratio(ess_old, old_contributions.numel()),
    )


def _valid(tensor: Tensor, mask: Tensor) -> Tensor:
    tensor, mask = torch.broadcast_tensors(tensor, mask)
    return tensor[mask].double()


def _mean(elements: Tensor) -> float:
    return float(elements.mean()) if elements.numel() else 0.0


def _max(elements: Tensor) -> float:
    return float(elements.max()) if elements.numel() else 0.0


def _p95(elements: Tensor) -> float:
    """Return what `Tensor.quantile` returns, which sorts all elements, and refuses more than 2^24."""
    count = elements.numel()
    if count == 0:
        return 0.0
    rank = 0.95 * (count - 1)
    low, high = (elements.kthvalue(min(place, count)).values for place in (int(rank) + 1, int(rank) + 2))
    return float(low.lerp(high, rank - int(rank)))


def _share(condition: Tensor) -> float:
    return _mean(condition.double())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else 0.0
