"""Updates from groups: no critic, one advantage per episode, and what an aggregation weighs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from vla_rl.credit import Credit, Experience, Gae, Group, Targets
from vla_rl.learner.batches import Rows, token_mask
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.surrogates import DecoupledPpo, Ppo, Surrogate
from vla_rl.types import SegmentBatch

A = fakes.ACTIONS.num_tokens
MEAN = Group(name="group", size=2, baseline="mean")
PLAIN = LossWeights(normalize_advantages=False)


group_batch, without_critic = fakes.group_batch, fakes.without_critic


def update(
    batch: SegmentBatch,
    *,
    credit: Credit = MEAN,
    loss: LossWeights = PLAIN,
    parts: int = 1,
    surrogate: str | Surrogate = "gipo",
    policy: torch.nn.Module | None = None,
    **engine: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after an update, and its metrics."""
    policy = policy or without_critic()
    learner = fakes.make_learner(
        fakes.make_engine(policy, **engine), targets=credit, loss=loss, micro_batch=4 // parts, accumulation=parts,
        surrogate=surrogate, longest_episode=5,
    )  # fmt: skip
    metrics = learner.update(batch, policy_version=20)
    return fakes.weights(policy), metrics


def on_policy(**changes: Any) -> SegmentBatch:
    return fakes.on_policy(group_batch(**changes), without_critic())


def loss_with(aggregation: Literal["token", "trajectory", "constant"], **others: Any) -> LossWeights:
    return LossWeights(normalize_advantages=False, aggregation=aggregation, **others)


def test_at_ratio_one_each_aggregation_weighs_the_advantages_as_it_says() -> None:
    """Advantages −1 and 1, −5/2 and 5/2; lengths 3 and 2 decisions, of A tokens each; the longest episode has 5.

    token: −(−3 + 2 − 7.5 + 5) / 10. trajectory: the mean of the advantages, 0. constant: −(−3.5) A / (4 · 5 A).
    """
    batch = on_policy()
    losses = {
        name: update(batch, loss=loss_with(name))[1]["learner/policy_loss"]
        for name in ("token", "trajectory", "constant")
    }
    assert losses["token"] == pytest.approx(0.35, abs=1e-6)
    assert losses["trajectory"] == pytest.approx(0.0, abs=1e-6)
    assert losses["constant"] == pytest.approx(3.5 / 20, abs=1e-6)


@pytest.mark.parametrize("ratio", ["token", "step", "joint"])
def test_token_and_trajectory_are_the_same_where_all_episodes_are_equally_long_and_only_there(ratio: str) -> None:
    def after(lengths: tuple[int, ...], aggregation: str) -> dict[str, torch.Tensor]:
        loss = LossWeights.model_validate({"normalize_advantages": False, "aggregation": aggregation, "ratio": ratio})
        return update(group_batch(lengths=lengths), loss=loss, max_grad_norm=1e6)[0]

    equal, unequal = (2, 2, 2, 2), (3, 2, 3, 2)
    assert fakes.largest_difference(after(equal, "token"), after(equal, "trajectory")) < 1e-6
    assert fakes.largest_difference(after(unequal, "token"), after(unequal, "trajectory")) > 1e-5


def test_a_constant_scales_every_ratio_alike() -> None:
    """4 episodes times the 5 decisions of the longest possible, where the batch has 10: half of what token weighs."""
    _, token = update(group_batch(), loss=loss_with("token"))
    _, constant = update(group_batch(), loss=loss_with("constant"))
    assert constant["learner/policy_loss"] == pytest.approx(token["learner/policy_loss"] / 2, rel=1e-5)
    assert constant["learner/grad_norm"] == pytest.approx(token["learner/grad_norm"] / 2, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "trajectory", "constant"])
@pytest.mark.parametrize("ratio", ["token", "step"])
def test_micro_batches_change_nothing(aggregation: str, ratio: str) -> None:
    loss = LossWeights.model_validate({"normalize_advantages": False, "aggregation": aggregation, "ratio": ratio})
    whole, metrics = update(group_batch(), loss=loss)
    for parts in (2, 4):
        cut, same = update(group_batch(), loss=loss, parts=parts)
        assert fakes.largest_difference(whole, cut) < 1e-6
        assert same["learner/policy_loss"] == pytest.approx(metrics["learner/policy_loss"], abs=1e-6)


