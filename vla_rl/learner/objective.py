"""Stateless parts of an update: the constants of its loss, and the sums of one micro-batch.

Shape letters: those of `vla_rl.types`; R decisions of this rank's batch, or of one micro-batch of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vla_rl.credit import Credit, Experience
from vla_rl.learner.batches import Rows, at, token_mask
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.losses import LossTerms, advantage_moments, normalize_advantages, total_loss, value_loss_sum
from vla_rl.rl.masking import NonFiniteError, all_finite, masked_sum, select_valid
from vla_rl.rl.ratios import Ratio
from vla_rl.rl.surrogates import Surrogate, policy_objective_sum
from vla_rl.types import Evaluation, SegmentBatch

_NO_MOMENTS = torch.full((3,), math.nan, dtype=torch.float64)  # moments if an advantage is not finite


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of all means: over all micro-batches of all ranks."""

    decisions: float
    tokens: float  # of executed control steps
    policy: float  # of the surrogate: valid ratios, episodes, or a constant times episodes


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions with the constants of their loss, on the CPU."""

    rows: Rows  # R
    lag: Tensor  # (R,) int64, versions
    tokens_run: Tensor  # (R, A) bool, the token's control step was executed
    weights: Tensor | None  # (R, 1) of the decision's ratios in the policy term; None: 1
    value_targets: Tensor  # (R,)
    credited: Tensor  # (R,) advantages as the credit assigned them
    advantages: Tensor  # (R,) the same, normalised if that is on

    def parts(self, count: int) -> Iterator[Decisions]:
        """Cut into exactly `count` consecutive micro-batches, see `Rows.cuts`."""
        if count == 1:
            yield self
            return
        for cut in self.rows.cuts(count):
            yield Decisions(
                self.rows[cut],
                self.lag[cut],
                self.tokens_run[cut],
                None if self.weights is None else self.weights[cut],
                self.value_targets[cut],
                self.credited[cut],
                self.advantages[cut],
            )

    def moments(self) -> Tensor:
        """Return `advantage_moments` of what was credited, (3,) float64; NaN if an advantage is not finite."""
        try:
            return advantage_moments(self.credited)
        except NonFiniteError:
            return _NO_MOMENTS

    def normalized(self, moments: Tensor | None) -> Decisions:
        """Return the decisions with advantages normalised by these moments; None leaves them as they are.

        If an advantage or a moment is not finite, all become NaN: so does the loss, and the engine skips the update on
        every rank.
        """
        try:
            if moments is None:
                return replace(self, advantages=select_valid("advantages", self.credited, None))
            if all_finite(moments):
                return replace(self, advantages=normalize_advantages(self.credited, moments=moments))
        except NonFiniteError:
            pass
        return replace(self, advantages=torch.full_like(self.credited, math.nan))


@dataclass(frozen=True, slots=True)
class Sums:
    """Terms of the loss summed over one micro-batch, scalars, and values kept for diagnostics."""

    decisions: Decisions
    policy: Tensor  # Σ J over valid ratios, to be maximised
    value: Tensor  # Σ squared error over decisions
    entropy: Tensor  # Σ over executed tokens
    kl: Tensor  # Σ over executed tokens; 0 when off
    values: Tensor  # (R,) of the current critic, detached, on the CPU, as log_ratio is
    log_ratio: Tensor  # (R, A) of tokens, whatever shares a ratio

    def detached(self) -> Sums:
        """Return the sums without their graph."""
        terms = {name: getattr(self, name).detach() for name in ("policy", "value", "entropy", "kl")}
        return replace(self, **terms)


def experience_of(batch: SegmentBatch, *, with_behavior_values: bool) -> Experience:
    """Return a credit's inputs as they are known before any pass: values of acting time, or zeros."""
    num_segments, length = batch.mask.shape
    acting = torch.from_numpy(batch.behavior_values).clone() if with_behavior_values else None
    return Experience(
        rewards=torch.from_numpy(batch.rewards),
        terminated=torch.from_numpy(batch.terminated),
        truncated=torch.from_numpy(batch.truncated),
        values=torch.zeros(num_segments, length + 1) if acting is None else acting,
        log_ratios=torch.zeros(batch.mask.shape),
        mask=torch.from_numpy(batch.mask),
        episode=torch.from_numpy(batch.episode),
        group=torch.from_numpy(batch.group),
    )


