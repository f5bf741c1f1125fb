"""Policy surrogates: per-element objectives to maximise.

With x = log π_θ(a|s) − log μ(a|s), ρ = e^x, and m the factor in front of A ∇log π_θ (`vla_rl.rl.multipliers`):

    name      J (maximised)                               m / ρ
    no_clip   ρ A                                         1
    ppo       min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A)  0 on the clipped side, else 1
    sapo      (4 / τ) sigmoid(τ (ρ − 1)) A                sech²(τ (ρ − 1) / 2)
    gipo      sg(ω) ρ A,  ω = exp(−x² / (2σ²))            ω

At ρ = 1 every m is 1. Values of different surrogates are not comparable (SAPO's gate is 2/τ at ρ = 1); gradients are.

Each function takes tensors of one broadcastable shape and returns J of that shape, in float64 for float64 inputs and in
float32 otherwise. Value and gradient are finite for every log-ratio, ±inf included. A new surrogate is one function
here with its entry in `SURROGATES`, and one in `vla_rl.rl.multipliers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vla_rl.rl.masking import lift, masked_mean, masked_sum, select_valid

Surrogate = Callable[[Tensor, Tensor], Tensor]
"""(log_ratio, advantages) to J, with the surrogate's own settings bound by `functools.partial`."""

MAX_LOG_RATIO = math.log(1e9)
"""B: every log-ratio is clamped to ±B, once, before any exponential.

e^x overflows float32 from x = 88.7, and 0 · inf in a backward pass poisons the whole batch; at 1e9 even a sum over a
large batch is finite in float32. Inside ±B nothing changes; outside it J is constant and the gradient 0. GIPO's peak
x = σ² lies inside for σ < √B = 4.55.
"""


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp x to ±B, in at least float32. Every factor of an objective must be made of this one x."""
    return lift(log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def no_clip(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Plain importance sampling: J = ρ A."""
    return bounded_log_ratio(log_ratio).exp() * lift(advantages)


def ppo(log_ratio: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """Clipped surrogate (arXiv 1707.06347, equation 7).

    J = min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A); exactly on an edge the gradient is alive.
    """
    ratio, advantages = bounded_log_ratio(log_ratio).exp(), lift(advantages)
    clipped_ratio = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio * advantages, clipped_ratio * advantages)


def sapo(log_ratio: Tensor, advantages: Tensor, *, tau_pos: float = 1.0, tau_neg: float = 2.0) -> Tensor:
    """Soft sigmoid gate (arXiv 2511.20347).

    J = (4 / τ) sigmoid(τ (ρ − 1)) A, τ = tau_pos where A > 0 and tau_neg elsewhere.
    """
    ratio, advantages = bounded_log_ratio(log_ratio).exp(), lift(advantages)
    tau = by_sign(advantages, tau_pos, tau_neg)
    return 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0)) * advantages


def gipo(log_ratio: Tensor, advantages: Tensor, *, sigma: float, negative_sigma_scale: float = 1.0) -> Tensor:
    """Gaussian importance sampling (arXiv 2603.03955, equations 5 and 6).

    J = sg(ω) ρ A,  ω = exp(−x² / (2σ²)),  σ = sigma where A > 0 and sigma · negative_sigma_scale elsewhere.

    `negative_sigma_scale` < 1 trusts bad actions less. ω and ρ share one exponent, because e^x · ω is inf · 0 long
    before their product leaves the range of a float; so m = exp(x − x² / (2σ²)) ≤ exp(σ² / 2) holds numerically too.
    """
    x, advantages = bounded_log_ratio(log_ratio), lift(advantages)
    sigmas = by_sign(advantages, sigma, sigma * negative_sigma_scale)
    log_trust_weight = -0.5 * (x.detach() / sigmas).square()
    return torch.exp(x + log_trust_weight) * advantages


def by_sign(advantages: Tensor, positive: float, otherwise: float) -> Tensor:
    """`positive` where A > 0, `otherwise` elsewhere (A = 0 is the negative branch), in the dtype of `advantages`."""
    return torch.where(advantages > 0, advantages.new_tensor(positive), advantages.new_tensor(otherwise))


SURROGATES: Mapping[str, Callable[..., Tensor]] = {"gipo": gipo, "ppo": ppo, "sapo": sapo, "no_clip": no_clip}


def policy_objective_sum(
    surrogate: Surrogate, *, logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of J over valid elements, and their number: the part of the policy loss that adds over micro-batches.

    Args:
        surrogate: (log_ratio, advantages) to J, e.g. `functools.partial(gipo, sigma=1.0)`.
        logprobs: log π_θ of the taken actions, e.g. (B, T, A). Half precision is lifted before the subtraction; but a
            bfloat16 log-probability has already lost up to 3 % of the ratio, so make them in float32.
        behavior_logprobs: log μ of the same actions, as stored when they were taken.
        advantages: broadcastable, e.g. (B, T, 1): one advantage per decision. Constants: no gradient flows into them.
        mask: bool, True = valid, broadcastable. Masked places have no effect on value or gradient, whatever they hold.

    Returns:
        (sum, count) over the broadcast shape. The gradient of the sum in a valid `logprobs` is m A.

    Raises:
        NonFiniteError: a valid place holds a NaN log-ratio or an advantage that is not finite.
    """
    log_ratio = lift(logprobs) - lift(behavior_logprobs.detach())
    log_ratio, advantages, mask = torch.broadcast_tensors(log_ratio, advantages.detach(), mask)
    valid_log_ratio = select_valid("log_ratio", log_ratio, mask, allow_infinite=True)
    return masked_sum(surrogate(valid_log_ratio, select_valid("advantages", advantages, mask)), mask)


def policy_loss(
    surrogate: Surrogate, *, logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """Minus the mean of J over valid elements; 0, still connected to the graph, where none is valid.

    Arguments and errors are those of `policy_objective_sum`. The denominator is the number of valid elements, not of
    rows: an advantage that is broadcast over the tokens of a decision counts once per token.
    """
    total, count = policy_objective_sum(
        surrogate, logprobs=logprobs, behavior_logprobs=behavior_logprobs, advantages=advantages, mask=mask
    )
    return -masked_mean(total, count)
