"""Value targets and advantages of segments: GAE and V-trace.

Shapes: (T,) or (B, T), time last. At time t, `values` is V(s_t) and `next_values` is V of the true successor of s_t,
never of the observation after a reset.

    boot_t = 1 − terminated_t                    a termination has no future
    cont_t = boot_t (1 − truncated_t)            a truncation may have one, but the next element is another episode
    cont of the last element = 0                 the segment ends in mid-episode; its successor is always bootstrapped

Whether a truncation has a future is a statement about the task, which the paper does not make (`TimeLimit`):

    "bootstrap"   the time limit interrupts a task that goes on: boot_t as above (arXiv 1712.00378)
    "end"         the time limit is part of the task, as in "success within the horizon": nothing can be earned after
                  it, so it ends like a termination, boot_t = (1 − terminated_t)(1 − truncated_t)

Under "bootstrap", where both flags are set, termination wins. Values excluded by boot or cont have no effect, NaN
included, so padding after the end of an episode is harmless. Results are constants for the optimiser, in float64 for
float64 inputs, else float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from vla_rl.rl.masking import lift
from vla_rl.section import TimeLimit


@dataclass(frozen=True, slots=True)
class VtraceTargets:
    """Results of `vtrace`."""

    value_targets: Tensor  # shape of the inputs, regression targets of the critic
    advantages: Tensor  # shape of the inputs, without an importance ratio: the surrogate multiplies by it


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    gae_lambda: float,
    time_limit: TimeLimit = "bootstrap",
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438).

    δ_t = r_t + γ boot_t V(s_{t+1}) − V(s_t);  A_t = δ_t + γ λ cont_t A_{t+1}.

    Args:
        rewards: r_t, shape (T,) or (B, T), as all that follow.
        values: V(s_t).
        next_values: V of the true successor of s_t.
        terminated: bool, nothing follows s_t's action.
        truncated: bool, the time limit was reached with s_t's action.
        discount: γ.
        gae_lambda: λ.
        time_limit: what a truncation is to the task.

    Returns:
        Advantages; the value targets that belong to them are `advantages + values`.

    Raises:
        ValueError: shapes differ, or are neither (T,) nor (B, T), or `time_limit` is unknown.
    """
    _check_shapes(rewards, values, next_values, terminated, truncated)
    deltas = _deltas(rewards, values, next_values, _has_ended(terminated, truncated, time_limit), discount)
    return _accumulate(deltas, discount * gae_lambda * _continues(terminated, truncated).to(deltas.dtype))


@torch.no_grad()
def vtrace(  # noqa: PLR0913 - the quantities of the formula, by name
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    log_ratio: Tensor,
    *,
    discount: float,
    lambda_: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    time_limit: TimeLimit = "bootstrap",
) -> VtraceTargets:
    """V-trace (arXiv 1802.01561) in temporal-difference form, with a λ.

    With ρ^c_t = min(ρ̄, ρ_t), c_t = λ min(c̄, ρ_t) and d_t = target_t − V(s_t):

        d_t = ρ^c_t (r_t + γ boot_t V(s_{t+1}) − V(s_t)) + γ cont_t c_t d_{t+1}
        A_t = r_t + γ boot_t (V(s_{t+1}) + λ cont_t d_{t+1}) − V(s_t)

    Two choices. A_t has no factor ρ_t: IMPALA's policy gradient contains min(ρ̄, ρ_t), and a surrogate would apply the
    ratio a second time. And the next target has weight λ, not 1, so that A equals GAE(λ) when ρ ≡ 1; at λ = 1 both
    forms agree.

    Args:
        rewards: r_t, shape (T,) or (B, T), as all that follow.
        values: V(s_t).
        next_values: V of the true successor of s_t.
        terminated: bool, nothing follows s_t's action.
        truncated: bool, the time limit was reached with s_t's action.
        log_ratio: log ρ_t of the whole action: the sum over its tokens. ±inf is harmless.
        discount: γ.
        lambda_: λ.
        rho_bar: ρ̄, bound of the ratio on the temporal difference.
        c_bar: c̄, bound of the ratio on the trace.
        time_limit: what a truncation is to the task.

    Raises:
        ValueError: shapes differ, or are neither (T,) nor (B, T), or `time_limit` is unknown.
    """
    _check_shapes(rewards, values, next_values, terminated, truncated, log_ratio)
    rho, trace = _capped_ratio(log_ratio, rho_bar), lambda_ * _capped_ratio(log_ratio, c_bar)
    continues = _continues(terminated, truncated)
    deltas = _deltas(rewards, values, next_values, _has_ended(terminated, truncated, time_limit), discount)
    corrections = _accumulate(rho * deltas, discount * torch.where(continues, trace, 0.0))
    next_corrections = torch.where(continues, corrections.roll(-1, dims=-1), 0.0)
    return VtraceTargets(
        value_targets=lift(values) + corrections, advantages=deltas + discount * lambda_ * next_corrections
    )


def _has_ended(terminated: Tensor, truncated: Tensor, time_limit: TimeLimit) -> Tensor:
    """Return 1 − boot: whether the task is over after this element, so that it has no further value."""
    if time_limit not in get_args(TimeLimit):
        raise ValueError(f"time_limit: found {time_limit!r}, allowed are {', '.join(get_args(TimeLimit))}")
    return terminated | truncated if time_limit == "end" else terminated


def _deltas(rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, discount: float) -> Tensor:
    return lift(rewards) + discount * torch.where(ended, 0.0, lift(next_values)) - lift(values)


def _continues(terminated: Tensor, truncated: Tensor) -> Tensor:
    continues = ~(terminated | truncated)
    continues[..., -1:] = False
    return continues


def _capped_ratio(log_ratio: Tensor, cap: float) -> Tensor:
    return lift(log_ratio).clamp(max=math.log(cap)).exp()  # min(cap, e^x) without an e^x that overflows


def _accumulate(terms: Tensor, decay: Tensor) -> Tensor:
    """Return y_t = terms_t + decay_t y_{t+1}; where decay is 0 (as at the end) later values have no effect.

    Both arguments are overwritten.
    Computed by doubling, in log2(T) rounds: with s_t the sum over k elements from t on and d_t the product of their
    decays, s_t + d_t s_{t+k} is the sum over 2 k elements and d_t d_{t+k} the product.
    """
    span = 1
    while span < terms.shape[-1]:
        # The last `span` sums are complete already, and no later round reads their decays.
        own, later = decay[..., :-span], decay[..., span:]
        is_end = own == 0.0
        terms[..., :-span] += (own * terms[..., span:]).masked_fill_(is_end, 0.0)
        span *= 2
        if span < terms.shape[-1]:
            own.copy_((own * later).masked_fill_(is_end, 0.0))
    return terms


def _check_shapes(rewards: Tensor, *others: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (rewards, *others)]
    if len(set(shapes)) != 1 or rewards.dim() not in (1, 2):
        raise ValueError(f"targets need equal shapes, (T,) or (B, T) with time last; found {shapes}")