def test_segments_of_one_episode_weigh_as_one_trajectory() -> None:
    """Episodes 11 and 5 of a group, the first in two segments of 3 and 2 decisions: A = −1 and 1 cancel."""
    batch = fakes.select(fakes.on_policy(group_batch(), without_critic()), slice(0, 3))
    rewards = np.zeros_like(batch.rewards)
    rewards[[0, 1, 2], 0] = [0.5, 0.5, 3.0]
    batch = replace(batch, episode=np.array([11, 11, 5]), group=np.full(3, 9), rewards=rewards)
    _, metrics = update(batch, loss=loss_with("trajectory"))
    assert metrics["learner/policy_loss"] == pytest.approx(0.0, abs=1e-6)
    _, metrics = update(batch, loss=loss_with("token"))
    assert metrics["learner/policy_loss"] == pytest.approx((5 - 3) / 8, abs=1e-6)


class ByRatios(Group):
    """Groups whose advantages depend on the log-ratios of all of the batch."""

    @property
    def needs_log_ratios(self) -> bool:
        return True

    def assign(self, experience: Experience) -> Targets:
        targets = super().assign(experience)
        return replace(targets, advantages=targets.advantages + experience.log_ratios[experience.mask].sum())


@pytest.mark.parametrize("aggregation", ["token", "trajectory"])
def test_a_credit_with_groups_and_ratios_sees_all_of_the_batch_in_every_micro_batch(
    aggregation: Literal["token", "trajectory"],
) -> None:
    """Episodes 11 and 5 of one group, of two segments each, which micro-batches separate."""
    batch = replace(group_batch(), episode=np.array([11, 11, 5, 5]), group=np.full(4, 9))
    credit = ByRatios(name="group", size=2, baseline="mean")
    whole, metrics = update(batch, credit=credit, loss=loss_with(aggregation))
    cut, same = update(batch, credit=credit, loss=loss_with(aggregation), parts=4)
    assert same["learner/policy_loss"] == pytest.approx(metrics["learner/policy_loss"], rel=1e-5)
    assert fakes.largest_difference(whole, cut) < 1e-6


def test_a_policy_without_a_critic_learns_and_measures_nothing_of_one() -> None:
    policy = without_critic()
    before = fakes.weights(policy)
    after, metrics = update(group_batch(), policy=policy, loss=LossWeights(entropy_coefficient=0.01))
    assert fakes.largest_difference(before, after) > 0
    assert not [name for name in metrics if "value" in name or "explained" in name]
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_critic_that_is_there_is_not_trained() -> None:
    policy = fakes.make_policy()
    before = fakes.weights(policy)
    after, _ = update(group_batch(), policy=policy)
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert "policy_head.1.bias" in moved
    assert not [name for name in moved if name.startswith("value_head")]


def test_what_was_not_executed_of_a_closing_chunk_is_in_no_loss() -> None:
    """An episode of 11 control steps with chunks of 8: its second decision has 3 steps, 21 of 56 tokens."""
    batch = replace(
        fakes.make_batch(1),
        tokens=np.zeros((1, fakes.LENGTH, 56), dtype=np.int16),
        executed=np.array([[8, 3, 0]], dtype=np.int16),
    )
    mask = token_mask(batch, Rows(np.zeros(2, dtype=int), np.arange(2)), action_dim=7)
    assert mask.sum(dim=1).tolist() == [56, 21]
    assert mask[1, :21].all()


def test_the_ratio_of_a_control_step_is_the_product_of_its_tokens() -> None:
    """The behaviour was half as likely to take token 0 and twice token 1, of one step: its ratio is 1."""
    batch = on_policy()
    logprobs = batch.behavior_logprobs.copy()
    logprobs[..., 0] -= math.log(2.0)
    logprobs[..., 1] += math.log(2.0)
    ppo = Ppo(name="ppo")
    clipped = {}
    for ratio in ("token", "step", "joint"):
        loss = LossWeights.model_validate({"normalize_advantages": False, "ratio": ratio})
        clipped[ratio] = update(replace(batch, behavior_logprobs=logprobs), loss=loss, surrogate=ppo)[1]
    assert clipped["token"]["learner/clip_fraction"] == pytest.approx(2 / A)
    assert clipped["step"]["learner/clip_fraction"] == clipped["joint"]["learner/clip_fraction"] == 0.0
    logprobs[..., 1] -= math.log(2.0)  # one step of two has ratio 2, and so has the decision
    doubled = replace(batch, behavior_logprobs=logprobs)
    for ratio, share in (("step", 0.5), ("joint", 1.0)):
        loss = LossWeights.model_validate({"normalize_advantages": False, "ratio": ratio})
        assert update(doubled, loss=loss, surrogate=ppo)[1]["learner/clip_fraction"] == pytest.approx(share)


