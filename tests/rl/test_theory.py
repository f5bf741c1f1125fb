"""Section 5 of the paper: closed forms, and the inequalities on random distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl import theory
from vla_rl.rl.surrogates import gipo

sigmas = st.floats(0.05, 50.0)


@given(z=st.floats(0.0, 1e12))
def test_lambert_w_solves_its_equation(z):
    w = theory.lambert_w(z)
    assert w * math.exp(w) == pytest.approx(z, rel=1e-11, abs=1e-300)


def test_lambert_w_at_known_points():
    assert theory.lambert_w(0.0) == 0.0
    assert theory.lambert_w(math.e) == pytest.approx(1.0)
    assert theory.lambert_w(1.0) == pytest.approx(0.5671432904097838)


@given(sigma=sigmas, factor=st.floats(0.01, 100.0))
def test_no_other_tau_gives_a_smaller_penalty(sigma, factor):
    best = theory.trust_penalty(sigma)
    assert best <= theory.trust_penalty(sigma, tau=factor * theory.optimal_tau(sigma)) * (1 + 1e-12)


@given(sigma=sigmas)
def test_the_best_penalty_has_a_closed_form(sigma):
    w = theory.lambert_w(2 * sigma**2)
    assert theory.trust_penalty(sigma) == pytest.approx(w * (w + 2) / (2 * sigma**2), rel=1e-9)


def test_the_bound_says_something_only_above_a_sigma_of_about_one_and_a_third():
    assert theory.trust_penalty(1.33) > 1.0 > theory.trust_penalty(1.35)


@given(sigma=st.floats(0.1, 4.0), seed=st.integers(0, 10_000))
def test_the_discarded_mass_stays_below_the_lemma(sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    policy, behavior = (3.0 * torch.randn(2, 6, generator=generator, dtype=torch.float64)).softmax(-1)
    ones = torch.ones(6, dtype=torch.float64)
    kept = (behavior * gipo((policy / behavior).log(), ones, sigma=sigma)).sum().item()
    total_variation = 0.5 * (policy - behavior).abs().sum().item()
    assert 1.0 - kept <= theory.trust_penalty(sigma) + total_variation + 1e-12


@given(sigma=st.floats(0.1, 4.5))
def test_the_multiplier_reaches_its_bound_at_sigma_squared(sigma):
    peak = gipo(torch.tensor(sigma**2, dtype=torch.float64), torch.tensor(1.0).double(), sigma=sigma).item()
    assert peak == pytest.approx(theory.multiplier_bound(sigma), rel=1e-12)


def test_penalty_and_half_width_at_hand_computed_points():
    sigma = math.sqrt(math.e / 2.0)  # 2σ² = e, so W = 1 and f* = 3/e
    penalty = theory.lower_bound_penalty(sigma=sigma, max_advantage=2.0, discount=0.5, alpha=0.1, beta=0.2)
    assert penalty == pytest.approx(4 * 2 * 0.5 * 0.1 * 0.2 * 4 + 2 * 2 * (3 / math.e + 0.2))
    half_width = theory.finite_sample_half_width(
        sigma=sigma, max_advantage=2.0, discount=0.5, num_samples=200, delta=2 / math.e
    )
    assert half_width == pytest.approx(2.0 * math.exp(math.e / 4) * 2.0 * 0.1)


def test_the_half_width_covers_the_error_of_the_estimate():
    behavior, policy = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.2, 0.8]).double()
    objective = gipo((policy / behavior).log(), torch.tensor([1.0, -1.0]).double(), sigma=1.0)
    draws = objective[torch.multinomial(behavior, 50 * 400, True, generator=torch.Generator().manual_seed(0))]
    errors = (draws.reshape(400, 50).mean(dim=1) - (behavior * objective).sum()).abs()
    half_width = theory.finite_sample_half_width(sigma=1.0, max_advantage=1.0, discount=0.0, num_samples=50, delta=0.1)
    assert (errors <= half_width).double().mean().item() >= 0.9


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.multiplier_bound(0.0),
        lambda: theory.trust_penalty(1.0, tau=-1.0),
        lambda: theory.lambert_w(-0.1),
        lambda: theory.lower_bound_penalty(sigma=1.0, max_advantage=1.0, discount=1.0, alpha=0.0, beta=0.0),
        lambda: theory.lower_bound_penalty(sigma=1.0, max_advantage=1.0, discount=0.9, alpha=2.0, beta=0.0),
        lambda: theory.lower_bound_penalty(sigma=1.0, max_advantage=-1.0, discount=0.9, alpha=0.1, beta=0.1),
        lambda: theory.finite_sample_half_width(sigma=1.0, max_advantage=1.0, discount=0.9, num_samples=0, delta=0.1),
        lambda: theory.finite_sample_half_width(sigma=1.0, max_advantage=-1.0, discount=0.9, num_samples=9, delta=0.1),
    ],
)
def test_arguments_outside_their_domain_are_refused(call):
    with pytest.raises(ValueError, match="found"):
        call()
