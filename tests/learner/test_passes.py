"""How often an update goes through the policy, and that fewer passes give the same update."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import learner_fakes as fakes
import numpy as np
import pytest
import rank_programs
import torch
from ranks import run_ranks

from vla_rl.credit import Credit
from vla_rl.learner.batches import first_draws
from vla_rl.learner.learner import Learner
from vla_rl.learner.moments import RunningMoments
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.section import Section, TimeLimit
from vla_rl.types import PolicyInputs, SegmentBatch

S = TypeVar("S", bound=Section)


def changed(section: S, **fields: Any) -> S:
    return section.model_copy(update=fields)


GAE = fakes.gae(discount=0.9, gae_lambda=0.5)
VTRACE = fakes.vtrace(discount=0.9, lambda_=0.8, rho_bar=1.0, c_bar=1.0)
ACTING_GAE, ACTING_VTRACE = changed(GAE, values="acting"), changed(VTRACE, values="acting")
LOSS = LossWeights(value_coefficient=0.5, entropy_coefficient=0.01)
RUNNING = changed(LOSS, advantage_moments="running")
PLAIN = LossWeights(value_coefficient=0.5, normalize_advantages=False)


class CountingPolicy(fakes.FakePolicy):
    """Remembers how many rows its passes had, without and with gradients."""

    def __init__(self, *, limit: int = 10**6) -> None:
        super().__init__()
        self.limit = limit
        self.free: list[int] = []
        self.graded: list[int] = []

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        if torch.is_grad_enabled() and len(inputs.state) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        (self.graded if torch.is_grad_enabled() else self.free).append(len(inputs.state))
        return super().network(inputs)


def make_learner(
    targets: Credit,
    loss: LossWeights = LOSS,
    *,
    micro_batch: int = 2,
    accumulation: int = 2,
    limit: int = 10**6,
) -> tuple[CountingPolicy, Learner]:
    torch.manual_seed(0)
    policy = CountingPolicy(limit=limit)
    engine = fakes.make_engine(policy)
    learner = fakes.make_learner(engine, targets=targets, loss=loss, micro_batch=micro_batch, accumulation=accumulation)
    return policy, learner


def update(
    batch: SegmentBatch,
    targets: Credit,
    loss: LossWeights = LOSS,
    *,
    micro_batch: int = 2,
    accumulation: int = 2,
) -> tuple[CountingPolicy, dict[str, float]]:
    policy, learner = make_learner(targets, loss, micro_batch=micro_batch, accumulation=accumulation)
    return policy, learner.update(batch, policy_version=20)


def valued(batch: SegmentBatch, values: np.ndarray) -> SegmentBatch:
    """With the values (B, T + 1) as those of acting time, where somebody acted."""
    known = ~np.isnan(batch.behavior_values)
    return replace(batch, behavior_values=np.where(known, values, np.nan).astype(np.float32))


def as_acted(batch: SegmentBatch) -> SegmentBatch:
    """As if the policy that is trained had acted."""
    policy = fakes.make_policy()
    state = torch.from_numpy(batch.state).reshape(-1, fakes.STATE_DIM)
    inputs = PolicyInputs(frames=torch.zeros(len(state), 0, 0, 0, 3), state=state, task_index=torch.zeros(len(state)))
    with torch.no_grad():
        values = policy(inputs).values.reshape(batch.state.shape[:2]).numpy()
    return valued(fakes.on_policy(batch, policy), values)


def moments_of(batch: SegmentBatch, targets: Credit) -> torch.Tensor:
    """The batch's own advantage moments, as an update by its own moments finds them."""
    _, learner = make_learner(targets, micro_batch=len(batch.mask), accumulation=1)
    learner.update(batch, policy_version=20)
    assert learner.moments.sums is not None
    return learner.moments.sums


# --- values from acting time -----------------------------------------------------------------------------------------


def hand_batch(*, ends: str) -> SegmentBatch:
    """One segment with r = [1, 0, 2]; its behaviour saw V = [0.5, 1, -0.5], and 4 after it unless the episode ended."""
    batch = fakes.make_batch(1)
    values = [0.5, 1.0, -0.5, 4.0 if ends == "cut" else math.nan]
    return replace(
        batch,
        rewards=np.array([[1.0, 0.0, 2.0]], dtype=np.float32),
        behavior_values=np.array([values], dtype=np.float32),
        terminated=np.array([[False, False, ends == "terminated"]]),
        truncated=np.array([[False, False, ends == "truncated"]]),
    )