def test_every_decision_has_the_proximal_policy_of_its_own_lag() -> None:
    """All ratios are 1.44; first decisions have lag 1 (w = 1, r = 1.44), later ones lag 2 (w = r = 1.2).

    Bad ones are not clipped: -(1 + 5/2) 1.44 times 3 decisions. Good ones: (1.25 + 1.44) (1 + 5/2). Ten decisions.
    """
    batch = on_policy()
    lag = np.where(np.arange(fakes.LENGTH) == 0, 1, 2)
    batch = replace(
        batch,
        behavior_logprobs=batch.behavior_logprobs - math.log(1.44),
        policy_version=np.broadcast_to(20 - lag, batch.mask.shape),
    )
    surrogate = DecoupledPpo(name="decoupled_ppo", clip_high=0.25)
    for parts in (1, 4):
        _, metrics = update(batch, surrogate=surrogate, parts=parts)
        assert metrics["learner/policy_loss"] == pytest.approx(3.5 * (3 * 1.44 - 2.69) / 10, abs=1e-5)
        assert metrics["learner/clip_fraction"] == pytest.approx(0.4)  # of r
        assert metrics["utilization/dead"] == pytest.approx(0.2)
        assert metrics["policy_lag/mean"] == pytest.approx(1.6)


def test_a_step_that_was_not_executed_has_no_ratio() -> None:
    batch = on_policy()
    executed = np.where(batch.mask, 1, 0).astype(np.int16)
    logprobs = batch.behavior_logprobs.copy()
    logprobs[..., fakes.ACTIONS.action_dim :] = math.nan  # of the second step
    loss = LossWeights(normalize_advantages=False, ratio="step")
    _, metrics = update(replace(batch, executed=executed, behavior_logprobs=logprobs), loss=loss)
    assert metrics["learner/policy_loss"] == pytest.approx(0.35, abs=1e-6)


def test_memory_that_does_not_suffice_halves_the_micro_batches_of_groups_too() -> None:
    small = fakes.SmallMemoryPolicy(limit=2)
    policy = fakes.make_policy()
    small.load_state_dict(policy.state_dict())
    cut, metrics = update(group_batch(), policy=small)
    reference, _ = update(group_batch(), policy=policy)
    assert metrics["learner/micro_batches"] == 8
    assert fakes.largest_difference(reference, cut) < 1e-6


def test_short_episodes_take_fewer_micro_batches() -> None:
    """A batch has room for 12 decisions in 4 parts of 3; 4 decisions are passed in 2."""
    policy, sizes = without_critic(), []
    policy.get_submodule("trunk").register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    update(group_batch(lengths=(1, 1, 1, 1)), policy=policy, parts=4)
    assert sizes == [2, 2]


def test_fewer_segments_than_an_update_can_take_are_fine_for_groups_and_more_are_not() -> None:
    half = fakes.select(group_batch(), slice(0, 2))
    update(half)
    with pytest.raises(ValueError, match="2 segments was given, and an update takes 4"):
        update(half, credit=Gae(name="gae", time_limit="end"), policy=fakes.make_policy())
    learner = fakes.make_learner(fakes.make_engine(without_critic()), targets=MEAN, micro_batch=1, accumulation=2)
    with pytest.raises(ValueError, match="4 segments was given, and an update takes at most 2"):
        learner.update(group_batch(), policy_version=0)


def test_an_aggregation_over_episodes_needs_whole_ones() -> None:
    engine = fakes.make_engine(fakes.make_policy())
    for aggregation in ("trajectory", "constant"):
        with pytest.raises(ValueError, match=f"loss.aggregation: {aggregation} weighs whole episodes"):
            fakes.make_learner(engine, loss=LossWeights.model_validate({"aggregation": aggregation}))
    with pytest.raises(ValueError, match="needs the decisions of the longest episode"):
        fakes.make_learner(engine, targets=MEAN, loss=LossWeights(aggregation="constant"))
