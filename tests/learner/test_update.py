"""An update from a batch: numbers worked out by hand, and what must not change it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from torch import nn

from vla_rl.credit import Vtrace
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


@pytest.mark.parametrize(
    ("terminated", "advantages"),
    [(True, [1.25375, -0.325, 2.5]), (False, [1.98275, 1.295, 6.1])],
)
def test_gae_by_hand_truncation_bootstraps_from_the_stored_last_observation(
    terminated: bool, advantages: list[float]
) -> None:
    batch = table_batch([0.5, 1.0, -0.5, 4.0], [1.0, 0.0, 2.0], terminated=terminated)
    targets = fakes.gae(discount=0.9, gae_lambda=0.5)
    _, metrics = fakes.updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
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
    _, metrics = fakes.updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
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
    _, metrics = fakes.updated(batch, policy=TablePolicy(), targets=targets, loss=PLAIN, micro_batch=1, accumulation=1)
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
    _, metrics = fakes.updated(batch, policy=TablePolicy(), surrogate=ppo, loss=loss, micro_batch=1, accumulation=1)
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
    _, metrics = fakes.updated(batch, policy=TablePolicy(), targets=targets, loss=loss, micro_batch=1, accumulation=1)
    expected = (1.98275 + 1.295 + 6.1) / 3 * math.sqrt(6 * (0.8**2 + 4 * 0.2**2))
    assert metrics["learner/grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_values_are_recomputed_and_the_stored_ones_have_no_effect() -> None:
    batch = fakes.make_batch()
    other = replace(batch, behavior_values=batch.behavior_values + 5.0)
    assert fakes.weights(fakes.updated(batch)[0])["scale"].equal(fakes.weights(fakes.updated(other)[0])["scale"])


def test_cutting_a_batch_into_micro_batches_changes_nothing() -> None:
    batch = fakes.make_batch(8)
    whole, whole_metrics = fakes.updated(batch, micro_batch=8, accumulation=1)
    for accumulation in (2, 8):
        parts, metrics = fakes.updated(batch, micro_batch=8 // accumulation, accumulation=accumulation)
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
    bucketed, metrics = fakes.updated(batch, policy=BucketsOfTasks(), targets=targets, micro_batch=2, accumulation=4)
    # Decisions 3 2 3 2 3 2 3 2: 8 of task 0, 7 of task 1, 5 of task 2, cut into four parts of 5.
    assert bucketed.told == [(0,), (0, 10), (10,), (20,)]
    plain, expected = fakes.updated(batch, targets=targets, micro_batch=2, accumulation=4)
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
    clean_policy, clean = fakes.updated(batch)
    policy, metrics = fakes.updated(replace(batch, state=state, **poisoned, **flags, **lags))
    assert metrics == clean
    assert fakes.largest_difference(fakes.weights(policy), fakes.weights(clean_policy)) == 0.0


def test_tokens_of_control_steps_that_never_ran_have_no_effect() -> None:
    batch = fakes.make_batch()
    logprobs, tokens = batch.behavior_logprobs.copy(), batch.tokens.copy()
    logprobs[1::2, 1, 3:] = np.nan  # one control step of two ran: tokens 3, 4, 5 belong to the other
    tokens[1::2, 1, 3:] = 0
    clean_policy, clean = fakes.updated(batch)
    policy, metrics = fakes.updated(replace(batch, behavior_logprobs=logprobs, tokens=tokens))
    assert metrics == clean
    assert fakes.largest_difference(fakes.weights(policy), fakes.weights(clean_policy)) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_batch_without_lag_has_ratio_one(temperature: float) -> None:
    batch = fakes.on_policy(fakes.make_batch(), fakes.make_policy(), temperature=temperature)
    _, metrics = fakes.updated(batch, temperature=temperature)
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
    policy, _ = fakes.updated(fakes.make_batch())
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
        fakes.updated(batch, policy=policy, targets=targets, micro_batch=4 // parts, accumulation=parts)
        assert policy.passes == passes
        outcomes.append(fakes.weights(policy))
    assert fakes.largest_difference(outcomes[0], outcomes[1]) < 1e-6
    assert fakes.largest_difference(outcomes[0], outcomes[2]) < 1e-6


def test_more_micro_batches_than_decisions_still_update_once() -> None:
    batch = fakes.make_batch(2)  # 5 decisions
    policy = fakes.make_policy()
    engine = fakes.make_engine(policy)
    learner = fakes.make_learner(engine, micro_batch=1, accumulation=2)
    learner.num_micro_batches = 8
    learner.update(batch, policy_version=20)
    reference, _ = fakes.updated(batch, micro_batch=2, accumulation=1)
    assert engine.optimizer_steps == 1
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6
