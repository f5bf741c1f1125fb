"""The learner's update in one process."""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import replace
from typing import Any, Literal

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from torch import nn

from vla_rl.credit import Vtrace
from vla_rl.learner.engine import NonFiniteUpdateError
from vla_rl.policies.token_policy import TokenOutput, TokenPolicy
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.surrogates import KINDS, Ppo
from vla_rl.types import ObservationSpec, PolicyInputs, SegmentBatch

PLAIN = LossWeights(value_coefficient=0.5, normalize_advantages=False)


class TablePolicy(TokenPolicy):
    """V(s) is the state's first number, the action is uniform over 5 bins."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_spec = ObservationSpec(num_images=0, image_size=0, state_dim=fakes.STATE_DIM)
        self.action_spec = fakes.ACTIONS
        self.bias = nn.Parameter(torch.zeros(self.action_spec.num_tokens, self.action_spec.num_behavior))
        self.value_scale = nn.Parameter(torch.ones(()))

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        values = inputs.state[:, 0] * self.value_scale
        return TokenOutput(logits=self.bias.expand(len(values), -1, -1), values=values)

    def bucket_of(self, task_index: np.ndarray) -> np.ndarray:
        return np.zeros_like(task_index)

    def is_value_parameter(self, name: str) -> bool:
        return name == "value_scale"


def table_batch(values: list[float], rewards: list[float], *, terminated: bool) -> SegmentBatch:
    """One segment of 3 decisions of a uniform behaviour, whose observations have the given values."""
    batch = fakes.make_batch(1)
    state = np.zeros_like(batch.state)
    state[0, :, 0] = values
    return replace(
        batch,
        state=state,
        rewards=np.array([rewards], dtype=np.float32),
        terminated=np.array([[False, False, terminated]]),
        truncated=np.array([[False, False, not terminated]]),
        behavior_logprobs=np.full_like(batch.behavior_logprobs, -math.log(5)),
    )


def updated(batch: SegmentBatch, *, policy: nn.Module | None = None, **settings) -> tuple[nn.Module, dict[str, float]]:
    policy = policy or fakes.make_policy()
    learner = fakes.make_learner(fakes.make_engine(policy), **settings)
    return policy, learner.update(batch, policy_version=20)


@pytest.mark.parametrize(
    ("terminated", "advantages"),
    [(True, [1.25375, -0.325, 2.5]), (False, [1.98275, 1.295, 6.1])],
)
def test_gae_by_hand_truncation_bootstraps_from_the_stored_last_observation(
    terminated: bool, advantages: list[float]
) -> None:
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=terminated)
    targets = fakes.gae(discount=0.9, gae_lambda=0.5)
    _, metrics = updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
    assert metrics["learner/policy_loss"] == pytest.approx(-sum(advantages) / 3, abs=1e-6)
    assert metrics["learner/value_loss"] == pytest.approx(sum(a * a for a in advantages) / 3, rel=1e-6)
    assert metrics["learner/entropy"] == pytest.approx(math.log(5), abs=1e-6)


@pytest.mark.parametrize("name", ["gae", "vtrace"])
@pytest.mark.parametrize("ends", ["truncated", "cut"])
@pytest.mark.parametrize("time_limit", ["end", "bootstrap"])
def test_the_time_limit_by_hand(name: str, ends: str, time_limit: Literal["end", "bootstrap"]) -> None:
    """The vectors above: only a truncation under `end` has no future; a segment that is cut always has one."""
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    if ends == "cut":
        batch = replace(batch, truncated=np.zeros_like(batch.truncated))
    targets = fakes.gae(discount=0.9, gae_lambda=0.5, time_limit=time_limit)
    over, open_ = [1.25375, -0.325, 2.5], [1.98275, 1.295, 6.1]
    if name == "vtrace":  # ρ = 1, λ = 1: discounted rewards up to the end, less the value
        targets = fakes.vtrace(discount=0.9, lambda_=1.0, rho_bar=1.0, c_bar=1.0, time_limit=time_limit)
        over, open_ = [2.12, 0.8, 2.5], [5.036, 4.04, 6.1]
    expected = over if (ends, time_limit) == ("truncated", "end") else open_
    _, metrics = updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
    assert metrics["learner/policy_loss"] == pytest.approx(-sum(expected) / 3, abs=1e-6)
    assert metrics["learner/value_loss"] == pytest.approx(sum(a * a for a in expected) / 3, rel=1e-6)


def test_the_gradient_by_hand() -> None:
    """GAE as above, A = [1.98275, 1.295, 6.1], state s = V = [0.5, 1, -0.5], target - V = A; every token is bin 0 of 5.

    Policy: -1/18 sum over 3 decisions of A (1[bin 0] - 1/5) at each of 6 positions. Value: 0.5 mean(-2 A s).
    The entropy is at its maximum, so its gradient is 0.
    """
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    batch = replace(batch, tokens=np.zeros_like(batch.tokens))
    policy_norm = (1.98275 + 1.295 + 6.1) / 18 * math.sqrt(6 * (0.8**2 + 4 * 0.2**2))
    value_gradient = -(1.98275 * 0.5 + 1.295 * 1.0 + 6.1 * -0.5) / 3
    targets = fakes.gae(discount=0.9, gae_lambda=0.5)
    loss = LossWeights(value_coefficient=0.5, entropy_coefficient=0.1, normalize_advantages=False)
    for parts in (1, 3):
        learner = fakes.make_learner(
            fakes.make_engine(TablePolicy()), targets=targets, loss=loss, micro_batch=1, accumulation=1
        )
        learner.num_micro_batches = parts
        norm = learner.update(batch, policy_version=20)["learner/grad_norm"]
        assert norm == pytest.approx(math.hypot(policy_norm, value_gradient), rel=1e-5)


def test_vtrace_by_hand_uses_the_joint_ratio_of_the_executed_tokens() -> None:
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    ratios = np.array([2.0, 0.5, 1.0])
    executed = np.array([[2, 1, 2]], dtype=np.int16)
    log_ratio = np.zeros((1, 3, 6), dtype=np.float32)
    log_ratio[0, :, :3] = np.log(ratios)[:, None] / 3  # the three tokens of the first control step carry all of it
    log_ratio[0, 1, 3:] = 9.0  # never executed, so of no effect
    batch = replace(batch, executed=executed, behavior_logprobs=(-math.log(5) - log_ratio).astype(np.float32))
    targets = fakes.vtrace(discount=0.9, lambda_=1.0, rho_bar=1.0, c_bar=1.0)
    _, metrics = updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
    errors = np.array([3.718, 3.02, 5.6]) - np.array([0.5, 1.0, -0.5])
    assert metrics["learner/value_loss"] == pytest.approx(float(np.mean(errors**2)), rel=1e-6)


def test_the_joint_ratio_is_the_product_over_executed_tokens_and_counts_once_per_decision() -> None:
    """A = [1.98275, 1.295, 6.1] as above, joint ratios 2, 0.5 and 1: J = 2 · 1.98275 + 0.5 · 1.295 + 6.1."""
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    log_ratio = np.zeros((1, 3, 6), dtype=np.float32)
    log_ratio[0, :, :3] = np.log([2.0, 0.5, 1.0])[:, None] / 3
    log_ratio[0, 1, 3:] = 9.0  # never executed, so of no effect
    batch = replace(
        batch,
        executed=np.array([[2, 1, 2]], dtype=np.int16),
        behavior_logprobs=(-math.log(5) - log_ratio).astype(np.float32),
    )
    targets = fakes.gae(discount=0.9, gae_lambda=0.5)
    loss = PLAIN.model_copy(update={"ratio": "joint"})
    for parts in (1, 2):
        learner = fakes.make_learner(
            fakes.make_engine(TablePolicy()), surrogate="no_clip", targets=targets, loss=loss, micro_batch=1,
            accumulation=1,
        )  # fmt: skip
        learner.num_micro_batches = parts
        metrics = learner.update(batch, policy_version=20)
        assert metrics["learner/policy_loss"] == pytest.approx(-(2 * 1.98275 + 0.5 * 1.295 + 6.1) / 3, rel=1e-5)


@pytest.mark.parametrize("ratio", ["token", "step", "joint"])
def test_drift_is_per_executed_token_whatever_shares_a_ratio(ratio: str) -> None:
    """13 tokens at 0.2 nat and 2 at 0.4, of 15: the step at 0.2, 0.4, 0.4 alone has a ratio of e, all others e^0.6."""
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    log_ratio = np.full((1, 3, 6), 0.2, dtype=np.float32)
    log_ratio[0, 0, 4:] = 0.4
    log_ratio[0, 1, 3:] = 9.0  # never executed, so of no effect
    batch = replace(
        batch,
        executed=np.array([[2, 1, 2]], dtype=np.int16),
        behavior_logprobs=(-math.log(5) - log_ratio).astype(np.float32),
    )
    loss, ppo = PLAIN.model_copy(update={"ratio": ratio}), Ppo(name="ppo", clip_high=1.0)
    _, metrics = updated(batch, policy=TablePolicy(), surrogate=ppo, loss=loss, micro_batch=1, accumulation=1)
    estimates = 13 * (math.expm1(0.2) - 0.2) + 2 * (math.expm1(0.4) - 0.4)
    assert metrics["learner/approx_kl"] == pytest.approx(estimates / 15, rel=1e-5)
    assert metrics["ratio/abs_log_p95"] == pytest.approx(0.4, rel=1e-5)
    assert metrics["learner/clip_fraction"] == pytest.approx({"token": 0.0, "step": 1 / 5, "joint": 2 / 3}[ratio])


def test_the_gradient_of_the_joint_ratio_by_hand() -> None:
    """At ratio 1 every token gets A / 3 decisions, not A / 18 tokens."""
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=False)
    batch = replace(batch, tokens=np.zeros_like(batch.tokens))
    loss = LossWeights(value_coefficient=0.0, normalize_advantages=False, ratio="joint")
    targets = fakes.gae(discount=0.9, gae_lambda=0.5)
    _, metrics = updated(batch, policy=TablePolicy(), targets=targets, loss=loss, micro_batch=1, accumulation=1)
    expected = (1.98275 + 1.295 + 6.1) / 3 * math.sqrt(6 * (0.8**2 + 4 * 0.2**2))
    assert metrics["learner/grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_values_are_recomputed_and_the_stored_ones_have_no_effect() -> None:
    batch = fakes.make_batch()
    other = replace(batch, behavior_values=batch.behavior_values + 5.0)
    assert fakes.weights(updated(batch)[0])["scale"].equal(fakes.weights(updated(other)[0])["scale"])


def test_cutting_a_batch_into_micro_batches_changes_nothing() -> None:
    batch = fakes.make_batch(8)
    whole, whole_metrics = updated(batch, micro_batch=8, accumulation=1)
    for accumulation in (2, 8):
        parts, metrics = updated(batch, micro_batch=8 // accumulation, accumulation=accumulation)
        assert fakes.largest_difference(fakes.weights(whole), fakes.weights(parts)) < 1e-6
        assert metrics == pytest.approx(whole_metrics | {"learner/micro_batches": accumulation}, rel=1e-5, abs=1e-6)


class BucketsOfTasks(fakes.FakePolicy):
    """Every task is a bucket of its own; remembers what the forward passes were told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, ...]] = []

    def bucket_of(self, task_index: np.ndarray) -> np.ndarray:
        return 10 * task_index

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        assert inputs.buckets == tuple(sorted({10 * task for task in inputs.task_index.tolist()}))
        if torch.is_grad_enabled():
            self.told.append(inputs.buckets)
        return super().network(inputs)


