"""Forward passes of the policy over rows of a batch, none longer or more often than the update needs."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch.nn.modules.dropout import _DropoutNd

from vla_rl.learner.batches import Index, Rows, at, distinct_rows, first_draws, policy_inputs
from vla_rl.learner.engine import Engine
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.types import Evaluation, Policy, SegmentBatch


class Passes:
    """Forward passes for one learner.

    Args:
        engine: holds the policy.
        loss: weights of the terms; what has none is not computed.
        merge_repeats: send no observation through the policy twice in one pass. No effect on a policy with dropout,
            whose passes differ.
    """

    def __init__(self, engine: Engine, *, loss: LossWeights, merge_repeats: bool) -> None:
        self._engine, self._policy, self._loss = engine, engine.policy, loss
        self._bucket_of = cast(Policy, engine.policy).bucket_of
        self.has_dropout = any(isinstance(module, _DropoutNd) and module.p > 0 for module in engine.policy.modules())
        self.merges_repeats = merge_repeats and not self.has_dropout

    def in_buckets(self, batch: SegmentBatch, rows: Rows) -> Rows:
        """Sort rows by their buckets, so that few micro-batches hold more than one and are padded.

        If segments that were drawn several times pass once, their rows come together too.
        """
        if self.merges_repeats:
            rows = rows.sorted_by(first_draws(batch)[rows.segment])
        return rows.sorted_by(self._bucket_of(batch.task_index[rows.segment]))

    def set_training(self, training: bool) -> None:
        """Set the mode of all modules unless it is set: visiting them takes a small policy as long as a layer."""
        if self._policy.training != training:
            self._policy.train(training)

    def forward(
        self, batch: SegmentBatch, decisions: Rows, others: Rows, *, for_loss: bool = False, measure: bool = False
    ) -> Evaluation:
        """Evaluate decisions, and value other observations, in one pass; their values follow those of the decisions.

        Without rows a pass is run on a dummy, because other ranks may wait inside it.

        Args:
            batch: its segments.
            decisions: rows whose stored tokens are evaluated.
            others: rows of which only values are needed.
            for_loss: also compute the terms of the loss besides log-probabilities and values.
            measure: compute all of these that are metrics.
        """
        if not len(decisions) + len(others):
            first = Rows(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))  # every segment has a decision
            found = self.forward(batch, first, others, for_loss=for_loss, measure=measure)
            return first_of(found, 0)
        given = (decisions, others)
        if self.merges_repeats:
            (decisions, again), (others, others_again) = (distinct_rows(batch, rows) for rows in given)
        rows, loss = decisions.followed_by(others), self._loss
        device, behavior = self._engine.device, batch.behavior_logits if for_loss and loss.kl_coefficient > 0 else None
        buckets = self._bucket_of(batch.task_index[rows.segment])
        evaluation = self._engine.forward(
            policy_inputs(batch, rows, device, buckets=buckets),
            at(batch.tokens, decisions).to(device) if for_loss or len(decisions) else None,
            behavior=None if behavior is None else at(behavior, decisions).to(device),
            with_entropy=for_loss and (measure or loss.entropy_coefficient > 0),
        )
        if len(rows) == sum(map(len, given)):
            return evaluation
        return _repeated(evaluation, again, np.concatenate([again, len(decisions) + others_again]))


def first_of(evaluation: Evaluation, count: int) -> Evaluation:
    """Return the evaluation of the first decisions, and nothing else."""
    values, *terms = (
        None if term is None else term[:count]
        for term in (evaluation.values, evaluation.logprobs, evaluation.entropy, evaluation.kl)
    )
    assert values is not None
    return Evaluation(values, *terms)


def _repeated(evaluation: Evaluation, decisions: Index, every: Index) -> Evaluation:
    """Return the evaluation of rows that repeat: places of decisions, and of all values, among the distinct ones."""
    device = evaluation.values.device
    one, all_of_them = (torch.from_numpy(index).to(device) for index in (decisions, every))
    logprobs, entropy, kl = (
        None if term is None else term[one] for term in (evaluation.logprobs, evaluation.entropy, evaluation.kl)
    )
    return Evaluation(evaluation.values[all_of_them], logprobs, entropy, kl)
