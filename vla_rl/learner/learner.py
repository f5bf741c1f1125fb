"""Learner: one parameter update from replayed segments."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vla_rl.credit import Credit, Experience
from vla_rl.learner.batches import (
    Index,
    Rows,
    at,
    bootstrap_rows,
    decision_rows,
    token_mask,
)
from vla_rl.learner.engine import Engine, UpdateResult
from vla_rl.learner.micro_batches import MicroBatched
from vla_rl.learner.moments import RunningMoments
from vla_rl.learner.objective import (
    Counts,
    Decisions,
    Sums,
    credited,
    experience_of,
    micro_batch_sums,
    moments_of,
    no_sums,
    share_of_loss,
)
from vla_rl.learner.optimizer import POLICY_GROUP, VALUE_GROUP
from vla_rl.learner.passes import Passes, first_of
from vla_rl.learner.update_metrics import lag_metrics, loss_metrics, ratio_metrics
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.masking import NonFiniteError
from vla_rl.rl.ratios import RATIOS
from vla_rl.rl.surrogates import Surrogate
from vla_rl.types import Evaluation, Policy, SegmentBatch

logger = logging.getLogger(__name__)


class Learner(MicroBatched):
    """Policy updates from batches of segments.

    Args:
        engine: holds the policy and carries out the update over micro-batches and ranks.
        surrogate: the policy objective. Its weights and its clip range give metrics.
        credit: makes value targets and advantages.
        loss: weights of the terms.
        batch_size: segments that every update takes, on each rank; with a credit that needs groups, the most segments
            that whole groups of whole episodes have.
        num_micro_batches: parts that an update is cut into on each rank; more after running out of memory.
        old_threshold: versions; a decision is old at this lag or more (metrics only).
        longest_episode: decisions of the longest possible episode, for the constant of `loss.aggregation`.
        reuse_passes: send no observation through the policy twice in an update: the loss uses the passes that gave the
            values, which keeps the activations of the whole batch, and a segment drawn several times passes once. No
            effect on a policy with dropout, whose passes differ. Given up when memory does not suffice.

    Raises:
        ValueError: `loss.aggregation` asks for whole episodes or their longest, and there are none.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        surrogate: Surrogate,
        credit: Credit,
        loss: LossWeights,
        batch_size: int,
        num_micro_batches: int,
        old_threshold: int,
        longest_episode: int | None = None,
        reuse_passes: bool = False,
    ) -> None:
        super().__init__(engine, num_micro_batches=num_micro_batches, what="decision")
        if loss.aggregation != "token" and credit.groups is None:
            raise ValueError(
                f"loss.aggregation: {loss.aggregation} weighs whole episodes, and only targets.name=group puts whole "
                "episodes into a batch; allowed is token"
            )
        if loss.aggregation == "constant" and longest_episode is None:
            raise ValueError("loss.aggregation: constant needs the decisions of the longest episode")
        self.batch_size = batch_size
        action_spec = cast(Policy, engine.policy).action_spec
        self._action_dim, num_tokens = action_spec.action_dim, action_spec.num_tokens
        self._ratio = RATIOS[loss.ratio](self._action_dim, num_tokens)
        self._longest_episode = (longest_episode or 0) * num_tokens // self._ratio.tokens  # in ratios
        self._fill = 1.0  # share of the most decisions of a batch that the fullest rank's has
        self._passes = Passes(engine, loss=loss, merge_repeats=reuse_passes)
        self._surrogate = surrogate
        self._credit = credit
        self._has_critic = credit.needs_values
        self._loss = loss
        self._old_threshold = old_threshold
        self._policy_version = 0  # of the weights before the current update
        self._keeps_passes = self._passes.merges_repeats
        self._evaluates_decisions = credit.needs_current_values or credit.needs_log_ratios
        self.moments = RunningMoments()
        self.seconds = {"values": 0.0, "loss": 0.0, "optimizer": 0.0}  # durations of the last update, by part

    def update(
        self, batch: SegmentBatch, *, policy_version: int, measure: bool = True, is_published: bool = True
    ) -> dict[str, float]:
        """Make one update from this rank's batch and those of all other ranks, which call it at the same time.

        Args:
            batch: `batch_size` segments with at least one decision each, or whole groups of at most as many.
            policy_version: version of the weights before this update; the lag is measured against it.
            measure: compute the metrics; with small policies they cost about as much as the update. The same on all
                ranks.
            is_published: the weights before this update are those of `policy_version`; else they have moved since, and
                nothing is said of the log-ratios at lag 0.

        Returns:
            Metrics of the union of all ranks' batches, the same on every rank; none without `measure`. If the update
            was skipped because something was not finite: only those that do not depend on it.

        Raises:
            ValueError: the batch has another size, or no behaviour logits although the KL term is on.
            NonFiniteUpdateError: too many updates in a row were skipped.
        """
        self._check(batch)
        self._policy_version = policy_version
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        # 1. Rows: the decisions, and the observations after them whose values are missing. Global counts.
        rows, after = self._passes.in_buckets(batch, decision_rows(batch)), self._rows_after(batch)
        counts, lacks_values = self._survey(batch, rows, after)
        self._fill = self._fullest(batch) if self._credit.groups else 1.0
        normalizes, before = self._loss.normalize_advantages, self._moments_before()
        needs_all = bool(self._credit.groups) or (normalizes and before is None)  # groups compare episodes
        if self._evaluates_decisions and not self._passes.has_dropout and not needs_all:
            # 2. to 4. Nothing depends on the whole batch: micro-batches of whole segments take one pass each.
            with self._clock("loss"):
                loss, sums = self._with_memory(
                    lambda parts: self._pass_once(batch, rows, after, counts, before, parts, measure),
                    most=int(batch.mask.sum()),
                )
            moments = self._union(moments_of(sums))
        else:
            # 2. Values (for V-trace, log-ratios too) under the current weights, as far as the credit needs them.
            experience, evaluations = self._experience(batch), list[Evaluation]()
            if self._evaluates_decisions or lacks_values:
                with self._clock("values"):
                    experience, evaluations = self._with_memory(
                        lambda parts: self._evaluate(batch, rows, after, parts, measure), most=int(batch.mask.sum())
                    )
            # 3. Credit: constants of the update. Advantages are normalised over the decisions of all ranks.
            decisions = self._credited(batch, rows, experience)
            moments = self._union(decisions.moments())
            decisions = decisions.normalized((moments if before is None else before) if normalizes else None)

            def descend(parts: int) -> tuple[float, list[Sums]]:
                nonlocal evaluations
                known, evaluations = evaluations, []  # a second attempt has smaller micro-batches
                return self._accumulate(batch, decisions, known, counts, parts, measure)

            # 4. Micro-batches: surrogate + value + entropy + KL, sums over global counts.
            with self._clock("loss"):
                loss, sums = self._with_memory(descend, most=int(batch.mask.sum()))
        # 5. Clip, step, schedule.
        with self._clock("optimizer"):
            result = self._engine.step(loss)
        if result.applied:
            self.moments.add(moments)
        # 6. Diagnostics of the whole batch, under the weights at which the gradient was taken.
        return self._metrics(batch, sums, counts, result, is_published=is_published) if measure else {}

    @contextlib.contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        """Record the duration of a part of an update, including the work it queued on a GPU."""
        began = time.perf_counter()
        yield
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)
        self.seconds[part] = time.perf_counter() - began

    def _check(self, batch: SegmentBatch) -> None:
        given, at_most = len(batch.mask), "at most " if self._credit.groups else ""
        if given > self.batch_size or (given < self.batch_size and not at_most):
            raise ValueError(
                f"a batch of {given} segments was given, and an update takes {at_most}{self.batch_size} "
                "(micro_batch times accumulation)"
            )
        if self._loss.kl_coefficient > 0 and batch.behavior_logits is None:
            raise ValueError(
                f"kl_coefficient {self._loss.kl_coefficient} needs the behaviour policy's logits and the batch has "
                "none: store them in the replay ring, or set the coefficient to 0"
            )

    # --- 1. rows -----------------------------------------------------------------------------------------------------

    def _rows_after(self, batch: SegmentBatch) -> Rows:
        """Return the observations after a segment's last decision whose values its targets still lack.

        With values from acting time, these are last observations of episodes whose task continues: no decision was made
        there, so only the learner can value them.
        """
        rows = bootstrap_rows(batch, time_limit=self._credit.horizon)
        if self._credit.needs_current_values:
            return rows
        return rows[np.isnan(batch.behavior_values[rows.segment, rows.time]) & self._credit.needs_values]

    def _survey(self, batch: SegmentBatch, rows: Rows, after: Rows) -> tuple[Counts, bool]:
        """Return denominators over the ranks, and whether a rank has an observation whose value is missing."""
        num_run = batch.executed[rows.segment, rows.time].astype(np.int64) * self._action_dim
        per_episode = self._loss.aggregation != "token"
        union = self._engine.collectives.sum_over_ranks(
            {
                "decisions": float(len(rows)),
                "tokens": float(num_run.sum()),
                "ratios": float(self._ratio.num_valid(num_run)),
                "episodes": float(len(np.unique(batch.episode))) if per_episode else 0.0,
                "lacking": float(len(after)),
            }
        )
        return self._counts(union), union["lacking"] > 0

    def _fullest(self, batch: SegmentBatch) -> float:
        """Return the decisions of the rank that has most, as a share of what `batch_size` segments can have."""
        decisions = self._engine.collectives.gather_over_ranks(torch.tensor([int(batch.mask.sum())]))
        return float(int(decisions.max()) / (self.batch_size * batch.mask.shape[1]))

    def _counts(self, union: Mapping[str, float]) -> Counts:
        """Return the denominators from counts over the ranks; that of the policy term is `loss.aggregation`'s."""
        match self._loss.aggregation:
            case "token":
                policy = union["ratios"]
            case "trajectory":
                policy = union["episodes"]
            case "constant":
                policy = union["episodes"] * self._longest_episode
        return Counts(decisions=union["decisions"], tokens=union["tokens"], policy=policy)

    # --- 2. values and log-ratios under the current weights ----------------------------------------------------------

    def _experience(self, batch: SegmentBatch) -> Experience:
        """Return what is known before any pass."""
        return experience_of(batch, with_behavior_values=not self._credit.needs_current_values)

    def _evaluate(
        self, batch: SegmentBatch, decisions: Rows, after: Rows, parts: int, measure: bool
    ) -> tuple[Experience, list[Evaluation]]:
        """Return the credit's inputs under the current weights, and the decisions evaluated if that can be reused.

        If all of the batch is one micro-batch, or passes are kept, the loss is computed from the same forward passes,
        one per decision instead of two, unless the policy's outputs differ in training mode. Those evaluations, one for
        each micro-batch of the decisions, keep their graphs.
        """
        experience, kept = self._experience(batch), list[Evaluation]()
        if self._evaluates_decisions and not self._passes.has_dropout and (parts == 1 or self._keeps_passes):
            self._passes.set_training(True)
            for cut, cut_after in zip(decisions.cuts(parts), after.cuts(parts), strict=True):
                own_decisions, own_after = decisions[cut], after[cut_after]
                evaluation = self._passes.forward(batch, own_decisions, own_after, for_loss=True, measure=measure)
                self._enter(experience, batch, own_decisions, own_after, evaluation)
                kept.append(first_of(evaluation, len(own_decisions)))
            return experience, kept
        rows = decisions.followed_by(after) if self._evaluates_decisions else after
        rows = self._passes.in_buckets(batch, rows)
        nothing = rows[:0]
        self._passes.set_training(False)
        with torch.no_grad():
            for cut in rows.cuts(parts):
                part = rows[cut]
                is_decision = part.time < batch.mask.sum(axis=1)[part.segment]
                own = part[is_decision], part[~is_decision]
                decided, valued = own if self._credit.needs_log_ratios else (nothing, part)
                self._enter(experience, batch, decided, valued, self._passes.forward(batch, decided, valued))
        return experience, kept

    def _enter(
        self, experience: Experience, batch: SegmentBatch, decisions: Rows, others: Rows, evaluation: Evaluation
    ) -> None:
        """Enter the results of a pass over evaluated decisions, and others of which only values are known."""
        rows, values = decisions.followed_by(others), evaluation.values.detach().cpu()
        if not self._credit.needs_current_values:
            valued = rows.time >= batch.mask.sum(axis=1)[rows.segment]  # no decision was made there
            rows, values = rows[valued], values[torch.from_numpy(valued)]
        experience.values[_place(rows)] = values
        if self._credit.needs_log_ratios and len(decisions):
            experience.log_ratios[_place(decisions)] = self._joint_log_ratio(batch, decisions, evaluation)

    def _joint_log_ratio(self, batch: SegmentBatch, decisions: Rows, evaluation: Evaluation) -> Tensor:
        """Return the sum of each decision's executed token log-ratios, (R,): the joint ratio of the whole chunk."""
        assert evaluation.logprobs is not None, "decisions were evaluated"
        logprobs = evaluation.logprobs.detach().cpu()
        run = token_mask(batch, decisions, action_dim=self._action_dim)
        return torch.where(run, logprobs - at(batch.behavior_logprobs, decisions), 0.0).sum(dim=1)

    # --- 3. credit ---------------------------------------------------------------------------------------------------

    def _credited(self, batch: SegmentBatch, rows: Rows, experience: Experience) -> Decisions:
        """Return the decisions with their targets, advantages not yet normalised."""
        return credited(
            batch,
            rows,
            experience,
            self._credit,
            action_dim=self._action_dim,
            ratio=self._ratio,
            loss=self._loss,
            policy_version=self._policy_version,
        )

    def _moments_before(self) -> Tensor | None:
        """Return the moments of earlier updates, if advantages are normalised by those."""
        return self.moments.sums if self._loss.advantage_moments == "running" else None

    def _union(self, moments: Tensor) -> Tensor:
        """Return advantage moments over all ranks; NaN on all if one has a non-finite advantage."""
        total, square, count = moments.tolist()
        union = self._engine.collectives.sum_over_ranks({"total": total, "square": square, "count": count})
        return torch.tensor([union["total"], union["square"], union["count"]], dtype=torch.float64)

    # --- 4. losses of micro-batches ----------------------------------------------------------------------------------

    def _accumulate(
        self,
        batch: SegmentBatch,
        decisions: Decisions,
        kept: list[Evaluation],
        counts: Counts,
        parts: int,
        measure: bool,
    ) -> tuple[float, list[Sums]]:
        """Compute gradients in micro-batches; `kept` are their evaluations, if the passes were made already."""
        self._passes.set_training(True)
        kept.reverse()  # each is let go after its backward pass, and its activations with it

        def loss_of(part: Decisions) -> tuple[Tensor, Sums]:
            evaluation = (
                kept.pop()
                if kept
                else self._passes.forward(batch, part.rows, part.rows[:0], for_loss=True, measure=measure)
            )
            return self._micro_loss(batch, part, evaluation, counts)

        return self._engine.accumulate([functools.partial(loss_of, part) for part in decisions.parts(parts)])

    def _pass_once(
        self,
        batch: SegmentBatch,
        rows: Rows,
        after: Rows,
        counts: Counts,
        before: Tensor | None,
        parts: int,
        measure: bool,
    ) -> tuple[float, list[Sums]]:
        """Compute gradients with one pass per micro-batch, which therefore holds whole segments.

        If memory does not suffice for one segment, a pass for values and one for the loss give the same in smaller
        parts.
        """
        moments = before if self._loss.normalize_advantages else None
        if parts > len(batch.mask):
            experience, _ = self._evaluate(batch, rows, after, parts, measure)
            decisions = self._credited(batch, rows, experience).normalized(moments)
            return self._accumulate(batch, decisions, [], counts, parts, measure)
        self._passes.set_training(True)

        def loss_of(segments: Index) -> tuple[Tensor, Sums]:
            own, own_after = rows.of_segments(segments), after.of_segments(segments)
            evaluation = self._passes.forward(batch, own, own_after, for_loss=True, measure=measure)
            experience = self._experience(batch)
            self._enter(experience, batch, own, own_after, evaluation)
            decisions = self._credited(batch, own, experience).normalized(moments)
            return self._micro_loss(batch, decisions, first_of(evaluation, len(own)), counts)

        order = self._passes.in_buckets(
            batch, Rows(np.arange(len(batch.mask)), np.zeros(len(batch.mask), np.int64))
        ).segment
        return self._engine.accumulate(
            [functools.partial(loss_of, segments) for segments in np.array_split(order, parts)]
        )

    def _micro_loss(
        self, batch: SegmentBatch, decisions: Decisions, evaluation: Evaluation, counts: Counts
    ) -> tuple[Tensor, Sums]:
        """Return a micro-batch's share of the loss; NaN (skips the update on all ranks) if it cannot be computed."""
        try:
            sums = micro_batch_sums(
                batch,
                decisions,
                evaluation,
                surrogate=self._surrogate,
                ratio=self._ratio,
                loss=self._loss,
                with_critic=self._has_critic,
            )
        except NonFiniteError as error:
            logger.warning("%s", error)
            sums = no_sums(decisions, evaluation, self._loss)
        return share_of_loss(sums, counts, self._loss), sums.detached()

    # --- memory -------------------------------------------------------------------------------------------------------

    @property
    def _num_parts(self) -> int:
        """Return the micro-batches of this update: fewer if groups of short episodes have not filled the batch."""
        return max(1, math.ceil(self.num_micro_batches * self._fill))

    @property
    def _can_keep_less(self) -> bool:
        """Return whether passes are kept between values and loss."""
        return self._keeps_passes

    def _keep_less(self) -> None:
        """Repeat the passes for values from now on."""
        self._keeps_passes = False
        logger.warning("out of memory: passes for values are repeated for the loss from now on (learner.reuse_passes)")

    # --- 6. diagnostics ----------------------------------------------------------------------------------------------

    def _metrics(
        self, batch: SegmentBatch, sums: list[Sums], counts: Counts, result: UpdateResult, *, is_published: bool
    ) -> dict[str, float]:
        collectives = self._engine.collectives
        metrics = {
            "learner/skipped_updates": float(self._engine.skipped_updates),
            "learner/micro_batches": float(self.num_micro_batches),
            "learner/policy_lr": result.learning_rates[POLICY_GROUP],
        }
        if self._has_critic:
            metrics["learner/value_lr"] = result.learning_rates[VALUE_GROUP]
        metrics |= lag_metrics(batch, sums, collectives, old_threshold=self._old_threshold)
        if not result.applied:
            return metrics
        with_critic = self._has_critic
        metrics |= loss_metrics(
            sums, counts, collectives, with_kl=self._loss.kl_coefficient > 0, with_critic=with_critic
        )
        metrics |= ratio_metrics(
            sums,
            collectives,
            surrogate=self._surrogate,
            ratio=self._ratio,
            with_critic=with_critic,
            old_threshold=self._old_threshold,
            with_lag_zero=is_published,
        )
        return metrics | {"learner/grad_norm": result.grad_norm}


def _place(rows: Rows) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.segment), torch.from_numpy(rows.time)