@pytest.mark.parametrize("targets", [None, fakes.vtrace(discount=0.9, lambda_=1.0, rho_bar=1.0, c_bar=1.0)])
def test_rows_are_taken_bucket_by_bucket_and_the_update_is_the_same(targets) -> None:
    batch = replace(fakes.make_batch(8), task_index=np.array([0, 1, 2, 0, 1, 2, 0, 1]))
    torch.manual_seed(0)
    bucketed, metrics = updated(batch, policy=BucketsOfTasks(), targets=targets, micro_batch=2, accumulation=4)
    # Decisions 3 2 3 2 3 2 3 2: 8 of task 0, 7 of task 1, 5 of task 2, cut into four parts of 5.
    assert bucketed.told == [(0,), (0, 10), (10,), (20,)]
    plain, expected = updated(batch, targets=targets, micro_batch=2, accumulation=4)
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(bucketed)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_padding_may_hold_anything() -> None:
    batch = fakes.make_batch()
    padding = ~batch.mask
    poisoned = {}
    for name in ("rewards", "behavior_logprobs", "behavior_values", "behavior_logits"):
        array = getattr(batch, name).copy()
        array[:, : fakes.LENGTH][padding & (name != "behavior_values")] = np.nan
        poisoned[name] = array
    state = batch.state.copy()
    state[1::2, 3] = np.nan  # behind the bootstrap observation of the short segments
    flags = {name: np.where(padding, True, getattr(batch, name)) for name in ("terminated", "truncated")}
    lags = {name: np.where(padding, -(10**6), getattr(batch, name)) for name in ("policy_version", "age")}
    clean_policy, clean = updated(batch)
    policy, metrics = updated(replace(batch, state=state, **poisoned, **flags, **lags))
    assert metrics == clean
    assert fakes.largest_difference(fakes.weights(policy), fakes.weights(clean_policy)) == 0.0


