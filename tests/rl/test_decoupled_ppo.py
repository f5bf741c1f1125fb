"""Decoupled PPO: numbers worked out by hand, and what it becomes at both ends of the interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vla_rl.rl.surrogates import DecoupledPpo, NoClip, Ppo, Surrogate

log_ratios = st.floats(-6.0, 6.0)
signs = st.sampled_from([1.0, -1.0])


def decoupled(**fields) -> DecoupledPpo:
    return DecoupledPpo(name="decoupled_ppo", **fields)


def float64(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def value_and_weight(surrogate: Surrogate, ratio: float, advantage: float) -> tuple[float, float]:
    """J, and autograd's dJ/dx over A."""
    x = float64(math.log(ratio)).requires_grad_()
    objective = surrogate.objective(x, float64(advantage))
    (gradient,) = torch.autograd.grad(objective.sum(), x)
    return objective.item(), gradient.item() / advantage


@pytest.mark.parametrize(
    ("fields", "lag", "ratio", "advantage", "objective", "weight"),
    [
        ({}, 3, 1.331, 1.0, 1.331, 1.331),  # w = 1.1², r = 1.1: alive, where PPO has clipped 1.331
        ({}, 3, 1 / 1.331, -1.0, -1 / 1.331, 1 / 1.331),
        ({}, 2, 2.25, 1.0, 1.8, 0.0),  # w = r = 1.5: 1.5 · 1.2
        ({}, 2, 2.25, -1.0, -2.25, 2.25),
        ({}, 2, 0.25, -1.0, -0.4, 0.0),  # w = r = 0.5: 0.5 · 0.8
        ({}, 2, 0.25, 2.0, 0.5, 0.25),
        ({"clip_high": 0.6}, 2, 2.25, 1.0, 2.25, 2.25),
        ({}, 4, 16.0, 1.0, 0.0, 0.0),  # w = 16^(3/4) = 8 > 2: dropped, whatever the sign
        ({}, 4, 16.0, -1.0, 0.0, 0.0),
        ({"max_weight": None}, 4, 16.0, 1.0, 9.6, 0.0),  # 8 · 1.2
        ({"max_weight": 8.1}, 4, 16.0, -1.0, -16.0, 16.0),
        ({"max_weight": None, "dual_clip": 3.0}, 2, 16.0, -1.0, -12.0, 0.0),  # w = r = 4: −4 · 3
        ({"proximal": 1.0}, 1, 1.99, 1.0, 1.99, 1.99),
        ({"proximal": 1.0}, 1, 2.01, 1.0, 0.0, 0.0),
        ({"proximal": 0.25}, 100, 16.0, -1.0, -16.0, 16.0),  # w = 2, not above the bound
    ],
)
def test_values_and_weights_at_hand_computed_points(fields, lag, ratio, advantage, objective, weight):
    surrogate = decoupled(**fields).at_lag(torch.tensor([lag]))
    assert value_and_weight(surrogate, ratio, advantage) == pytest.approx((objective, weight), abs=1e-12)
    told = surrogate.log_weight(float64(math.log(ratio)), float64(advantage)).exp().item()
    assert told == pytest.approx(weight, abs=1e-12)


@given(x=log_ratios, advantage=st.floats(-10.0, 10.0), dual_clip=st.sampled_from([None, 3.0]))
@pytest.mark.parametrize("lag", [None, 0, 1])
def test_around_the_policy_that_acted_it_is_ppo(lag, x, advantage, dual_clip):
    clip = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": dual_clip}
    ppo, surrogate = Ppo(name="ppo", **clip), decoupled(**clip)
    if lag is not None:
        surrogate = surrogate.at_lag(torch.tensor([lag]))
    for same in (surrogate, decoupled(**clip, proximal=0.0).at_lag(torch.tensor([50]))):
        arguments = float64(x), float64(advantage)
        assert torch.equal(same.objective(*arguments), ppo.objective(*arguments))
        assert torch.equal(same.log_weight(*arguments), ppo.log_weight(*arguments))


@given(x=log_ratios.filter(lambda x: abs(x - math.log(2)) > 1e-9), advantage=st.floats(0.01, 10.0), sign=signs)
def test_around_the_learner_s_own_policy_it_is_the_policy_gradient_without_large_weights(x, advantage, sign):
    ratio, advantage = math.exp(x), sign * advantage
    value, weight = value_and_weight(decoupled(proximal=1.0, clip_low=1e-6, clip_high=1e-6), ratio, advantage)
    expected = value_and_weight(NoClip(name="no_clip"), ratio, advantage) if ratio <= 2.0 else (0.0, 0.0)
    assert (value, weight) == pytest.approx(expected, rel=1e-9)


@given(x=log_ratios, lag=st.integers(0, 1000), sign=signs)
def test_what_is_neither_clipped_nor_dropped_has_the_whole_ratio_as_its_weight(x, lag, sign):
    _, weight = value_and_weight(decoupled().at_lag(torch.tensor([lag])), math.exp(x), sign)
    assert weight == 0.0 or weight == pytest.approx(math.exp(x), rel=1e-9)


def test_with_the_lag_the_proximal_policy_leaves_the_one_that_acted_for_the_learner_s():
    lags = torch.tensor([0, 1, 2, 4, 100])
    limited = decoupled().at_lag(lags).limited_log_ratio(torch.ones(5, dtype=torch.float64))
    assert limited.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.01])
    assert decoupled(proximal=0.75).at_lag(lags).limited_log_ratio(torch.ones(5)).tolist() == [0.25] * 5


def test_a_lag_per_decision_is_broadcast_over_its_tokens_and_stays_with_the_copy():
    surrogate = decoupled(max_weight=None)
    bound = surrogate.at_lag(torch.tensor([[1], [2]]))
    objective = bound.objective(torch.full((2, 3), math.log(2.25)), torch.ones(2, 1))
    assert objective[0].tolist() == pytest.approx([1.2] * 3)
    assert objective[1].tolist() == pytest.approx([1.8] * 3)
    assert surrogate.objective(torch.tensor([math.log(2.25)]), torch.ones(1)).item() == pytest.approx(1.2)
    assert bound.model_dump() == surrogate.model_dump()


@pytest.mark.parametrize("lag", [0, 1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_finite_for_every_log_ratio_and_lag(lag, dtype):
    x = torch.tensor([-math.inf, -1e30, -60.0, 0.0, 60.0, 1e30, math.inf], dtype=dtype, requires_grad=True)
    for sign in (1.0, -1.0):
        for bound in (None, 2.0):
            surrogate = decoupled(max_weight=bound).at_lag(torch.tensor([lag]))
            objective = surrogate.objective(x, torch.full_like(x, sign, requires_grad=False))
            (gradient,) = torch.autograd.grad(objective.sum(), x)
            assert objective.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("fields", [{"max_weight": 0.9}, {"proximal": 1.1}, {"clip_low": 1.0}])
def test_settings_without_a_meaning_are_refused(fields):
    with pytest.raises(ValidationError):
        decoupled(**fields)
