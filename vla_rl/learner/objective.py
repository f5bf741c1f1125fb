"""Stateless parts of an update: targets of a batch, and the sums of one micro-batch.

Shape letters: those of `vla_rl.types`; R decisions of this rank's batch, r of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_rl.credit import Credit, Experience
from vla_rl.learner.batches import Rows, at
from vla_rl.learner.settings import LossSettings
from vla_rl.rl.distributions import Distribution
from vla_rl.rl.losses import LossTerms, total_loss, value_loss_sum
from vla_rl.rl.masking import masked_sum, select_valid
from vla_rl.rl.surrogates import Surrogate, policy_objective_sum
from vla_rl.types import PolicyOutput, SegmentBatch


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of all means: over all micro-batches of all ranks."""

    decisions: float
    tokens: float  # of executed control steps
    ratios: float  # tokens, or decisions if a decision has one ratio


@dataclass(frozen=True, slots=True)
class Prepared:
    """Constants of one update, or of one micro-batch if it is the only pass; on the CPU."""

    rows: Rows  # R
    tokens_run: Tensor  # (R, A) bool, the token's control step was executed
    ratios_valid: Tensor  # (R, P) bool, P ratios per decision: those tokens, or P = 1 if a decision has one ratio
    value_targets: Tensor  # (R,)
    advantages: Tensor  # (R,), normalised if that is on
    moments: Tensor  # (3,) `advantage_moments` of these rows before that; NaN if an advantage is not finite
    counts: Counts  # of the whole update


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch: its place among the rows."""

    rows: Rows  # r
    place: slice  # of the R rows


@dataclass(frozen=True, slots=True)
class Sums:
    """Terms of the loss summed over one micro-batch: scalars with a graph, and values kept for diagnostics."""

    policy: Tensor  # Σ J over valid ratios, to be maximised
    value: Tensor  # Σ squared error over decisions
    entropy: Tensor  # Σ over executed tokens
    kl: Tensor  # Σ over executed tokens; 0 when off
    values: Tensor  # (r,) of the current critic, detached, on the CPU, as log_ratio is
    log_ratio: Tensor  # (r, P)


def joined(parts: Sequence[Prepared]) -> Prepared:
    """Join the constants of several parts of an update, in their order."""
    rows = Rows(*(np.concatenate([getattr(part.rows, name) for part in parts]) for name in ("segment", "time")))
    return Prepared(
        rows=rows,
        tokens_run=torch.cat([part.tokens_run for part in parts]),
        ratios_valid=torch.cat([part.ratios_valid for part in parts]),
        value_targets=torch.cat([part.value_targets for part in parts]),
        advantages=torch.cat([part.advantages for part in parts]),
        moments=torch.stack([part.moments for part in parts]).sum(dim=0),
        counts=parts[0].counts,
    )


def segment_targets(
    batch: SegmentBatch, values: Tensor, joint_log_ratio: Tensor, credit: Credit
) -> tuple[Tensor, Tensor]:
    """Return value targets and advantages, (B, T) each, before normalisation; padding has no meaning.

    Args:
        batch: rewards and flags.
        values: (B, T + 1) V of every observation.
        joint_log_ratio: (B, T) log ρ of whole decisions.
        credit: assigns them.
    """
    targets = credit.assign(
        Experience(
            rewards=torch.from_numpy(batch.rewards),
            terminated=torch.from_numpy(batch.terminated),
            truncated=torch.from_numpy(batch.truncated),
            values=values,
            log_ratios=joint_log_ratio,
        )
    )
    return targets.value_targets, targets.advantages


def micro_batch_sums(
    batch: SegmentBatch,
    micro_batch: MicroBatch,
    prepared: Prepared,
    output: PolicyOutput,
    *,
    distribution: Distribution,
    surrogate: Surrogate,
    loss: LossSettings,
    temperature: float,
    measure: bool = True,
) -> Sums:
    """Compute all terms of one micro-batch. A term whose coefficient is 0 is measured without a graph.

    `output` has r rows. Without `measure` an entropy of coefficient 0 is not computed and given as 0.

    Raises:
        NonFiniteError: a valid place holds a non-finite number.
    """
    rows, place, device = micro_batch.rows, micro_batch.place, output.logits.device
    behavior = batch.behavior_logits if loss.kl_coefficient > 0 else None
    terms = distribution.terms(
        output.logits,
        at(batch.tokens, rows).to(device),
        temperature,
        behavior=None if behavior is None else at(behavior, rows).to(device),
        with_entropy=measure or loss.entropy_coefficient > 0,
    )
    logprobs, behavior_logprobs = terms.logprobs, at(batch.behavior_logprobs, rows).to(device)
    run = prepared.tokens_run[place].to(device)
    if loss.joint_ratio:  # ρ of the decision: the product of its executed tokens' ratios
        logprobs, behavior_logprobs = (_sum_run(each, run) for each in (logprobs, behavior_logprobs))
    policy, _ = policy_objective_sum(
        surrogate.objective,
        logprobs=logprobs,
        behavior_logprobs=behavior_logprobs,
        advantages=prepared.advantages[place].to(device).unsqueeze(-1),
        mask=prepared.ratios_valid[place].to(device),
    )
    every = torch.ones(len(rows), dtype=torch.bool, device=device)
    value, _ = value_loss_sum(output.values, prepared.value_targets[place].to(device), every)
    entropy, kl = (
        torch.zeros((), device=device) if term is None else masked_sum(select_valid(name, term, run), run)[0]
        for name, term in (("entropy", terms.entropy), ("kl", terms.kl))
    )
    return Sums(
        policy,
        value,
        entropy if loss.entropy_coefficient > 0 else entropy.detach(),
        kl,
        output.values.detach().cpu(),
        (logprobs.detach() - behavior_logprobs).cpu(),
    )


def _sum_run(logprobs: Tensor, run: Tensor) -> Tensor:
    """Map (r, A) to (r, 1): log-probability of the executed part."""
    return torch.where(run, logprobs, 0.0).sum(dim=1, keepdim=True)


def share_of_loss(sums: Sums, counts: Counts, loss: LossSettings) -> Tensor:
    """Return a micro-batch's sums over the global counts, weighted: they add up to the loss of the union."""
    terms = LossTerms(
        policy=-sums.policy / counts.ratios,
        value=sums.value / counts.decisions,
        entropy=sums.entropy / counts.tokens,
        kl=sums.kl / counts.tokens,
    )
    return total_loss(
        terms,
        value_coefficient=loss.value_coefficient,
        entropy_coefficient=loss.entropy_coefficient,
        kl_coefficient=loss.kl_coefficient,
    )