def test_tokens_of_control_steps_that_never_ran_have_no_effect() -> None:
    batch = fakes.make_batch()
    logprobs, tokens = batch.behavior_logprobs.copy(), batch.tokens.copy()
    logprobs[1::2, 1, 3:] = np.nan  # one control step of two ran: tokens 3, 4, 5 belong to the other
    tokens[1::2, 1, 3:] = 0
    clean_policy, clean = updated(batch)
    policy, metrics = updated(replace(batch, behavior_logprobs=logprobs, tokens=tokens))
    assert metrics == clean
    assert fakes.largest_difference(fakes.weights(policy), fakes.weights(clean_policy)) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_batch_without_lag_has_ratio_one(temperature: float) -> None:
    batch = fakes.on_policy(fakes.make_batch(), fakes.make_policy(), temperature=temperature)
    _, metrics = updated(batch, temperature=temperature)
    assert metrics["ratio/abs_log_p95"] < 1e-6
    assert metrics["learner/approx_kl"] < 1e-12
    assert metrics["learner/clip_fraction"] == 0.0


def test_learning_rate_zero_changes_nothing() -> None:
    policy = fakes.make_policy()
    before = fakes.weights(policy)
    engine = fakes.make_engine(policy, lr=0.0)
    fakes.make_learner(engine).update(fakes.make_batch(), policy_version=20)
    assert engine.optimizer_steps == 1
    assert fakes.largest_difference(before, fakes.weights(policy)) == 0.0


