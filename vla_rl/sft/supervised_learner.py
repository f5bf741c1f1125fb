"""Learner of the supervised stage: one optimizer step from a batch of samples on every rank."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vla_rl.learner.engine import LogitsEngine, UpdateResult
from vla_rl.learner.micro_batches import MicroBatched
from vla_rl.rl.losses import value_loss_sum
from vla_rl.sft.demo_batches import Batch
from vla_rl.sft.samples import Rows
from vla_rl.sft.token_objective import Measured, TokenTerms, soft_labels, token_terms
from vla_rl.types import Policy, PolicyInputs


class SupervisedLearner(MicroBatched):
    """Policy updates from demonstrations.

    The loss is the mean cross-entropy of all action tokens of all ranks' samples, plus the weighted mean squared error
    of the value.

    Args:
        engine: holds a policy with action tokens and carries out the updates.
        label_sigma: bins; deviation of the labels.
        value_coefficient: weight of the value's error.
        num_micro_batches: parts that an update is cut into on each rank; more after running out of memory.
    """

    def __init__(
        self, engine: LogitsEngine, *, label_sigma: float, value_coefficient: float, num_micro_batches: int
    ) -> None:
        super().__init__(engine, num_micro_batches=num_micro_batches, what="sample")
        self._logits = engine.logits
        self._policy = engine.policy
        policy = cast(Policy, engine.policy)
        num_bins = policy.action_spec.num_bins
        assert num_bins is not None, "the plan refuses policies without action tokens"
        self._bucket_of = policy.bucket_of
        self._decode = policy.decode_tokens
        self._labels = soft_labels(num_bins, label_sigma).to(engine.device)
        self._value_coefficient = value_coefficient
        self._measured = Measured.nothing()

    def update(self, batch: Batch) -> UpdateResult:
        """Make one update from this rank's batch and those of all other ranks, which call it at the same time.

        Raises:
            NonFiniteUpdateError: too many updates in a row were skipped.
        """
        batch = batch[np.argsort(self._bucket_of(batch.task_index), kind="stable")]  # the least padding
        union = self._engine.collectives.sum_over_ranks({"samples": float(len(batch))})
        self._policy.train()
        loss, parts = self._with_memory(
            lambda count: self._engine.accumulate(
                [functools.partial(self._micro_loss, batch[cut], union["samples"]) for cut in _cuts(len(batch), count)]
            ),
            most=len(batch),
        )
        for part in parts:
            self._measured += part
        return self._engine.step(loss)

    def take_metrics(self) -> dict[str, float]:
        """Return means over all updates since the last call, and over all ranks, which call it together."""
        union = Measured.from_flat(self._engine.collectives.sum_over_ranks(self._measured.flat()))
        self._measured = Measured.nothing()
        return union.metrics("supervised", with_value=self._value_coefficient > 0)

    def measure(self, rows: Rows, load: Callable[[Rows], Batch], *, micro_batch: int) -> dict[str, float]:
        """Return means over samples, without training on them. All ranks call it together with the same rows.

        Args:
            rows: samples.
            load: returns their batch.
            micro_batch: samples per pass.
        """
        ranks = self._engine.collectives
        own = rows[ranks.rank :: ranks.num_ranks]
        passes = -(-len(rows[:: ranks.num_ranks]) // micro_batch)  # of the rank with the most
        measured = Measured.nothing()
        self._policy.eval()
        with torch.no_grad():
            for number in range(passes):
                chosen = own[number * micro_batch : (number + 1) * micro_batch]
                batch = load(chosen if len(chosen) else rows[:1])  # a rank without any joins the others' pass
                part = self._micro_loss(batch, 1.0)[1]
                if len(chosen):
                    measured += part
        union = Measured.from_flat(ranks.sum_over_ranks(measured.flat()))
        return union.metrics("held_out", with_value=self._value_coefficient > 0)

    def _micro_loss(self, batch: Batch, num_samples: float) -> tuple[Tensor, Measured]:
        """Return a micro-batch's share of the loss, a sum over its elements divided by those of all ranks."""
        logits, values = self._forward(batch)
        tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(logits.device)
        terms = token_terms(logits, tokens, self._labels)
        targets = torch.from_numpy(batch.values).to(values.device)
        value_error, _ = value_loss_sum(values, targets)
        loss = terms.loss.sum() / (num_samples * tokens.shape[1]) + self._value_coefficient * value_error / num_samples
        return loss, Measured.of(terms, self._error(batch, terms), float(value_error.detach()))

    def _error(self, batch: Batch, terms: TokenTerms) -> np.ndarray:
        """Return (B, K, D) absolute differences of the likeliest actions, in the environment's units."""
        likeliest = terms.likeliest.cpu().numpy().astype(np.int16)
        difference: np.ndarray = np.abs(self._decode(likeliest, batch.task_index) - batch.actions)
        return difference

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits (B, A, V) and values (B,)."""
        device = self._engine.device
        return self._logits(
            PolicyInputs(
                frames=torch.from_numpy(batch.frames).to(device),
                state=torch.from_numpy(batch.state).to(device),
                task_index=torch.from_numpy(batch.task_index).to(device),
                buckets=tuple(np.unique(self._bucket_of(batch.task_index)).tolist()),
            )
        )


def _cuts(length: int, count: int) -> Iterator[slice]:
    """Return consecutive parts of nearly equal length, none of them empty: at most one per element."""
    bounds = np.linspace(0, length, min(count, length) + 1).round().astype(int).tolist()
    return itertools.starmap(slice, itertools.pairwise(bounds))
