"""Value loss, the total, and the normalisation of advantages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.losses import (
    LossTerms,
    advantage_moments,
    normalize_advantages,
    total_loss,
    value_loss_sum,
)
from vla_rl.rl.masking import NonFiniteError, all_finite, masked_mean, select_valid

MASK = torch.tensor([True, False, True])
ALL = torch.tensor([True] * 3)
poisons = pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])


def gradient(function, leaf):
    leaf = leaf.clone().requires_grad_()
    total, _ = function(leaf)
    total.backward()
    return leaf.grad


def test_value_loss_is_the_plain_squared_error_over_valid_elements():
    values, targets = torch.tensor([1.0, 5.0, -1.0]), torch.tensor([3.0, 0.0, 2.0])
    total, count = value_loss_sum(values, targets, MASK)
    assert (total.item(), count.item()) == (13.0, 2)
    assert gradient(lambda v: value_loss_sum(v, targets, MASK), values).tolist() == [-4.0, 0.0, -6.0]


def test_value_targets_are_constants():
    targets = torch.zeros(3, requires_grad=True)
    total, _ = value_loss_sum(torch.ones(3, requires_grad=True), targets, ALL)
    total.backward()
    assert targets.grad is None


@poisons
def test_masked_places_have_no_effect_on_value_or_gradient(poison):
    values = torch.tensor([1.0, 5.0, -1.0])
    bad_values = values.clone()
    bad_values[1] = poison
    cases = [
        (lambda v: value_loss_sum(v, torch.zeros(3), MASK), values, bad_values),
        (
            lambda v: value_loss_sum(values + 0 * values.where(MASK, 0) + v.where(MASK, 0), bad_values, MASK),
            values,
            values,
        ),
    ]
    for function, clean, bad in cases:
        assert torch.equal(function(clean)[0], function(bad)[0])
        assert function(bad)[0].isfinite()
        assert torch.equal(gradient(function, clean), gradient(function, bad))
        assert (gradient(function, bad)[1] == 0).all()


def test_nothing_valid_gives_zero_with_zero_gradient():
    nothing = torch.zeros(3, dtype=torch.bool)
    values = torch.full((3,), math.nan, requires_grad=True)
    loss = masked_mean(*value_loss_sum(values, torch.zeros(3), nothing))
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.tolist() == [0.0] * 3


def test_nan_in_a_valid_place_is_refused_by_name():
    bad = torch.tensor([math.nan, 0.0, 0.0])
    for name, call in (
        ("values", lambda: value_loss_sum(bad, torch.zeros(3), ALL)),
        ("value_targets", lambda: value_loss_sum(torch.zeros(3), bad, ALL)),
        ("advantages", lambda: normalize_advantages(bad, ALL)),
    ):
        with pytest.raises(NonFiniteError, match=f"^{name}: "):
            call()


def test_without_a_mask_every_place_counts():
    values, targets = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])
    total, count = value_loss_sum(values, targets)
    assert (total.item(), count.item()) == (1.0 + 9.0, 2)
    assert advantage_moments(values).tolist() == [4.0, 10.0, 2.0]
    assert normalize_advantages(values).tolist() == [-1.0, 1.0]
    with pytest.raises(NonFiniteError, match="values: 1 of 2 valid places hold inf"):
        value_loss_sum(torch.tensor([1.0, math.inf]), targets)


def test_the_total_shows_every_coefficient():
    terms = LossTerms(*(torch.tensor(x) for x in (1.0, 2.0, 4.0, 8.0)))
    total = total_loss(terms, value_coefficient=0.5, entropy_coefficient=0.25, kl_coefficient=0.125)
    assert total.item() == 1.0 + 1.0 - 1.0 + 1.0


def test_normalised_advantages_use_the_population_deviation_of_valid_elements():
    normalized = normalize_advantages(torch.tensor([1.0, 100.0, 5.0]), MASK)
    assert normalized.tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert normalize_advantages(torch.tensor([1.0, 2.0, 3.0]), ALL)[2].item() == pytest.approx(
        1.0 / math.sqrt(2.0 / 3.0)
    )


@given(st.lists(st.floats(-100.0, 100.0), min_size=2, max_size=12), st.integers(1, 11))
def test_moments_of_parts_add_up_to_those_of_the_whole(numbers, cut):
    whole = torch.tensor(numbers, dtype=torch.float64)
    parts = whole[:cut], whole[cut:]
    first, second = (advantage_moments(part, torch.ones_like(part, dtype=torch.bool)) for part in parts)
    cut_up = [normalize_advantages(p, torch.ones_like(p, dtype=torch.bool), moments=first + second) for p in parts]
    expected = normalize_advantages(whole, torch.ones_like(whole, dtype=torch.bool))
    if expected.abs().max() < 1e3:  # else the deviation is rounding noise
        assert torch.allclose(torch.cat(cut_up), expected, rtol=1e-4, atol=1e-6)


def test_equal_advantages_normalise_to_zero():
    assert normalize_advantages(torch.full((3,), 0.1), ALL).abs().max().item() < 1e-6
    assert normalize_advantages(torch.full((3,), math.nan), torch.zeros(3, dtype=torch.bool)).tolist() == [0.0] * 3


@pytest.mark.parametrize(("last", "finite"), [(3e38, True), (-3e38, True), (math.inf, False), (math.nan, False)])
def test_numbers_are_finite_if_each_of_them_is_though_their_sum_overflows(last, finite):
    assert all_finite(torch.tensor([3e38, 3e38, last])) == finite


def test_finite_numbers_pass_though_their_sum_is_not():
    large = torch.tensor([3e38, 3e38, -3e38])
    assert torch.equal(select_valid("x", large, ALL), large)
    infinite = torch.tensor([math.inf, -math.inf, 0.0])
    assert torch.equal(select_valid("x", infinite, ALL, allow_infinite=True), infinite)