def test_frozen_parameters_stay_and_trainable_ones_move() -> None:
    before = fakes.weights(fakes.make_policy())
    policy, _ = updated(fakes.make_batch())
    after = fakes.weights(policy)
    assert [name for name in before if after[name].equal(before[name])] == ["frozen"]


@pytest.mark.parametrize(("high", "clipped"), [(1e-6, True), (1e6, False)])
def test_the_clip_fraction_is_that_of_the_surrogates_own_range(high: float, clipped: bool) -> None:
    surrogate = Ppo(name="ppo", clip_low=0.5, clip_high=high)
    batch = fakes.make_batch()
    batch = replace(batch, behavior_logprobs=np.full_like(batch.behavior_logprobs, -9.0))  # far less likely than now
    metrics = fakes.make_learner(fakes.make_engine(TablePolicy()), surrogate=surrogate).update(batch, policy_version=1)
    assert metrics["learner/clip_fraction"] == float(clipped)


@pytest.mark.parametrize("surrogate", KINDS)
def test_rewarded_tokens_become_likelier(surrogate: str) -> None:
    policy = fakes.make_policy()
    learner = fakes.make_learner(fakes.make_engine(policy, lr=1e-2), surrogate=surrogate, micro_batch=16)
    logprobs = []
    for index in range(12):
        batch = fakes.on_policy(fakes.make_batch(32, seed=index), policy)
        rewarded = (batch.tokens[..., 0] == 2).astype(np.float32)
        batch = replace(
            batch, rewards=rewarded * batch.mask, terminated=batch.mask, truncated=np.zeros_like(batch.mask)
        )
        logprobs.append(_logprob_of_token(policy, batch, 2))
        learner.update(batch, policy_version=index)
    assert logprobs[-1] > logprobs[0] + 0.3


