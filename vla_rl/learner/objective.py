"""The stateless parts of an update: targets of a batch, and the sums of one micro-batch.

Shape letters: those of `vla_rl.types`; R decisions of this rank's batch, r of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.learner.batches import Rows, at
from vla_rl.learner.settings import GaeSettings, LossSettings, TargetSettings
from vla_rl.policies.sampling import scaled_log_softmax
from vla_rl.rl import targets
from vla_rl.rl.losses import LossTerms, entropy_sum, kl_sum, total_loss, value_loss_sum
from vla_rl.rl.surrogates import Surrogate, policy_objective_sum
from vla_rl.types import PolicyOutput, SegmentBatch


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of all means: over all micro-batches of all ranks."""

    decisions: float
    tokens: float  # of executed control steps
    ratios: float  # tokens, or decisions where a decision has one ratio


@dataclass(frozen=True, slots=True)
class Prepared:
    """The constants of one update, on the CPU."""

    rows: Rows  # R
    tokens_run: Tensor  # (R, A) bool, the token's control step was executed
    ratios_valid: Tensor  # (R, P) bool, P ratios per decision: those tokens, or P = 1 where a decision has one ratio
    values: Tensor  # (R,) of the current critic
    value_targets: Tensor  # (R,)
    advantages: Tensor  # (R,), normalised if that is on
    counts: Counts


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch: its place among the rows."""

    rows: Rows  # r
    place: slice  # of the R rows


@dataclass(frozen=True, slots=True)
class Sums:
    """Terms of the loss summed over one micro-batch: scalars with a graph, and what is kept for diagnostics."""

    policy: Tensor  # Σ J over valid ratios, to be maximised
    value: Tensor  # Σ squared error over decisions
    entropy: Tensor  # Σ over executed tokens
    kl: Tensor  # Σ over executed tokens; 0 when off
    log_ratio: Tensor  # (r, P) detached, on the CPU


def taken_logprobs(batch: SegmentBatch, rows: Rows, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the taken tokens (r, A) and of all bins (r, A, V), from one log-softmax."""
    log_probs = scaled_log_softmax(logits, temperature)
    tokens = at(batch.tokens, rows).to(logits.device).long().unsqueeze(-1)
    return log_probs.gather(-1, tokens).squeeze(-1), log_probs


def segment_targets(
    batch: SegmentBatch, values: Tensor, joint_log_ratio: Tensor, settings: TargetSettings
) -> tuple[Tensor, Tensor]:
    """Value targets and advantages, (B, T) each, before normalisation; padding holds nothing of meaning.

    Args:
        batch: rewards and flags.
        values: (B, T + 1) V of every observation; that after the last decision bootstraps.
        joint_log_ratio: (B, T) log ρ of whole decisions, looked at by V-trace alone.
        settings: GAE or V-trace.
    """
    # Padding begins where an episode has ended, and what stands behind an end has no effect on the targets before it.
    arguments = (
        torch.from_numpy(batch.rewards),
        values[:, :-1],
        values[:, 1:],
        torch.from_numpy(batch.terminated),
        torch.from_numpy(batch.truncated),
    )
    if isinstance(settings, GaeSettings):
        advantages = targets.gae(*arguments, discount=settings.discount, gae_lambda=settings.gae_lambda)
        return advantages + values[:, :-1], advantages
    result = targets.vtrace(
        *arguments,
        joint_log_ratio,
        discount=settings.discount,
        lambda_=settings.lambda_,
        rho_bar=settings.rho_bar,
        c_bar=settings.c_bar,
    )
    return result.value_targets, result.advantages


def micro_batch_sums(
    batch: SegmentBatch,
    micro_batch: MicroBatch,
    prepared: Prepared,
    output: PolicyOutput,
    *,
    surrogate: Surrogate,
    loss: LossSettings,
    temperature: float,
    measure: bool = True,
) -> Sums:
    """All terms of one micro-batch. `output` has r rows; a term whose coefficient is 0 is measured without a graph.

    Without `measure` an entropy of coefficient 0 is left out, that is 0.

    Raises:
        NonFiniteError: a valid place holds a number that no loss can be computed from.
    """
    rows, place, device = micro_batch.rows, micro_batch.place, output.logits.device
    logprobs, log_probs = taken_logprobs(batch, rows, output.logits, temperature)
    behavior_logprobs = at(batch.behavior_logprobs, rows).to(device)
    run = prepared.tokens_run[place].to(device)
    if loss.joint_ratio:  # ρ of the decision: the product of its executed tokens' ratios
        logprobs, behavior_logprobs = (_sum_run(each, run) for each in (logprobs, behavior_logprobs))
    policy, _ = policy_objective_sum(
        surrogate,
        logprobs=logprobs,
        behavior_logprobs=behavior_logprobs,
        advantages=prepared.advantages[place].to(device).unsqueeze(-1),
        mask=prepared.ratios_valid[place].to(device),
    )
    every = torch.ones(len(rows), dtype=torch.bool, device=device)
    value, _ = value_loss_sum(output.values, prepared.value_targets[place].to(device), every)
    entropy = torch.zeros((), device=device)
    if measure or loss.entropy_coefficient > 0:
        entropy, _ = entropy_sum(log_probs if loss.entropy_coefficient > 0 else log_probs.detach(), run)
    kl = torch.zeros((), device=device)
    if loss.kl_coefficient > 0 and batch.behavior_logits is not None:
        kl, _ = kl_sum(at(batch.behavior_logits, rows).to(device), log_probs, run)
    return Sums(policy, value, entropy, kl, (logprobs.detach() - behavior_logprobs).cpu())


def _sum_run(logprobs: Tensor, run: Tensor) -> Tensor:
    """(r, A) to (r, 1): log-probability of what was executed."""
    return torch.where(run, logprobs, 0.0).sum(dim=1, keepdim=True)


def share_of_loss(sums: Sums, counts: Counts, loss: LossSettings) -> Tensor:
    """A micro-batch's sums over the global counts, weighted: adds up to the loss of the union."""
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
