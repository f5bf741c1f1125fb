"""Learner: one parameter update from replayed segments."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from vla_rl.credit import Credit
from vla_rl.learner.batches import Index, Rows, at, bootstrap_rows, decision_rows, policy_inputs, token_mask
from vla_rl.learner.engine import Engine, UpdateResult
from vla_rl.learner.metrics import lag_metrics, loss_metrics, ratio_metrics
from vla_rl.learner.moments import RunningMoments
from vla_rl.learner.objective import (
    Counts,
    MicroBatch,
    Prepared,
    Sums,
    joined,
    micro_batch_sums,
    segment_targets,
    share_of_loss,
)
from vla_rl.learner.optimizer import POLICY_GROUP, VALUE_GROUP
from vla_rl.learner.settings import LossSettings
from vla_rl.policies.memory_errors import is_out_of_memory
from vla_rl.rl.distributions import distribution_of
from vla_rl.rl.losses import advantage_moments, normalize_advantages
from vla_rl.rl.masking import NonFiniteError
from vla_rl.rl.surrogates import Surrogate
from vla_rl.types import Policy, PolicyOutput, SegmentBatch

logger = logging.getLogger(__name__)

_NO_MOMENTS = torch.full((3,), math.nan, dtype=torch.float64)  # moments if an advantage is not finite

Result = TypeVar("Result")


@dataclass(slots=True)
class _View:
    """Inputs of a batch's targets. Padding has no meaning."""

    values: Tensor  # (B, T + 1)
    joint_log_ratio: Tensor  # (B, T) of whole decisions for V-trace
    output: PolicyOutput | None = None  # with its graph, of all decisions, if one pass computed them