def _logprob_of_token(policy: nn.Module, batch: SegmentBatch, token: int) -> float:
    tokens = np.full_like(batch.tokens, token)
    return float(fakes.on_policy(replace(batch, tokens=tokens), policy).behavior_logprobs[..., 0].mean())


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
    _, metrics = updated(fakes.make_batch(), loss=LossWeights(kl_coefficient=0.1))
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
    _, metrics = updated(replace(batch, policy_version=versions))
    assert metrics["policy_lag/mean"] == pytest.approx((16 + 6 + 10 + 7 * 2) / 10)
    assert metrics["policy_lag/max"] == 16
    assert metrics["policy_lag/old_fraction"] == pytest.approx(0.2)  # 16 and 10 have reached the threshold of 10
    assert metrics["policy_lag/old_p95"] == pytest.approx(10 + 0.95 * 6)


def test_a_decision_whose_lag_has_reached_the_threshold_is_old_in_every_metric() -> None:
    batch = fakes.make_batch(4)
    _, metrics = updated(replace(batch, policy_version=np.where(batch.mask, 10, 0)))
    assert metrics["policy_lag/old_fraction"] == 1.0
    assert metrics["utilization/old_share"] == pytest.approx(1.0)


def test_a_kl_term_without_behaviour_logits_is_refused() -> None:
    batch = replace(fakes.make_batch(), behavior_logits=None)
    with pytest.raises(ValueError, match=r"kl_coefficient 0\.1 needs the behaviour policy's logits"):
        updated(batch, loss=LossWeights(kl_coefficient=0.1))


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 3 segments was given, and an update takes 4"):
        updated(fakes.select(fakes.make_batch(4), slice(0, 3)))


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


def test_out_of_memory_cuts_the_batch_smaller_and_the_update_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    batch = fakes.make_batch(8)
    torch.manual_seed(0)
    small = fakes.SmallMemoryPolicy(limit=3)
    engine = fakes.make_engine(small)
    learner = fakes.make_learner(engine, micro_batch=8, accumulation=1)
    with caplog.at_level(logging.WARNING):
        metrics = [learner.update(batch, policy_version=20) for _ in range(2)]
    # 20 decisions: 20, 10, 5 and at last 3 at a time; the second update starts where the first one ended.
    assert [record.args for record in caplog.records if "out of memory" in record.message] == [(2,), (4,), (8,)]
    plain = fakes.make_policy()
    reference = fakes.make_learner(fakes.make_engine(plain), micro_batch=8, accumulation=1)
    expected = [reference.update(batch, policy_version=20) for _ in range(2)]
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(small)) < 1e-6
    assert [point.pop("learner/micro_batches") for point in metrics] == [8.0, 8.0]
    assert [point.pop("learner/micro_batches") for point in expected] == [1.0, 1.0]
    assert metrics[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)
    assert engine.optimizer_steps == 2


class HoldingPolicy(fakes.SmallMemoryPolicy):
    """Holds tensors during a pass, and knows how often it was told to release those of one that failed."""

    forgotten = 0

    def forget_pass(self) -> None:
        self.forgotten += 1


def test_modules_release_what_a_pass_that_ran_out_of_memory_left_in_them() -> None:
    policy = HoldingPolicy(limit=3)
    updated(fakes.make_batch(8), policy=policy, micro_batch=8, accumulation=1)
    assert policy.forgotten == 3  # at 20, 10 and 5 decisions


class NoWorkspacePolicy(fakes.FakePolicy):
    """A CUDA library finds no room in the first forward pass with gradients."""

    passes = 0

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and self.passes == 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return super().network(inputs)


def test_a_library_without_room_for_its_workspace_counts_as_out_of_memory() -> None:
    _, metrics = updated(fakes.make_batch(), policy=NoWorkspacePolicy(), micro_batch=4, accumulation=1)
    assert metrics["learner/micro_batches"] == 2.0


