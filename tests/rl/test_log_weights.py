"""Effective weights: equal to automatic differentiation, and known by their exponent."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.surrogates import KINDS, MAX_LOG_RATIO, SURROGATES, multiplier
from vla_rl.rl.surrogates.plain import as_function

LOG_WEIGHTS = {name: as_function(kind, kind.log_weight) for name, kind in KINDS.items()}

SETTINGS = [
    *((name, {}) for name in KINDS),
    ("ppo", {"clip_low": 0.1, "clip_high": 0.3}),
    ("ppo", {"dual_clip": 1.3}),
    ("decoupled_ppo", {"proximal": 0.5, "clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5}),
    ("decoupled_ppo", {"proximal": 1.0, "max_weight": 1.4}),
    ("sapo", {"tau_pos": 0.5, "tau_neg": 3.0}),
    ("gipo", {"sigma": 0.3, "negative_sigma_scale": 0.5}),
]
every_setting = pytest.mark.parametrize(("name", "settings"), SETTINGS)


@every_setting
@given(
    x=st.one_of(st.floats(-6.0, 6.0), st.floats(allow_nan=False)),
    advantage=st.floats(0.01, 10.0),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_the_multiplier_is_what_autograd_finds(name, settings, x, advantage, sign):
    log_ratio = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([sign * advantage], dtype=torch.float64)
    SURROGATES[name](log_ratio, advantages, **settings).sum().backward()
    m = multiplier(partial(LOG_WEIGHTS[name], **settings), log_ratio.detach(), advantages)
    assert log_ratio.grad is not None
    assert m.item() == pytest.approx((log_ratio.grad / advantages).item(), rel=1e-6, abs=1e-9)


@every_setting
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_multiplier_is_zero_exactly_where_the_gradient_is(name, settings, dtype):
    edges = [math.log(1.2), math.log(0.8), math.log(1.3), math.log(0.9), MAX_LOG_RATIO, 20.7, 20.8]
    x = torch.tensor([0.0, -math.inf, math.inf, 0.5, -0.5, *edges, *(-edge for edge in edges)], dtype=dtype)
    for sign in (1.0, -1.0):
        leaf, advantages = x.clone().requires_grad_(), torch.full_like(x, sign)
        SURROGATES[name](leaf, advantages, **settings).sum().backward()
        log_m = LOG_WEIGHTS[name](x, advantages, **settings)
        dead, zero = log_m == -math.inf, leaf.grad == 0.0
        assert zero[dead].all()
        assert (log_m[zero & ~dead] < math.log(torch.finfo(dtype).tiny)).all()  # a soft gradient may underflow
        if name in ("gipo", "sapo", "no_clip"):  # nothing is clipped inside the bound
            assert torch.equal(dead, x.double().abs() > 20.73)


def test_an_underflowing_gaussian_weight_keeps_its_exponent():
    x, advantage = torch.tensor([-3.0]), torch.tensor([1.0])
    log_m = LOG_WEIGHTS["gipo"](x, advantage, sigma=0.2)
    assert log_m.exp().item() == 0.0  # float32
    assert log_m.item() == pytest.approx(-3.0 - 9.0 / 0.08)


@every_setting
@given(advantage=st.floats(-10.0, 10.0))
def test_every_multiplier_is_one_on_policy(name, settings, advantage):
    log_m = LOG_WEIGHTS[name](torch.zeros(1), torch.tensor([advantage]), **settings)
    assert log_m.exp().item() == pytest.approx(1.0, abs=1e-6)


@every_setting
def test_an_advantage_per_decision_is_broadcast_over_its_tokens(name, settings):
    log_m = LOG_WEIGHTS[name](torch.zeros(2, 3, 7), torch.ones(2, 3, 1), **settings)
    assert log_m.shape == (2, 3, 7)


def test_a_zero_advantage_takes_the_negative_branch():
    x, zero, negative = torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([-1.0])
    for name, settings in (("sapo", {}), ("gipo", {"sigma": 1.0, "negative_sigma_scale": 0.5})):
        log_multiplier = partial(LOG_WEIGHTS[name], **settings)
        assert torch.equal(log_multiplier(x, zero), log_multiplier(x, negative))
        assert not torch.equal(log_multiplier(x, zero), log_multiplier(x, -negative))
