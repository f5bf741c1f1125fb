"""Metrics of one update, over the union of all ranks' batches.

Sums are added over ranks and divided by global counts. Whatever is not a sum (quantiles, maxima, variances, effective
sample sizes) is computed from the gathered elements themselves, a few hundred numbers per decision, so every metric is
exactly what one rank with the whole batch would report. No quantile is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_rl.learner.batches import at
from vla_rl.learner.collectives import Collectives
from vla_rl.learner.objective import Prepared, Sums
from vla_rl.rl import diagnostics
from vla_rl.rl.multipliers import LogMultiplier
from vla_rl.types import SegmentBatch


def loss_metrics(
    sums: Sequence[Sums], prepared: Prepared, collectives: Collectives, *, with_kl: bool
) -> dict[str, float]:
    """Means of the loss terms, before their coefficients."""
    local = {
        name: float(sum(float(getattr(part, name).detach()) for part in sums))
        for name in ("policy", "value", "entropy", "kl")
    }
    total = collectives.sum_over_ranks(local)
    counts = prepared.counts
    metrics = {
        "learner/policy_loss": -total["policy"] / counts.ratios,
        "learner/value_loss": total["value"] / counts.decisions,
        "learner/entropy": total["entropy"] / counts.tokens,
    }
    return metrics | ({"learner/kl": total["kl"] / counts.tokens} if with_kl else {})


def lag_metrics(
    batch: SegmentBatch, prepared: Prepared, collectives: Collectives, *, policy_version: int, old_threshold: int
) -> dict[str, float]:
    """Staleness, per decision."""
    rows = prepared.rows
    columns = torch.stack([policy_version - at(batch.policy_version, rows), at(batch.age, rows)], dim=1)
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
    batch: SegmentBatch,
    prepared: Prepared,
    log_ratio: Tensor,
    collectives: Collectives,
    *,
    multiplier: LogMultiplier,
    policy_version: int,
    old_threshold: int,
    clip_range: tuple[float, float],
) -> dict[str, float]:
    """Drift and use of the samples, per valid ratio (executed token, or decision), and the critic's fit, per decision.

    Args:
        batch: this rank's segments.
        prepared: constants of the update.
        log_ratio: (R, P) before the step.
        collectives: the ranks.
        multiplier: log m of the surrogate.
        policy_version: of the learner, before the step.
        old_threshold: versions.
        clip_range: (low, high); ratios below 1 − low and above 1 + high count as clipped.
    """
    old = policy_version - at(batch.policy_version, prepared.rows) >= old_threshold
    columns = [prepared.advantages, prepared.values, prepared.value_targets, old]
    packed = torch.cat([log_ratio, prepared.ratios_valid, torch.stack([c.double() for c in columns], dim=1)], dim=1)
    union = collectives.gather_over_ranks(packed.double())
    num_ratios = log_ratio.shape[1]
    log_ratio, run = union[:, :num_ratios], union[:, num_ratios : 2 * num_ratios] > 0
    advantages, values, value_targets, old = union[:, 2 * num_ratios :].unsqueeze(1).unbind(dim=2)  # (R, 1) each
    used = diagnostics.utilization(multiplier(log_ratio, advantages), advantages, old > 0, run)
    every = torch.ones_like(values, dtype=torch.bool)
    return {
        "learner/approx_kl": diagnostics.approx_kl(log_ratio, run),
        "learner/clip_fraction": diagnostics.clip_fraction(
            log_ratio, run, clip_low=clip_range[0], clip_high=clip_range[1]
        ),
        "learner/explained_variance": diagnostics.explained_variance(values, value_targets, every),
        "ratio/abs_log_p95": diagnostics.abs_log_ratio_p95(log_ratio, run),
        "utilization/dead": used.dead,
        "utilization/suppressed": used.suppressed,
        "utilization/near_zero": used.near_zero,
        "utilization/old_share": used.old_share,
        "utilization/ess_old": used.ess_old,
    }
