"""Loss terms beside the policy surrogate: the value's error, and the weighted total with entropy and exact KL.

Entropy and KL come from the distribution itself, per token (`vla_rl.rl.distributions`). Sums are returned with the
count of valid elements, so that a batch may be cut into micro-batches and ranks; masked places have no effect on value
or gradient, and non-finite numbers in valid places raise `NonFiniteError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.rl.masking import masked_sum, select_valid

MIN_STD = 1e-8  # floor of the advantages' standard deviation


def value_loss_sum(values: Tensor, value_targets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return Σ (V(s) − target)², unclipped, without a factor ½; targets are constants.

    Args:
        values: V(s), e.g. (B, T).
        value_targets: same shape.
        mask: bool, broadcastable; None: every place is valid.
    """
    value_targets = value_targets.detach()
    if mask is None:
        error = select_valid("values", values, None) - select_valid("value_targets", value_targets, None)
        return error.square().sum(), torch.tensor(error.numel(), device=error.device)
    values, value_targets, mask = torch.broadcast_tensors(values, value_targets, mask)
    error = select_valid("values", values, mask) - select_valid("value_targets", value_targets, mask)
    return masked_sum(error.square(), mask)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Terms of one loss, each a mean over its valid elements, before its coefficient."""

    policy: Tensor  # scalar, minus the surrogate objective
    value: Tensor  # scalar, squared error
    entropy: Tensor  # scalar, nats
    kl: Tensor  # scalar, nats, KL(μ ‖ π)


def total_loss(
    terms: LossTerms, *, value_coefficient: float, entropy_coefficient: float, kl_coefficient: float
) -> Tensor:
    """Return L = L_policy + c_v L_V − c_e H + c_kl KL(μ ‖ π) (equations 9 to 11; the KL term is the paper's code's)."""
    return (
        terms.policy + value_coefficient * terms.value - entropy_coefficient * terms.entropy + kl_coefficient * terms.kl
    )


def advantage_moments(advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return sum, sum of squares and number of the valid advantages, shape (3,), float64. They add over ranks.

    Raises:
        NonFiniteError: a valid advantage is not finite.
    """
    valid = select_valid("advantages", advantages, mask).double()
    count = valid.numel() if mask is None else int(mask.expand(valid.shape).sum())
    return torch.tensor([float(valid.sum()), float(valid.square().sum()), count], dtype=torch.float64)


def normalize_advantages(advantages: Tensor, mask: Tensor | None = None, *, moments: Tensor | None = None) -> Tensor:
    """Return (A − mean) / std over valid elements, 0 in masked places; the population std, floored at 1e-8.

    Args:
        advantages: any shape.
        mask: bool, broadcastable to `advantages`; None: every place is valid.
        moments: `advantage_moments` summed over the parts of a larger batch; by default those of `advantages` alone.

    Returns:
        A tensor of the shape of `advantages`, in at least float32.

    Raises:
        NonFiniteError: a valid advantage is not finite.
    """
    total, total_square, count = (advantage_moments(advantages, mask) if moments is None else moments).tolist()
    mean = total / max(count, 1.0)
    std = max(math.sqrt(max(total_square / max(count, 1.0) - mean * mean, 0.0)), MIN_STD)
    valid = select_valid("advantages", advantages, mask)
    normalized: Tensor = ((valid.double() - mean) / std).to(valid.dtype)
    return normalized if mask is None else normalized.where(mask, 0.0)