@pytest.mark.parametrize(
    ("ends", "advantages"),
    [
        ("cut", [1.98275, 1.295, 6.1]),  # the next decision's value bootstraps
        ("terminated", [1.25375, -0.325, 2.5]),
        ("truncated", [1.25375, -0.325, 2.5]),  # the time limit is an end
    ],
)
def test_gae_with_values_of_acting_time_by_hand_needs_no_pass_for_values(ends: str, advantages: list[float]) -> None:
    batch = hand_batch(ends=ends)
    batch = fakes.on_policy(batch, fakes.make_policy())  # ρ = 1
    targets = changed(ACTING_GAE, time_limit="end")
    policy, metrics = update(batch, targets, PLAIN, micro_batch=1, accumulation=1)
    assert metrics["learner/policy_loss"] == pytest.approx(-sum(advantages) / 3, abs=1e-5)
    assert (policy.free, policy.graded) == ([], [3])
    # The critic is still measured by its own values: squared error to A + V of acting time.
    own = as_acted(batch).behavior_values[0, :3]
    value_targets = np.add(advantages, [0.5, 1.0, -0.5])
    assert metrics["learner/value_loss"] == pytest.approx(float(np.mean((value_targets - own) ** 2)), rel=1e-5)
    explained = 1 - np.var(value_targets - own) / np.var(value_targets)
    assert metrics["learner/explained_variance"] == pytest.approx(float(explained), rel=1e-4)


def test_the_learner_values_the_last_observation_of_an_interrupted_task_for_nobody_acted_there() -> None:
    batch = fakes.on_policy(hand_batch(ends="truncated"), fakes.make_policy())
    own = float(as_acted(hand_batch(ends="cut")).behavior_values[0, 3])
    policy, metrics = update(batch, ACTING_GAE, PLAIN, micro_batch=1, accumulation=1)
    last = 2 + 0.9 * own + 0.5
    advantages = [1.4 + 0.45 * (-1.45 + 0.45 * last), -1.45 + 0.45 * last, last]
    assert metrics["learner/policy_loss"] == pytest.approx(-sum(advantages) / 3, rel=1e-5)
    assert (policy.free, policy.graded) == ([1], [3])


def test_vtrace_with_values_of_acting_time_takes_its_ratios_from_the_current_weights() -> None:
    """δ = [1.4, -1.45, 6.1], λ = 1. At ρ = 1: A = [1.4 + 0.9 · 4.04, -1.45 + 0.9 · 6.1, 6.1] = [5.036, 4.04, 6.1].

    Then every token's log-ratio is -0.1, and that of a decision, of which six tokens ran, is their sum.
    """
    batch = fakes.on_policy(hand_batch(ends="cut"), fakes.make_policy())
    _, metrics = update(batch, changed(ACTING_VTRACE, lambda_=1.0), PLAIN, micro_batch=1, accumulation=1)
    assert metrics["learner/policy_loss"] == pytest.approx(-(5.036 + 4.04 + 6.1) / 3, rel=1e-5)
    lagging = replace(batch, behavior_logprobs=batch.behavior_logprobs + 0.1)  # six tokens: ρ = exp(-0.6) everywhere
    _, metrics = update(lagging, changed(ACTING_VTRACE, lambda_=1.0), PLAIN, micro_batch=1, accumulation=1)
    rho, advantages, correction = math.exp(-0.6), [], 0.0
    for delta in (6.1, -1.45, 1.4):
        advantages.append(delta + 0.9 * correction)
        correction = rho * delta + 0.9 * rho * correction
    executed_ratio = math.exp(-0.1)
    trust = math.exp(-(0.1**2) / 2)
    assert metrics["learner/policy_loss"] == pytest.approx(-trust * executed_ratio * sum(advantages) / 3, rel=1e-4)


