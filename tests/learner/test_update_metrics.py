"""What an update measures, and the batches that it refuses or skips."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from vla_rl.learner.engine import NonFiniteUpdateError
from vla_rl.rl.loss_weights import LossWeights


@pytest.mark.parametrize("coefficients", [{}, {"entropy_coefficient": 0.1, "kl_coefficient": 0.1}])
def test_an_update_that_is_not_measured_is_the_same_update(coefficients: dict[str, Any]) -> None:
    policies = [fakes.make_policy() for _ in range(2)]
    for policy, measure in zip(policies, (True, False), strict=True):
        learner = fakes.make_learner(fakes.make_engine(policy), loss=LossWeights(**coefficients))
        metrics = learner.update(fakes.make_batch(), policy_version=20, measure=measure)
        assert bool(metrics) is measure
    for ours, theirs in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_metrics_are_the_documented_ones() -> None:
    _, metrics = fakes.updated(fakes.make_batch(), loss=LossWeights(kl_coefficient=0.1))
    assert set(metrics) == {
        *(f"learner/{name}" for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "kl", "grad_norm")),
        *(f"learner/{name}" for name in ("clip_fraction", "explained_variance", "policy_lr", "value_lr")),
        "learner/skipped_updates",
        "learner/micro_batches",
        *(f"policy_lag/{name}" for name in ("mean", "p95", "max", "old_fraction", "old_p95")),
        *(f"utilization/{name}" for name in ("dead", "suppressed", "near_zero", "old_share", "ess_old")),
        "ratio/abs_log_p95",
        "replay/age_mean",
    }


def test_lag_is_measured_per_decision_against_the_learners_version() -> None:
    batch = fakes.make_batch(4)  # 10 decisions
    versions = np.where(batch.mask, 18, 0)
    versions[0] = [4, 14, 10]
    _, metrics = fakes.updated(replace(batch, policy_version=versions))
    assert metrics["policy_lag/mean"] == pytest.approx((16 + 6 + 10 + 7 * 2) / 10)
    assert metrics["policy_lag/max"] == 16
    assert metrics["policy_lag/old_fraction"] == pytest.approx(0.2)  # 16 and 10 have reached the threshold of 10
    assert metrics["policy_lag/old_p95"] == pytest.approx(10 + 0.95 * 6)


def test_a_decision_whose_lag_has_reached_the_threshold_is_old_in_every_metric() -> None:
    batch = fakes.make_batch(4)
    _, metrics = fakes.updated(replace(batch, policy_version=np.where(batch.mask, 10, 0)))
    assert metrics["policy_lag/old_fraction"] == 1.0
    assert metrics["utilization/old_share"] == pytest.approx(1.0)


def test_a_kl_term_without_behaviour_logits_is_refused() -> None:
    batch = replace(fakes.make_batch(), behavior_logits=None)
    with pytest.raises(ValueError, match=r"kl_coefficient 0\.1 needs the behaviour policy's logits"):
        fakes.updated(batch, loss=LossWeights(kl_coefficient=0.1))


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 3 segments was given, and an update takes 4"):
        fakes.updated(fakes.select(fakes.make_batch(4), slice(0, 3)))


@pytest.mark.parametrize("field", ["rewards", "behavior_logprobs", "state"])
def test_an_update_that_is_not_finite_is_skipped_counted_and_in_the_end_fatal(field: str) -> None:
    policy = fakes.make_policy()
    before = fakes.weights(policy)
    engine = fakes.make_engine(policy, max_skipped_updates=3)
    learner = fakes.make_learner(engine)
    batch = fakes.make_batch()
    array = getattr(batch, field).copy()
    array[0, 0] = np.nan
    bad = replace(batch, **{field: array})
    for count in (1, 2):
        metrics = learner.update(bad, policy_version=20)
        assert metrics["learner/skipped_updates"] == count
        assert "learner/policy_loss" not in metrics
        assert all(math.isfinite(value) for value in metrics.values())
    assert engine.optimizer_steps == 0
    assert fakes.largest_difference(before, fakes.weights(policy)) == 0.0
    learner.update(batch, policy_version=20)  # a good one ends the row of bad ones
    learner.update(bad, policy_version=20)
    learner.update(bad, policy_version=20)
    with pytest.raises(NonFiniteUpdateError, match=r"3 updates in a row .* after 1 optimizer steps"):
        learner.update(bad, policy_version=20)
