"""Lag, drift and utilisation on batches small enough to count by hand."""

import math

import pytest
import torch

from vla_rl.rl import diagnostics
from vla_rl.rl.surrogates import Gipo, Ppo

ALL = torch.ones(4, dtype=torch.bool)
NOTHING = torch.zeros(4, dtype=torch.bool)


def test_policy_lag_counts_a_sample_at_the_threshold_as_old():
    lag, mask = torch.tensor([0, 2, 10, 20, 999]), torch.tensor([True, True, True, True, False])
    found = diagnostics.policy_lag(lag, mask, old_threshold=10)
    assert found.mean == 8.0
    assert found.p95 == pytest.approx(10 + 0.85 * 10)  # rank 0.95 · 3 = 2.85
    assert found.max == 20.0
    assert found.old_fraction == 0.5
    assert found.old_p95 == pytest.approx(10 + 0.95 * 10)
    assert diagnostics.policy_lag(lag, mask, old_threshold=21).old_p95 == 0.0


def test_the_mean_age_is_that_of_the_valid_samples():
    assert diagnostics.mean_age(torch.tensor([1, 3, 5, 70]), torch.tensor([True, True, True, False])) == 3.0


def test_drift_is_the_quantile_of_the_absolute_log_ratio():
    x = torch.tensor([-1.0, 0.5, 0.0, math.nan])
    assert diagnostics.abs_log_ratio_p95(x, torch.tensor([True, True, True, False])) == pytest.approx(0.95)
    assert math.isfinite(diagnostics.abs_log_ratio_p95(torch.full((4,), math.inf), ALL))


def test_a_quantile_of_more_elements_than_torch_s_own_takes_is_exact():
    every = torch.tensor(True)
    large = torch.zeros(2**24 + 1)
    large[-1] = 5.0
    assert diagnostics.abs_log_ratio_p95(large, every) == 0.0
    for count in (1, 2, 21, 41):  # 0 to count - 1, in no order: the quantile is at 0.95 (count - 1)
        mixed = (torch.arange(count) * 8) % count if count > 2 else torch.arange(count)
        assert diagnostics.policy_lag(mixed, every, old_threshold=0).p95 == pytest.approx(0.95 * (count - 1))


def test_approx_kl_of_hand_computed_ratios():
    x = torch.tensor([math.log(2.0), math.log(0.5), 0.0, 0.0], dtype=torch.float64)
    expected = ((2 - 1 - math.log(2.0)) + (0.5 - 1 + math.log(2.0))) / 4
    assert diagnostics.approx_kl(x, ALL) == pytest.approx(expected, abs=1e-12)


def test_approx_kl_is_directed_from_behaviour_to_policy():
    behavior, policy = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    per_action = [diagnostics.approx_kl((policy / behavior).log()[[a]], ALL[:1]) for a in range(2)]
    assert 0.5 * per_action[0] + 0.5 * per_action[1] == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0))


def test_clip_fraction_counts_either_side():
    x = torch.tensor([1.3, 0.7, 1.1, 0.9]).log()
    assert diagnostics.clip_fraction(x, ALL, clip_low=0.2, clip_high=0.2) == 0.5
    assert diagnostics.clip_fraction(x, ALL, clip_low=0.2, clip_high=0.4) == 0.25


def test_explained_variance():
    targets = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert diagnostics.explained_variance(targets + 7.0, targets, ALL) == pytest.approx(1.0)
    assert diagnostics.explained_variance(torch.zeros(4), targets, ALL) == pytest.approx(0.0)
    assert diagnostics.explained_variance(-targets, targets, ALL) == pytest.approx(-3.0)
    equal = torch.full((3,), 0.1, dtype=torch.float64)
    assert equal.var(correction=0) > 0.0  # rounding alone
    assert diagnostics.explained_variance(torch.tensor([0.0, 1.0, 0.0]), equal, ALL[:3]) == 0.0


def test_utilization_of_hand_computed_weights():
    # w = 0, 5e-4, 0.5, 2;  |A| = 1, 1, 1e-3, 3;  u = 0, 5e-4, 5e-4, 6; the fifth element is masked.
    log_w = torch.tensor([-math.inf, math.log(5e-4), math.log(0.5), math.log(2.0), 3.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1e-3, -3.0, math.nan], dtype=torch.float64)
    old = torch.tensor([True, True, False, True, True])
    found = diagnostics.utilization(log_w, advantages, old, torch.tensor([True] * 4 + [False]))
    assert (found.dead, found.suppressed, found.near_zero) == (0.25, 0.25, 0.75)
    assert found.old_share == pytest.approx(6.0005 / 6.001)
    effective = 6.0005**2 / (36 + 25e-8)
    assert found.ess_old == pytest.approx(effective / 3)


def test_thresholds_are_arguments():
    log_w, ones = torch.tensor([0.5, 0.05, 1.0, 1.0]).log(), torch.ones(4)
    found = diagnostics.utilization(log_w, ones, ALL, ALL, suppressed_below=0.1, near_zero_below=0.6)
    assert (found.suppressed, found.near_zero) == (0.25, 0.5)


def test_equal_contributions_are_all_effective():
    found = diagnostics.utilization(torch.zeros(4), torch.ones(4), ALL, ALL)
    assert (found.ess_old, found.old_share) == (1.0, 1.0)


def test_an_underflowing_gaussian_weight_is_suppressed_and_a_clipped_one_is_dead():
    x, advantages = torch.tensor([-3.0, 0.0, 0.0, 0.0]), torch.tensor([-1.0, 1.0, 1.0, 1.0])
    gipo, ppo = Gipo(name="gipo", sigma=0.2), Ppo(name="ppo")
    soft = diagnostics.utilization(gipo.log_weight(x, advantages), advantages, ALL, ALL)
    hard = diagnostics.utilization(ppo.log_weight(x, advantages), advantages, ALL, ALL)
    assert (soft.dead, soft.suppressed) == (0.0, 0.25)
    assert (hard.dead, hard.suppressed) == (0.25, 0.0)


def test_an_advantage_and_a_lag_per_decision_are_broadcast_over_tokens():
    old = torch.tensor([[[True], [False]]])
    found = diagnostics.utilization(torch.zeros(1, 2, 3), torch.tensor([[[1.0], [3.0]]]), old, torch.ones(1, 2, 3) > 0)
    assert found.old_share == pytest.approx(0.25)
    assert found.ess_old == pytest.approx(1.0)


def test_without_valid_elements_everything_is_zero():
    nan = torch.full((4,), math.nan)
    assert diagnostics.utilization(nan, nan, ALL, NOTHING) == diagnostics.Utilization(0.0, 0.0, 0.0, 0.0, 0.0)
    assert diagnostics.policy_lag(nan, NOTHING, old_threshold=1) == diagnostics.PolicyLag(0.0, 0.0, 0.0, 0.0, 0.0)
    assert diagnostics.approx_kl(nan, NOTHING) == diagnostics.explained_variance(nan, nan, NOTHING) == 0.0