@pytest.mark.parametrize("time_limit", ["end", "bootstrap"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("current", "acting"), [(GAE, ACTING_GAE), (VTRACE, ACTING_VTRACE)])
def test_at_lag_zero_values_of_acting_time_give_the_same_update(
    current: Credit, acting: Credit, parts: int, time_limit: TimeLimit
) -> None:
    batch = as_acted(fakes.make_batch())
    cut = 4 // parts
    one, metrics = update(batch, changed(current, time_limit=time_limit), micro_batch=cut, accumulation=parts)
    other, expected = update(batch, changed(acting, time_limit=time_limit), micro_batch=cut, accumulation=parts)
    assert fakes.largest_difference(fakes.weights(one), fakes.weights(other)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_stored_values_make_the_targets_only_where_they_are_asked_for() -> None:
    batch = as_acted(fakes.make_batch())
    shifted = valued(batch, batch.behavior_values + np.arange(4))
    for targets, differs in ((GAE, False), (ACTING_GAE, True), (VTRACE, False), (ACTING_VTRACE, True)):
        weights = [fakes.weights(update(each, targets)[0]) for each in (batch, shifted)]
        assert (fakes.largest_difference(*weights) > 1e-6) is differs


def test_an_observation_after_which_nothing_counts_goes_through_no_pass() -> None:
    """Of four segments one is terminated and one truncated: 10 decisions, and 2 or 3 observations after them."""
    after_last: dict[TimeLimit, int] = {"end": 2, "bootstrap": 3}
    for time_limit, after in after_last.items():
        policy, _ = update(fakes.make_batch(), changed(GAE, time_limit=time_limit))
        assert sum(policy.free) == 10 + after
        assert sum(policy.graded) == 10


# --- one pass for values and loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [GAE, VTRACE, ACTING_VTRACE])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_with_running_moments_there_is_one_pass_per_micro_batch(targets: Credit, accumulation: int) -> None:
    """The first update has no moments before it and takes two."""
    policy, learner = make_learner(targets, RUNNING, micro_batch=4 // accumulation, accumulation=accumulation)
    learner.update(fakes.make_batch(), policy_version=20)
    policy.free.clear()
    policy.graded.clear()
    learner.update(fakes.make_batch(seed=1), policy_version=20)
    assert policy.free == []
    assert len(policy.graded) == accumulation
    assert sum(policy.graded) == 10 + (1 if targets.values == "acting" else 3)
    assert learner.seconds["values"] == 0.0
    assert learner.seconds["loss"] > 0.0


@pytest.mark.parametrize("targets", [GAE, changed(GAE, time_limit="end"), VTRACE, ACTING_VTRACE])
@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_one_pass_gives_the_update_of_two_where_the_moments_are_the_same(targets: Credit, accumulation: int) -> None:
    batch = fakes.make_batch(8)
    batch = replace(batch, task_index=np.array([0, 1, 2, 0, 1, 2, 0, 1]))
    cut = 8 // accumulation
    two, expected = update(batch, targets, micro_batch=cut, accumulation=accumulation)
    one, learner = make_learner(targets, RUNNING, micro_batch=cut, accumulation=accumulation)
    learner.moments.add(moments_of(batch, targets))
    metrics = learner.update(batch, policy_version=20)
    assert one.free == []
    assert fakes.largest_difference(fakes.weights(two), fakes.weights(one)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_running_moments_are_those_of_the_updates_before() -> None:
    """Twice the deviation and the mean shifted by 3: every advantage is (A - mean - 3) / (2 std)."""
    batch = fakes.make_batch()
    total, square, count = moments_of(batch, GAE).tolist()
    mean, variance = total / count, square / count - (total / count) ** 2
    shifted = [count * (mean + 3), count * (4 * variance + (mean + 3) ** 2), count]
    loss = LossWeights(value_coefficient=0.0, advantage_moments="running")
    _, learner = make_learner(GAE, loss)
    learner.moments.add(torch.tensor(shifted, dtype=torch.float64))
    batch = fakes.on_policy(batch, fakes.make_policy())  # ρ = 1: the loss is minus the mean of the advantages' weights
    metrics = learner.update(batch, policy_version=20)
    run = batch.executed[batch.mask] * 3
    _, plain = make_learner(GAE, PLAIN)
    mean_advantage = -plain.update(batch, policy_version=20)["learner/policy_loss"]  # over executed tokens
    assert run.sum() == 54
    assert metrics["learner/policy_loss"] == pytest.approx(
        -(mean_advantage - mean - 3) / (2 * math.sqrt(variance)), rel=1e-4
    )


def test_moments_of_older_updates_weigh_less_and_less() -> None:
    moments = RunningMoments()
    assert moments.sums is None
    assert RunningMoments().state_dict() == {}
    for update_moments in ([1.0, 5.0, 2.0], [3.0, 7.0, 4.0], [0.0, 1.0, 1.0]):
        moments.add(torch.tensor(update_moments, dtype=torch.float64))
    assert moments.sums is not None
    assert moments.sums.tolist() == pytest.approx([0.81 + 2.7, 4.05 + 6.3 + 1.0, 1.62 + 3.6 + 1.0])
    resumed = RunningMoments()
    resumed.load_state_dict(moments.state_dict())
    assert resumed.sums is not None
    assert resumed.sums.tolist() == moments.sums.tolist()
    resumed.load_state_dict({})
    assert resumed.sums is None


@pytest.mark.parametrize("targets", [GAE, ACTING_VTRACE])
def test_one_pass_without_room_is_cut_into_fewer_segments_and_then_into_two_passes(targets: Credit) -> None:
    """Ten decisions; with room for 4 rows a segment is one micro-batch, with room for 3 it must be cut."""
    batch = fakes.make_batch()
    moments = moments_of(batch, targets)
    plain, learner = make_learner(targets, RUNNING, micro_batch=4, accumulation=1)
    learner.moments.add(moments)
    expected = learner.update(batch, policy_version=20)
    expected.pop("learner/micro_batches")
    assert plain.free == []
    for limit, parts in ((4, 4), (2, 8)):
        policy, learner = make_learner(targets, RUNNING, micro_batch=4, accumulation=1, limit=limit)
        learner.moments.add(moments)
        metrics = learner.update(batch, policy_version=20)
        assert metrics.pop("learner/micro_batches") == parts
        assert bool(policy.free) is (limit == 2)
        assert fakes.largest_difference(fakes.weights(plain), fakes.weights(policy)) < 1e-6
        assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


# --- no observation twice --------------------------------------------------------------------------------------------


def reusing(targets: Credit, *, loss: LossWeights = LOSS, limit: int = 10**6) -> tuple[CountingPolicy, Learner]:
    torch.manual_seed(0)
    policy = CountingPolicy(limit=limit)
    return policy, fakes.make_learner(fakes.make_engine(policy), targets=targets, loss=loss, reuse_passes=True)


def drawn(batch: SegmentBatch, segments: list[int]) -> SegmentBatch:
    """The batch in which these segments were drawn."""
    index = np.array(segments)
    arrays: dict[str, Any] = {name: getattr(batch, name) for name in SegmentBatch.__dataclass_fields__}
    selected: dict[str, Any] = {name: None if it is None else it[index] for name, it in arrays.items()}
    return SegmentBatch(**selected)


@pytest.mark.parametrize("targets", [GAE, VTRACE, ACTING_VTRACE])
def test_passes_that_are_kept_give_the_update_of_two_passes(targets: Credit) -> None:
    batch = fakes.make_batch()
    plain, expected = update(batch, targets)
    policy, learner = reusing(targets)
    metrics = learner.update(batch, policy_version=20)
    assert (len(plain.free), len(plain.graded)) == (2, 2)
    assert (len(policy.free), len(policy.graded)) == (0, 2)
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(policy)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", [LOSS, PLAIN])
def test_a_segment_that_was_drawn_twice_passes_once_and_counts_twice(loss: LossWeights) -> None:
    """Segment 0 has 3 decisions and is cut, 1 ends after 2: four rows of the one and two of the other."""
    batch = drawn(fakes.make_batch(), [0, 1, 0, 0])
    targets = changed(GAE, time_limit="end")
    plain, expected = update(batch, targets, loss)
    policy, learner = reusing(targets, loss=loss)
    metrics = learner.update(batch, policy_version=20)
    rows = 3 + 3 + 3 + 2 + 3  # decisions, and what follows the three that are cut
    assert sum(plain.graded if loss is PLAIN else plain.free) == rows
    # Micro-batches hold 6 and 5 decisions in order: of segment 0 twice; once and segment 1.
    assert policy.free == []
    assert sum(policy.graded) < rows - 3
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(policy)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_segments_of_one_episode_are_not_one_segment() -> None:
    batch = replace(fakes.make_batch(), episode=np.zeros(4, dtype=np.int64))
    assert first_draws(batch).tolist() == [0, 1, 2, 3]
    assert first_draws(drawn(batch, [2, 1, 2, 1])).tolist() == [0, 1, 0, 1]


def test_without_room_for_kept_passes_values_get_their_own_again() -> None:
    batch = fakes.make_batch()
    plain, expected = update(batch, GAE)
    policy, learner = reusing(GAE, limit=5)  # a micro-batch has 5 decisions, and 6 or 7 rows with what follows
    metrics = learner.update(batch, policy_version=20)
    assert policy.free != []
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(policy)) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("field", ["rewards", "behavior_logprobs", "state"])
def test_an_update_in_one_pass_that_is_not_finite_is_skipped_and_leaves_the_moments(field: str) -> None:
    policy, learner = make_learner(GAE, RUNNING)
    batch = fakes.make_batch()
    learner.update(batch, policy_version=20)
    before, sums = fakes.weights(policy), learner.moments.sums
    array = getattr(batch, field).copy()
    array[0, 0] = np.nan
    metrics = learner.update(replace(batch, **{field: array}), policy_version=20)
    assert metrics["learner/skipped_updates"] == 1
    assert fakes.largest_difference(before, fakes.weights(policy)) == 0.0
    assert learner.moments.sums is sums


@pytest.mark.parametrize("targets", ["gae", "acting"])
def test_two_ranks_in_one_pass_equal_one_that_saw_the_union(tmp_path: Path, targets: str) -> None:
    one = rank_programs.one_pass(strategy="single", values=targets)
    two = run_ranks("one_pass", tmp_path, num_ranks=2, strategy="ddp", values=targets)
    assert two[0] == two[1]
    assert two[0]["moments"] == pytest.approx(one["moments"], rel=1e-5)
    for name, expected in one["weights"].items():
        assert two[0]["weights"][name] == pytest.approx(expected, abs=1e-6), name
    for metrics, expected in zip(two[0]["metrics"], one["metrics"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)


# --- lag 0 -----------------------------------------------------------------------------------------------------------


def test_log_ratios_at_lag_zero_by_hand() -> None:
    """Two decisions of lag 0 with three and six executed tokens; the others are far off and must not count."""
    batch = fakes.on_policy(fakes.make_batch(), fakes.make_policy())
    versions = np.where(batch.mask, 19, 0)
    versions[0, 1] = versions[1, 1] = 20
    offset = np.full_like(batch.behavior_logprobs, 5.0)
    offset[0, 1] = [-0.1, -0.2, -0.3, 0.4, -0.5, -0.6]
    offset[1, 1] = [0.01, -0.02, -0.03, 9.0, 9.0, 9.0]  # the second control step never ran
    batch = replace(batch, policy_version=versions, behavior_logprobs=batch.behavior_logprobs + offset)
    tokens = [0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for ratio in ("token", "step", "joint"):
        _, metrics = update(batch, GAE, changed(LOSS, ratio=ratio))
        assert metrics["ratio/lag0_abs_log_max"] == pytest.approx(0.6, abs=1e-5)
        assert metrics["ratio/lag0_abs_log_p95"] == pytest.approx(float(np.quantile(tokens, 0.95)), abs=1e-5)
        assert metrics["ratio/lag0_joint_abs_log_max"] == pytest.approx(1.3, abs=1e-5)
        assert metrics["ratio/lag0_joint_abs_log_p95"] == pytest.approx(0.04 + 0.95 * 1.26, abs=1e-5)


def test_without_a_decision_of_lag_zero_nothing_is_said_of_it() -> None:
    batch = fakes.make_batch()
    _, metrics = update(replace(batch, policy_version=np.where(batch.mask, 19, 0)), GAE)
    assert not any("lag0" in name for name in metrics)