class Learner:
    """Policy updates from batches of segments.

    Args:
        engine: holds the policy and carries out the update over micro-batches and ranks.
        surrogate: the policy objective. Its weights and its clip range give metrics.
        credit: makes value targets and advantages.
        loss: weights of the terms.
        temperature: the policy acts with logits / temperature, here as in the inference worker.
        micro_batch: segments per forward pass.
        accumulation: micro-batches per update; a batch has micro_batch · accumulation segments.
        old_threshold: versions; a decision is old at this lag or more (metrics only).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        surrogate: Surrogate,
        credit: Credit,
        loss: LossSettings,
        temperature: float,
        micro_batch: int,
        accumulation: int,
        old_threshold: int,
    ) -> None:
        self._engine = engine
        self._policy = engine.policy
        self._bucket_of = cast(Policy, engine.policy).bucket_of
        action_spec = cast(Policy, engine.policy).action_spec
        self._action_dim = action_spec.action_dim
        self._has_dropout = any(isinstance(module, _DropoutNd) and module.p > 0 for module in engine.policy.modules())
        self._distribution = distribution_of(action_spec.num_bins)
        self._surrogate = surrogate
        self._credit = credit
        self._loss = loss
        self._temperature = temperature
        self._batch_size = micro_batch * accumulation
        self._num_micro_batches = accumulation
        self._old_threshold = old_threshold
        self._evaluates_decisions = credit.needs_current_values or credit.needs_log_ratios
        self.moments = RunningMoments()
        self.seconds = {"values": 0.0, "loss": 0.0, "optimizer": 0.0}  # durations of the last update, by part

    @property
    def batch_size(self) -> int:
        """Return the segments that every update takes, on each rank."""
        return self._batch_size

    @property
    def num_micro_batches(self) -> int:
        """Return the parts of an update on each rank: `accumulation`, and more after running out of memory."""
        return self._num_micro_batches

    def update(self, batch: SegmentBatch, *, policy_version: int, measure: bool = True) -> dict[str, float]:
        """Make one update from this rank's batch and those of all other ranks, which call it at the same time.

        Args:
            batch: `batch_size` segments with at least one decision each.
            policy_version: version of the weights before this update; the lag is measured against it.
            measure: compute the metrics; with small policies they cost about as much as the update. The same on all
                ranks.

        Returns:
            Metrics of the union of all ranks' batches, the same on every rank; none without `measure`. If the update
            was skipped because something was not finite: only those that do not depend on it.

        Raises:
            ValueError: the batch has another size, or no behaviour logits although the KL term is on.
            NonFiniteUpdateError: too many updates in a row were skipped.
        """
        self._check(batch)
        # 1. Global counts, and whether targets need a value of an observation that has none yet.
        counts, lacks_values = self._survey(batch)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        moments = self.moments.sums if self._loss.running_moments else None
        is_known = moments is not None or not self._loss.normalize_advantages
        if is_known and self._evaluates_decisions and not self._has_dropout:
            # 2. Nothing depends on the whole batch: one pass over whole segments computes their targets and losses.
            with self._clock("loss"):
                prepared, sums, loss = self._with_memory(
                    lambda parts: self._pass_once(batch, counts, moments, parts, measure), batch
                )
            union = self._union(prepared.moments)
        else:
            # 2. Values (for V-trace, log-ratios too) under the current weights, as far as the targets need them.
            with self._clock("values"):
                view = (
                    self._with_memory(lambda parts: self._evaluate(batch, parts), batch)
                    if self._evaluates_decisions or lacks_values
                    else self._view(batch)
                )
            # 3. Targets: constants of the update. Advantages are normalised over the decisions of all ranks.
            prepared = self._prepare(batch, self._in_buckets(batch, decision_rows(batch)), view, counts)
            union = self._union(prepared.moments)
            prepared = self._normalized(prepared, union if moments is None else moments)
            # 4. Micro-batches: surrogate + value + entropy + KL, sums over global counts.
            with self._clock("loss"):
                sums, loss = self._with_memory(
                    lambda parts: self._accumulate(batch, prepared, view, parts, measure), batch
                )
        # 5. Clip, step, schedule.
        with self._clock("optimizer"):
            result = self._engine.step(loss)
        if result.applied:
            self.moments.add(union)
        # 6. Diagnostics of the whole batch, under the weights at which the gradient was taken.
        return self._metrics(batch, prepared, sums, result, policy_version) if measure else {}

    @contextlib.contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        """Record the duration of a part of an update, including the work it queued on a GPU."""
        began = time.perf_counter()
        yield
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)
        self.seconds[part] = time.perf_counter() - began

    def _check(self, batch: SegmentBatch) -> None:
        if len(batch.mask) != self._batch_size:
            raise ValueError(
                f"a batch of {len(batch.mask)} segments was given, and an update takes {self._batch_size} "
                "(micro_batch times accumulation)"
            )
        if self._loss.kl_coefficient > 0 and batch.behavior_logits is None:
            raise ValueError(
                f"kl_coefficient {self._loss.kl_coefficient} needs the behaviour policy's logits and the batch has "
                "none: store them in the replay ring, or set the coefficient to 0"
            )

    def _survey(self, batch: SegmentBatch) -> tuple[Counts, bool]:
        """Return denominators over the ranks, and whether a rank has an observation that was not valued when acting."""
        lacking = 0 if self._credit.needs_current_values else len(self._rows_after(batch))
        tokens = token_mask(batch, decision_rows(batch), action_dim=self._action_dim).sum()
        union = self._engine.collectives.sum_over_ranks(
            {"decisions": float(batch.mask.sum()), "tokens": float(tokens), "lacking": float(lacking)}
        )
        ratios = union["decisions" if self._loss.joint_ratio else "tokens"]
        return Counts(decisions=union["decisions"], tokens=union["tokens"], ratios=ratios), union["lacking"] > 0

    def _rows_after(self, batch: SegmentBatch) -> Rows:
        """Return the observations after a segment's last decision whose values its targets still lack.

        With values from acting time, these are last observations of episodes whose task continues: no decision was made
        there, so only the learner can value them.
        """
        rows = bootstrap_rows(batch, time_limit=self._credit.horizon)
        if self._credit.needs_current_values:
            return rows
        lacking = np.isnan(batch.behavior_values[rows.segment, rows.time])
        return rows.where(lacking & self._credit.needs_values)

    def _view(self, batch: SegmentBatch) -> _View:
        """Return what is known before any pass."""
        shape = (len(batch.mask), batch.mask.shape[1] + 1)
        current = self._credit.needs_current_values
        values = torch.zeros(shape) if current else torch.from_numpy(batch.behavior_values).clone()
        return _View(values, torch.zeros(batch.mask.shape))

    def _complete(self, view: _View, batch: SegmentBatch, rows: Rows, output: PolicyOutput) -> None:
        """Add the results of a pass over the rows."""
        is_decision = rows.time < batch.mask.sum(axis=1)[rows.segment]
        valued = np.ones_like(is_decision) if self._credit.needs_current_values else ~is_decision
        place = rows.where(valued)
        values = output.values.detach().cpu()[torch.from_numpy(valued)]
        view.values[torch.from_numpy(place.segment), torch.from_numpy(place.time)] = values
        if self._credit.needs_log_ratios:
            self._add_joint_log_ratio(batch, rows, output.logits.detach(), view.joint_log_ratio)

    def _evaluate(self, batch: SegmentBatch, parts: int) -> _View:
        """Evaluate the batch under the current weights.

        If all of it is one micro-batch, its values come from the forward pass of the loss, one pass instead of two,
        unless the policy's outputs differ in training mode.
        """
        every = self._in_buckets(batch, decision_rows(batch))
        decisions = every if self._evaluates_decisions else every.where(np.zeros(len(every), dtype=np.bool_))
        rows = decisions.followed_by(self._rows_after(batch))
        keep = parts == 1 and self._evaluates_decisions and not self._has_dropout
        if not keep:
            rows = self._in_buckets(batch, rows)
        view = self._view(batch)
        self._set_training(keep)
        with torch.set_grad_enabled(keep):
            for micro_batch in _cut(rows, parts):
                output = self._forward(batch, micro_batch.rows)
                self._complete(view, batch, micro_batch.rows, output)
        if keep:
            view.output = _first(output, len(decisions))
        return view

    def _add_joint_log_ratio(self, batch: SegmentBatch, rows: Rows, logits: Tensor, grid: Tensor) -> None:
        """Add the sum of each decision's executed token log-ratios; the joint ratio is that of the whole chunk."""
        decided = rows.time < batch.mask.sum(axis=1)[rows.segment]  # the others are bootstrap observations
        decisions = Rows(rows.segment[decided], rows.time[decided])
        logits = logits[torch.from_numpy(decided).to(logits.device)]
        tokens = at(batch.tokens, decisions).to(logits.device)
        logprobs = self._distribution.terms(logits, tokens, self._temperature).logprobs.cpu()
        run = token_mask(batch, decisions, action_dim=self._action_dim)
        log_ratio = torch.where(run, logprobs - at(batch.behavior_logprobs, decisions), 0.0)
        grid[torch.from_numpy(decisions.segment), torch.from_numpy(decisions.time)] = log_ratio.sum(dim=1)

    def _prepare(self, batch: SegmentBatch, rows: Rows, view: _View, counts: Counts) -> Prepared:
        """Return the constants of these decisions, with advantages not yet normalised."""
        value_targets, advantages = (
            grid[torch.from_numpy(rows.segment), torch.from_numpy(rows.time)]
            for grid in segment_targets(batch, view.values, view.joint_log_ratio, self._credit)
        )
        run = token_mask(batch, rows, action_dim=self._action_dim)
        ratios_valid = run.any(dim=1, keepdim=True) if self._loss.joint_ratio else run
        finite = bool(advantages.isfinite().all())
        own = advantage_moments(advantages, torch.ones_like(advantages, dtype=torch.bool)) if finite else _NO_MOMENTS
        return Prepared(rows, run, ratios_valid, value_targets, advantages, own, counts)

    def _union(self, moments: Tensor) -> Tensor:
        """Return advantage moments over all ranks; NaN on all if one has a non-finite advantage."""
        total, square, count = moments.tolist()
        union = self._engine.collectives.sum_over_ranks({"total": total, "square": square, "count": count})
        return torch.tensor([union["total"], union["square"], union["count"]], dtype=torch.float64)

    def _normalized(self, prepared: Prepared, moments: Tensor | None) -> Prepared:
        """Return the constants with advantages as the loss takes them.

        If an advantage is not finite, all become NaN: so does the loss, and the engine skips the update on every rank.
        """
        advantages = prepared.advantages
        if not prepared.moments.isfinite().all() or (moments is not None and not moments.isfinite().all()):
            advantages = torch.full_like(advantages, math.nan)
        elif self._loss.normalize_advantages:
            every = torch.ones_like(advantages, dtype=torch.bool)
            advantages = normalize_advantages(advantages, every, moments=moments)
        return replace(prepared, advantages=advantages)

    def _pass_once(
        self, batch: SegmentBatch, counts: Counts, moments: Tensor | None, parts: int, measure: bool
    ) -> tuple[Prepared, list[Sums], float]:
        """Compute gradients with one pass per micro-batch, which therefore holds whole segments.

        If memory does not suffice for one segment, a pass for values and one for the loss give the same in smaller
        parts.
        """
        if parts > len(batch.mask):
            view = self._evaluate(batch, parts)
            rows = self._in_buckets(batch, decision_rows(batch))
            prepared = self._normalized(self._prepare(batch, rows, view, counts), moments)
            return prepared, *self._accumulate(batch, prepared, view, parts, measure)
        self._set_training(True)
        done: list[Prepared] = []
        sums: list[Sums] = []
        order = np.argsort(self._bucket_of(batch.task_index), kind="stable")
        losses = [
            functools.partial(self._segments_loss, batch, segments, counts, moments, done, sums, measure)
            for segments in np.array_split(order, parts)
        ]
        loss = self._engine.accumulate(losses)
        return joined(done), sums, loss

    def _segments_loss(
        self,
        batch: SegmentBatch,
        segments: Index,
        counts: Counts,
        moments: Tensor | None,
        done: list[Prepared],
        sums: list[Sums],
        measure: bool,
    ) -> Tensor:
        """Return the share of the loss of whole segments, whose targets come from the same pass."""
        chosen = np.isin(np.arange(len(batch.mask)), segments)
        decisions, after = decision_rows(batch), self._rows_after(batch)
        decisions, after = decisions.where(chosen[decisions.segment]), after.where(chosen[after.segment])
        rows = decisions.followed_by(after)
        output, view = self._forward(batch, rows), self._view(batch)
        self._complete(view, batch, rows, output)
        prepared = self._normalized(self._prepare(batch, decisions, view, counts), moments)
        done.append(prepared)
        micro_batch = MicroBatch(decisions, slice(0, len(decisions)))
        return self._micro_loss(batch, prepared, micro_batch, _first(output, len(decisions)), sums, measure)

    def _accumulate(
        self, batch: SegmentBatch, prepared: Prepared, view: _View, parts: int, measure: bool
    ) -> tuple[list[Sums], float]:
        sums: list[Sums] = []
        self._set_training(True)
        output, view.output = view.output, None  # a second attempt has smaller micro-batches
        losses = [
            functools.partial(self._micro_loss, batch, prepared, micro_batch, output, sums, measure)
            for micro_batch in _cut(prepared.rows, parts)
        ]
        return sums, self._engine.accumulate(losses)

    def _micro_loss(
        self,
        batch: SegmentBatch,
        prepared: Prepared,
        micro_batch: MicroBatch,
        output: PolicyOutput | None,
        sums: list[Sums],
        measure: bool,
    ) -> Tensor:
        """Return this micro-batch's share of the loss; NaN (skips the update on all ranks) if it cannot be computed.

        `output` is that of its rows, if the pass was made already.
        """
        output = output or self._forward(batch, micro_batch.rows)
        try:
            part = micro_batch_sums(
                batch,
                micro_batch,
                prepared,
                output,
                distribution=self._distribution,
                surrogate=self._surrogate,
                loss=self._loss,
                temperature=self._temperature,
                measure=measure,
            )
        except NonFiniteError as error:
            logger.warning("%s", error)
            return (output.logits.sum() + output.values.sum()) * math.nan
        sums.append(part)
        return share_of_loss(part, prepared.counts, self._loss)

    def _set_training(self, training: bool) -> None:
        """Set the mode of all modules unless it is set: visiting them takes a small policy as long as a layer."""
        if self._policy.training != training:
            self._policy.train(training)

    def _in_buckets(self, batch: SegmentBatch, rows: Rows) -> Rows:
        """Sort rows by their buckets, so that few micro-batches hold more than one and are padded."""
        return rows.sorted_by(self._bucket_of(batch.task_index[rows.segment]))

    def _forward(self, batch: SegmentBatch, rows: Rows) -> PolicyOutput:
        """Compute the output of the rows.

        Without rows a pass is run on a dummy, because other ranks may wait inside it.
        """
        some = rows if len(rows) else Rows(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        buckets = self._bucket_of(batch.task_index[some.segment])
        output = self._engine.forward(policy_inputs(batch, some, self._engine.device, buckets=buckets))
        return _first(output, len(rows))

    def _metrics(
        self, batch: SegmentBatch, prepared: Prepared, sums: list[Sums], result: UpdateResult, policy_version: int
    ) -> dict[str, float]:
        collectives = self._engine.collectives
        version = {"policy_version": policy_version, "old_threshold": self._old_threshold}
        metrics = {
            "learner/skipped_updates": float(self._engine.skipped_updates),
            "learner/micro_batches": float(self._num_micro_batches),
            "learner/policy_lr": result.learning_rates[POLICY_GROUP],
            "learner/value_lr": result.learning_rates[VALUE_GROUP],
        }
        metrics |= lag_metrics(batch, prepared, collectives, **version)
        if not result.applied:
            return metrics
        metrics |= loss_metrics(sums, prepared, collectives, with_kl=self._loss.kl_coefficient > 0)
        metrics |= ratio_metrics(
            batch,
            prepared,
            sums,
            collectives,
            surrogate=self._surrogate,
            **version,
        )
        return metrics | {"learner/grad_norm": result.grad_norm}

    def _with_memory(self, work: Callable[[int], Result], batch: SegmentBatch) -> Result:
        """Run `work(micro-batches)`; if a rank runs out of memory, all restart with twice as many from then on.

        Raises:
            torch.cuda.OutOfMemoryError: one decision at a time is still too much, or the ranks meet inside `work`.
        """
        while True:
            result, shortage = self._attempt(work)
            short = shortage is not None
            hopeless = short and self._num_micro_batches >= batch.mask.sum()
            union = self._engine.collectives.sum_over_ranks({"short": float(short), "hopeless": float(hopeless)})
            if result is not None and not union["short"]:
                return result
            if union["hopeless"]:
                raise torch.cuda.OutOfMemoryError(
                    f"{shortage or 'another rank ran out of memory'}. One decision at a time is still too much: free "
                    "the device, or set policy.gradient_checkpointing=true, policy.dtype=bfloat16 and "
                    "learner.precision=bf16"
                )
            result = None  # it may hold the activations of a rank with sufficient memory
            self._halve_micro_batches()

    def _attempt(self, work: Callable[[int], Result]) -> tuple[Result | None, str | None]:
        """Return the result, or the error's message. The error itself would keep all activations in its traceback."""
        try:
            return work(self._num_micro_batches), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not self._engine.can_retry:
                error.add_note(
                    f"DeepSpeed's ranks wait for each other in every micro-batch, so {self._num_micro_batches} stay "
                    "what they are: lower learner.micro_batch and raise learner.accumulation by the same factor, or "
                    "use learner.strategy=ddp, which then makes micro-batches smaller by itself"
                )
                raise
            return None, str(error)

    def _halve_micro_batches(self) -> None:
        self._engine.discard_gradients()
        torch.cuda.empty_cache()
        self._num_micro_batches *= 2
        logger.warning(
            "out of memory: the batch is cut into %d micro-batches from now on; set learner.accumulation to that and "
            "learner.micro_batch accordingly to avoid the first failure",
            self._num_micro_batches,
        )


def _first(output: PolicyOutput, count: int) -> PolicyOutput:
    return PolicyOutput(logits=output.logits[:count], values=output.values[:count])


def _cut(rows: Rows, parts: int) -> list[MicroBatch]:
    return [MicroBatch(part, place) for part, place in rows.parts(parts)]
