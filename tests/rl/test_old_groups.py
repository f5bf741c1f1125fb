"""Groups that are old, and of several versions, on bandits of one and two decisions whose gradients are known exactly.

Three actions with rewards 0, ½ and 1, a softmax policy, groups of three members. Expectations are sums over all 27
groups, so nothing is estimated; gradients are those of the program's own surrogates and advantages.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch

from vla_rl.rl.groups import group_advantages
from vla_rl.rl.surrogates import gipo, no_clip

REWARDS = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.8], dtype=torch.float64)
OLD = torch.tensor([1.2, 0.1, -0.5], dtype=torch.float64)
OLDER = torch.tensor([0.0, 1.5, -1.0], dtype=torch.float64)
GROUPS = {"fresh": (LOGITS,) * 3, "old": (OLD,) * 3, "mixed": (LOGITS, OLD, OLDER)}


def policy_gradient() -> torch.Tensor:
    """∇ Σ_a π(a) r(a) for a softmax: π(a) (r(a) − J)."""
    policy = LOGITS.softmax(dim=0)
    return policy * (REWARDS - policy @ REWARDS)


def expected_gradient(
    surrogate, behaviors: tuple[torch.Tensor, ...], baseline: Literal["mean", "leave_one_out", "mean_std"]
) -> torch.Tensor:
    """The expected gradient of the mean objective of a group whose members were drawn by these logits."""
    logits = LOGITS.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for actions in itertools.product(range(3), repeat=3):
        chosen = torch.tensor(actions)
        behavior = torch.stack([of.log_softmax(dim=0)[action] for of, action in zip(behaviors, actions, strict=True)])
        scores = REWARDS[chosen].numpy()
        advantages = torch.from_numpy(group_advantages(scores, np.zeros(3, dtype=int), baseline=baseline))
        objective = surrogate(logits.log_softmax(dim=0)[chosen] - behavior, advantages).mean()
        total = total + behavior.sum().exp() * objective
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


@pytest.mark.parametrize("behaviors", GROUPS.values(), ids=GROUPS)
def test_with_the_full_ratio_the_others_mean_costs_no_bias_however_old_it_is(behaviors) -> None:
    found = expected_gradient(no_clip, behaviors, "leave_one_out")
    assert found.tolist() == pytest.approx(policy_gradient().tolist(), abs=1e-12)


@pytest.mark.parametrize("behaviors", GROUPS.values(), ids=GROUPS)
def test_the_group_s_own_mean_makes_the_gradient_smaller_by_one_part_in_n(behaviors) -> None:
    found = expected_gradient(no_clip, behaviors, "mean")
    assert found.tolist() == pytest.approx((2 / 3 * policy_gradient()).tolist(), abs=1e-12)


@pytest.mark.parametrize("behaviors", GROUPS.values(), ids=GROUPS)
def test_division_by_the_deviation_keeps_a_direction_uphill(behaviors) -> None:
    found, exact = expected_gradient(no_clip, behaviors, "mean_std"), policy_gradient()
    assert float(found @ exact / (found.norm() * exact.norm())) > 0.9


@pytest.mark.parametrize("behaviors", [GROUPS["old"], GROUPS["mixed"]], ids=["old", "mixed"])
def test_gipo_over_old_groups_is_its_weight_times_what_exceeds_the_others_mean(behaviors) -> None:
    """Σ_a ω_i(a) π(a) (r(a) − mean over the others of E_μj r) ∇log π(a), mean over the members i."""
    policy, sigma = LOGITS.softmax(dim=0), 0.7
    expected = torch.zeros(3, dtype=torch.float64)
    for i, own in enumerate(behaviors):
        others = [float(of.softmax(dim=0) @ REWARDS) for j, of in enumerate(behaviors) if j != i]
        trust = torch.exp(-0.5 * ((LOGITS.log_softmax(dim=0) - own.log_softmax(dim=0)) / sigma) ** 2)
        weight = trust * policy * (REWARDS - sum(others) / 2)
        expected += (weight - policy * weight.sum()) / 3  # ∇log π(a) is 1 at a, minus π
    found = expected_gradient(partial(gipo, sigma=sigma), behaviors, "leave_one_out")
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert float((found - policy_gradient()).norm()) > 0.01  # where the weight is damped, old groups cost bias
    assert float(found @ policy_gradient()) > 0


# --- two decisions ----------------------------------------------------------------------------------------------------

# Each of two actions leads from the start to a state of its own, and 1 is earned by choosing action 1 twice. A policy
# is given by its probabilities of action 1 at the start, after action 0 and after action 1: p, any, q. So J = p q.
NOW, BEFORE = (1 / 2, 1 / 2, 1 / 2), (1 / 4, 1 / 3, 3 / 4)
EXACT = [1 / 8, 0.0, 1 / 8]  # of the logits: p (1 − p) q and p q (1 − q)
ADVANTAGES = {
    "no baseline": lambda score, other, states: [score, score],
    "leave_one_out": lambda score, other, states: (
        [group_advantages(np.array([score, other]), np.zeros(2, dtype=int), baseline="leave_one_out")[0]] * 2
    ),
    "critic": lambda score, other, states: [score - (0.3, 0.1, 0.7)[state] for state in states],
}


def expected_gradient_of_two_decisions(behavior, advantages_of, *, ratio_of_episode: bool) -> list[float]:
    """The expected gradient of one of two members of a group, summed over its decisions."""
    logits = torch.tensor(NOW, dtype=torch.float64).logit().requires_grad_()
    old = torch.tensor(behavior, dtype=torch.float64)
    success = behavior[0] * behavior[2]
    total = torch.zeros((), dtype=torch.float64)
    for first, second in itertools.product((0, 1), repeat=2):
        states, is_one = [0, 1 + first], torch.tensor([first, second], dtype=torch.bool)
        log_new = torch.where(is_one, logits[states], -logits[states]).sigmoid().log()
        log_old = torch.where(is_one, old[states], 1.0 - old[states]).log()
        log_ratio = log_new - log_old
        if ratio_of_episode:  # the weight of both decisions, and no more than the weight
            log_ratio = log_ratio.sum().detach() + log_new - log_new.detach()
        for other, probability in ((1.0, success), (0.0, 1.0 - success)):
            advantages = torch.as_tensor(advantages_of(float(first * second), other, states), dtype=torch.float64)
            total = total + probability * log_old.sum().exp() * no_clip(log_ratio, advantages).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient.tolist()


@pytest.mark.parametrize("advantages_of", ADVANTAGES.values(), ids=ADVANTAGES)
def test_over_two_decisions_old_groups_cost_bias_and_their_baseline_adds_none(advantages_of) -> None:
    """A ratio per decision gives p (1 − p) q_old and p_old q (1 − q): the return after a decision and the states before
    it are the old policy's, under any baseline and under a critic. The product of both ratios would correct them."""
    found = partial(expected_gradient_of_two_decisions, advantages_of=advantages_of)
    assert found(BEFORE, ratio_of_episode=False) == pytest.approx([3 / 16, 0.0, 1 / 16], abs=1e-12)
    assert found(BEFORE, ratio_of_episode=True) == pytest.approx(EXACT, abs=1e-12)
    assert found(NOW, ratio_of_episode=False) == pytest.approx(EXACT, abs=1e-12)