def credited(
    batch: SegmentBatch,
    rows: Rows,
    experience: Experience,
    credit: Credit,
    *,
    action_dim: int,
    ratio: Ratio,
    loss: LossWeights,
    policy_version: int,
) -> Decisions:
    """Return the decisions with their targets, advantages not yet normalised, and their lag behind a version.

    With `loss.aggregation` trajectory, `rows` must be all decisions of the batch.
    """
    targets = credit.assign(experience)
    place = torch.from_numpy(rows.segment), torch.from_numpy(rows.time)
    run = token_mask(batch, rows, action_dim=action_dim)
    return Decisions(
        rows,
        lag=policy_version - at(batch.policy_version, rows),
        tokens_run=run,
        weights=_share_of_episode(batch, rows, ratio.valid(run)) if loss.aggregation == "trajectory" else None,
        value_targets=targets.value_targets[place],
        credited=targets.advantages[place],
        advantages=targets.advantages[place],
    )


def _share_of_episode(batch: SegmentBatch, rows: Rows, valid: Tensor) -> Tensor:
    """Return 1 / (valid ratios of the decision's episode), (R, 1): the ratios of an episode weigh 1 together."""
    _, episode = np.unique(batch.episode[rows.segment], return_inverse=True)
    ratios = np.bincount(episode, weights=valid.sum(dim=1).numpy())
    return torch.from_numpy(1.0 / ratios[episode]).float().unsqueeze(1)


def micro_batch_sums(
    batch: SegmentBatch,
    decisions: Decisions,
    evaluation: Evaluation,
    *,
    surrogate: Surrogate,
    ratio: Ratio,
    loss: LossWeights,
    with_critic: bool = True,
) -> Sums:
    """Compute all terms of one micro-batch from its R evaluated decisions.

    A term whose coefficient is 0 is measured without a graph; one that was not evaluated is given as 0, and so is the
    value's without a critic.

    Raises:
        NonFiniteError: a valid place holds a non-finite number.
    """
    assert evaluation.logprobs is not None, "decisions were evaluated"
    rows, device = decisions.rows, evaluation.values.device
    logprobs, behavior_logprobs = evaluation.logprobs, at(batch.behavior_logprobs, rows).to(device)
    run = decisions.tokens_run.to(device)
    policy, _ = policy_objective_sum(
        surrogate.at_lag(decisions.lag.to(device).unsqueeze(-1)).objective,
        logprobs=ratio.of_tokens(logprobs, run),
        behavior_logprobs=ratio.of_tokens(behavior_logprobs, run),
        advantages=decisions.advantages.to(device).unsqueeze(-1),
        mask=ratio.valid(run),
        weights=None if decisions.weights is None else decisions.weights.to(device),
    )
    value = torch.zeros((), device=device)
    if with_critic:
        value, _ = value_loss_sum(evaluation.values, decisions.value_targets.to(device))
    entropy, kl = (
        torch.zeros((), device=device) if term is None else masked_sum(select_valid(name, term, run), run)[0]
        for name, term in (("entropy", evaluation.entropy), ("kl", evaluation.kl))
    )
    return Sums(
        decisions,
        policy,
        value,
        entropy if loss.entropy_coefficient > 0 else entropy.detach(),
        kl,
        evaluation.values.detach().cpu(),
        (logprobs.detach() - behavior_logprobs).cpu(),
    )


def no_sums(decisions: Decisions, evaluation: Evaluation, loss: LossWeights) -> Sums:
    """Return the terms of a micro-batch that no loss can be computed from: NaN, with a graph for the backward pass.

    The graph reaches every output that the losses of other ranks reach: ZeRO-3 acts on the backward pass of each, and
    its ranks would wait for each other.
    """
    reached = [evaluation.logprobs, evaluation.values, evaluation.kl]
    reached += [evaluation.entropy] if loss.entropy_coefficient > 0 else []
    nothing = torch.zeros((), device=evaluation.values.device)
    policy = torch.stack([term.sum() for term in reached if term is not None]).sum() * math.nan
    return Sums(decisions, policy, nothing, nothing, nothing, torch.zeros(0), torch.zeros(0))


def share_of_loss(sums: Sums, counts: Counts, loss: LossWeights) -> Tensor:
    """Return a micro-batch's sums over the global counts, weighted: they add up to the loss of the union."""
    terms = LossTerms(
        policy=-sums.policy / counts.policy,
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


def moments_of(sums: Sequence[Sums]) -> Tensor:
    """Return the advantage moments of all micro-batches together, (3,) float64."""
    return torch.stack([part.decisions.moments() for part in sums]).sum(dim=0)