class CountingPolicy(fakes.FakePolicy):
    """Counts its forward passes, without and with gradients; its dropout stands where it never acts."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.passes = [0, 0]

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.passes[torch.is_grad_enabled()] += 1
        return super().network(inputs)


@pytest.mark.parametrize("targets", [None, fakes.vtrace(discount=0.9, lambda_=1.0, rho_bar=1.0, c_bar=1.0)])
def test_a_batch_in_one_micro_batch_passes_once_and_the_update_is_the_same(targets: Vtrace | None) -> None:
    """Dropout makes the values come from a pass of their own, as more than one micro-batch does."""
    outcomes = []
    for dropout, parts, passes in ((0.0, 1, [0, 1]), (0.5, 1, [1, 1]), (0.0, 2, [2, 2])):
        torch.manual_seed(0)
        policy = CountingPolicy(dropout=dropout)
        batch = fakes.make_batch()
        updated(batch, policy=policy, targets=targets, micro_batch=4 // parts, accumulation=parts)
        assert policy.passes == passes
        outcomes.append(fakes.weights(policy))
    assert fakes.largest_difference(outcomes[0], outcomes[1]) < 1e-6
    assert fakes.largest_difference(outcomes[0], outcomes[2]) < 1e-6


class _NoRoomForGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        if len(gradient) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gradient


class SmallBackwardMemoryPolicy(fakes.FakePolicy):
    """Runs out of memory in the backward pass of more than 8 rows."""

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        output = super().network(inputs)
        return TokenOutput(logits=_NoRoomForGradients.apply(output.logits), values=output.values)


def test_out_of_memory_in_the_backward_pass_of_the_only_pass_begins_again_with_smaller_ones() -> None:
    batch = fakes.make_batch()  # 10 decisions
    torch.manual_seed(0)
    policy, metrics = updated(batch, policy=SmallBackwardMemoryPolicy(), micro_batch=4, accumulation=1)
    reference, _ = updated(batch, micro_batch=4, accumulation=1)
    assert metrics["learner/micro_batches"] == 2.0
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6


class RememberingPolicy(fakes.FakePolicy):
    """Knows how many outputs of its earlier passes are still held by somebody when a pass begins."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.held: list[int] = []

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.held.append(sum(output() is not None for output in self.outputs))
        output = super().network(inputs)
        self.outputs.append(weakref.ref(output.logits))
        return output


def test_a_rank_that_had_room_holds_nothing_when_all_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RememberingPolicy()
    engine = fakes.make_engine(policy)
    whole_sum, calls = engine.collectives.sum_over_ranks, []

    def other_rank_is_short_at_first(local: dict[str, float]) -> dict[str, float]:
        if "short" not in local:
            return whole_sum(local)
        calls.append(local)
        return {"short": 1.0, "hopeless": 0.0} if len(calls) == 1 else whole_sum(local)

    monkeypatch.setattr(engine.collectives, "sum_over_ranks", other_rank_is_short_at_first)
    fakes.make_learner(engine, micro_batch=4, accumulation=1).update(fakes.make_batch(), policy_version=20)
    assert policy.held[1] == 0
    assert len(policy.held) == 1 + 2 + 2  # one pass, then two micro-batches without and two with gradients


class OnceOutOfMemoryPolicy(fakes.FakePolicy):
    """Runs out of memory in the second forward pass with gradients, and never again."""

    passes = 0

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and self.passes == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().network(inputs)


def test_gradients_from_before_running_out_of_memory_are_forgotten() -> None:
    torch.manual_seed(0)
    policy, _ = updated(fakes.make_batch(), policy=OnceOutOfMemoryPolicy())
    reference, _ = updated(fakes.make_batch())
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6


def test_out_of_memory_with_one_decision_at_a_time_ends_the_run_with_advice() -> None:
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"CUDA out of memory\. .*policy\.gradient_checkpointing=true"
    ):
        updated(fakes.make_batch(), policy=fakes.SmallMemoryPolicy(limit=0))


def test_out_of_memory_under_deepspeed_ends_the_run_with_advice() -> None:
    """Its ranks meet inside the backward pass of a micro-batch. Not run under it: the engine's flag is what counts."""
    engine = fakes.make_engine(fakes.SmallMemoryPolicy(limit=3))
    engine.can_retry = False
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        fakes.make_learner(engine, micro_batch=4, accumulation=1).update(fakes.make_batch(), policy_version=20)
    assert any("lower learner.micro_batch" in note and "strategy=ddp" in note for note in caught.value.__notes__)


def test_more_micro_batches_than_decisions_still_update_once() -> None:
    batch = fakes.make_batch(2)  # 5 decisions
    policy = fakes.make_policy()
    engine = fakes.make_engine(policy)
    learner = fakes.make_learner(engine, micro_batch=1, accumulation=2)
    learner.num_micro_batches = 8
    learner.update(batch, policy_version=20)
    reference, _ = updated(batch, micro_batch=2, accumulation=1)
    assert engine.optimizer_steps == 1
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6
