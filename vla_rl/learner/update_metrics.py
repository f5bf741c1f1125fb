"""Metrics of one update, over the union of all ranks' batches.

Sums are added over ranks and divided by global counts. Anything else (quantiles, maxima, variances, effective sample
sizes) is computed from the gathered elements, a few hundred numbers per decision, so every metric equals what one rank
with the whole batch would report. Quantiles are never averaged.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_rl.learner.batches import Rows, at
from vla_rl.learner.collectives import Collectives
from vla_rl.learner.objective import Counts, Sums
from vla_rl.rl import diagnostics
from vla_rl.rl.ratios import Ratio
from vla_rl.rl.surrogates import Surrogate
from vla_rl.types import SegmentBatch


def loss_metrics(
    sums: Sequence[Sums], counts: Counts, collectives: Collectives, *, with_kl: bool, with_critic: bool
) -> dict[str, float]:
    """Return the means of the loss terms, before their coefficients; none of the value without a critic."""
    local = {
        name: float(sum(float(getattr(part, name)) for part in sums)) for name in ("policy", "value", "entropy", "kl")
    }
    total = collectives.sum_over_ranks(local)
    metrics = {
        "learner/policy_loss": -total["policy"] / counts.policy,
        **({"learner/value_loss": total["value"] / counts.decisions} if with_critic else {}),
        "learner/entropy": total["entropy"] / counts.tokens,
    }
    return metrics | ({"learner/kl": total["kl"] / counts.tokens} if with_kl else {})


def lag_metrics(
    batch: SegmentBatch, sums: Sequence[Sums], collectives: Collectives, *, old_threshold: int
) -> dict[str, float]:
    """Return the staleness, per decision."""
    columns = torch.stack([_lag(sums), at(batch.age, _rows(sums))], dim=1)
    lag, age = collectives.gather_over_ranks(columns).unbind(dim=1)
    every = torch.ones_like(lag, dtype=torch.bool)
    lags = diagnostics.policy_lag(lag, every, old_threshold=old_threshold)
    return {
        "policy_lag/mean": lags.mean,
        "policy_lag/p95": lags.p95,
        "policy_lag/max": lags.max,
        "policy_lag/old_fraction": lags.old_fraction,
        "policy_lag/old_p95": lags.old_p95,
        "replay/age_mean": diagnostics.mean_age(age, every),
    }


def ratio_metrics(
    sums: Sequence[Sums],
    collectives: Collectives,
    *,
    surrogate: Surrogate,
    ratio: Ratio,
    with_critic: bool,
    old_threshold: int,
    with_lag_zero: bool,
) -> dict[str, float]:
    """Return drift per executed token, use of the samples per valid ratio, and the fit of a critic per decision.

    So drift, and an alarm's limit of the KL, mean the same whatever shares a ratio.

    Args:
        sums: sums of the micro-batches.
        collectives: the ranks.
        surrogate: its weights measure the use of the samples, its range defines which ratios count as clipped.
        ratio: which tokens share a ratio.
        with_critic: whether values and value targets have a meaning.
        old_threshold: versions.
        with_lag_zero: decisions of lag 0 were made by the weights of these sums.
    """
    log_ratio, values = torch.cat([part.log_ratio for part in sums]), torch.cat([part.values for part in sums])
    run, advantages, value_targets = (
        torch.cat([getattr(part.decisions, name) for part in sums])
        for name in ("tokens_run", "advantages", "value_targets")
    )
    columns = [advantages, values, value_targets, _lag(sums)]
    packed = torch.cat([log_ratio, run, torch.stack([c.double() for c in columns], dim=1)], dim=1)
    union = collectives.gather_over_ranks(packed.double())
    num_tokens = log_ratio.shape[1]
    log_ratio, run = union[:, :num_tokens], union[:, num_tokens : 2 * num_tokens] > 0
    advantages, values, value_targets, lag = union[:, 2 * num_tokens :].unsqueeze(1).unbind(dim=2)  # (R, 1) each
    surrogate, valid, weighed = surrogate.at_lag(lag), ratio.valid(run), ratio.of_tokens(log_ratio, run)
    used = diagnostics.utilization(surrogate.log_weight(weighed, advantages), advantages, lag >= old_threshold, valid)
    every = torch.ones_like(values, dtype=torch.bool)
    fit = {"learner/explained_variance": diagnostics.explained_variance(values, value_targets, every)}
    limited, (clip_low, clip_high) = surrogate.limited_log_ratio(weighed), surrogate.clip_range
    return {
        "learner/approx_kl": diagnostics.approx_kl(log_ratio, run),
        "learner/clip_fraction": diagnostics.clip_fraction(limited, valid, clip_low=clip_low, clip_high=clip_high),
        **(fit if with_critic else {}),
        "ratio/abs_log_p95": diagnostics.abs_log_ratio_p95(log_ratio, run),
        **(_lag_zero(log_ratio, run, (lag == 0).squeeze(1)) if with_lag_zero else {}),
        "utilization/dead": used.dead,
        "utilization/suppressed": used.suppressed,
        "utilization/near_zero": used.near_zero,
        "utilization/old_share": used.old_share,
        "utilization/ess_old": used.ess_old,
    }


def _lag(sums: Sequence[Sums]) -> Tensor:
    """Return the policy lag of the decisions of all micro-batches, in their order."""
    return torch.cat([part.decisions.lag for part in sums])


def _rows(sums: Sequence[Sums]) -> Rows:
    """Return the rows of all micro-batches, in their order."""
    return functools.reduce(Rows.followed_by, (part.decisions.rows for part in sums))


def _lag_zero(log_ratio: Tensor, run: Tensor, fresh: Tensor) -> dict[str, float]:
    """Return |log ρ| of the decisions that the learner's current weights made; nothing if the batch has none.

    ρ is 1 there except for rounding and for differences between the two sides' computations.

    Args:
        log_ratio: (R, A) of tokens, over all ranks.
        run: (R, A) bool, executed tokens.
        fresh: (R,) bool, decisions of lag 0.
    """
    if not fresh.any():
        return {}
    log_ratio, run = log_ratio[fresh], run[fresh]
    joint = torch.where(run, log_ratio, 0.0).sum(dim=1, keepdim=True)
    every = run.any(dim=1, keepdim=True)
    return {
        "ratio/lag0_abs_log_p95": diagnostics.abs_log_ratio_p95(log_ratio, run),
        "ratio/lag0_abs_log_max": float(log_ratio[run].abs().max()),
        "ratio/lag0_joint_abs_log_p95": diagnostics.abs_log_ratio_p95(joint, every),
        "ratio/lag0_joint_abs_log_max": float(joint[every].abs().max()),
    }
