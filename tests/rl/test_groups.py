"""Advantages from groups: numbers worked out by hand, and properties that follow from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.groups import group_advantages, keep_groups

BASELINES = ("mean_std", "mean", "leave_one_out")

# k successes among 8: (n − k) / n / σ and −k / n / σ with σ = sqrt(k (n − k) / (n (n − 1)))
EIGHT = {
    1: (2.4748737341529163, -0.3535533905932738),
    2: (1.6201851746019651, -0.5400617248673217),
    4: (0.9354143466934853, -0.9354143466934853),
    7: (0.3535533905932738, -2.4748737341529163),
}


@pytest.mark.parametrize(("successes", "expected"), EIGHT.items())
def test_grpo_of_eight_binary_scores_is_the_table_worked_out_by_hand(successes, expected):
    scores = [1.0] * successes + [0.0] * (8 - successes)
    found = group_advantages(scores, [3] * 8, eps=0.0)
    assert found[:successes] == pytest.approx(expected[0], abs=1e-12)
    assert found[successes:] == pytest.approx(expected[1], abs=1e-12)


def test_epsilon_is_added_to_the_deviation():
    # scores 0 and 2: μ = 1, σ = sqrt(2) with n − 1 = 1
    found = group_advantages([0.0, 2.0], [0, 0], eps=0.5)
    assert found == pytest.approx([-1 / (2**0.5 + 0.5), 1 / (2**0.5 + 0.5)], abs=1e-12)


def test_dr_grpo_and_rloo_by_hand():
    scores, ids = [1.0, 0.0, 0.0, 5.0], [7, 7, 7, 2]
    with pytest.raises(ValueError, match="2 has one member"):
        group_advantages(scores, ids)
    assert group_advantages(scores[:3], ids[:3], baseline="mean") == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert group_advantages(scores[:3], ids[:3], baseline="leave_one_out") == pytest.approx([1.0, -0.5, -0.5])


def test_members_of_a_group_need_not_stand_side_by_side():
    found = group_advantages([1.0, 10.0, 3.0, 30.0], [5, -1, 5, -1], baseline="mean")
    assert found == pytest.approx([-1.0, -10.0, 1.0, 10.0])


@pytest.mark.parametrize("baseline", BASELINES)
def test_equal_scores_teach_nothing(baseline):
    for score in (5.0, 0.1):  # three times 0.1 add up to more than 0.3
        assert not group_advantages([score] * 3, [1, 1, 1], baseline=baseline).any()
        assert not group_advantages([score] * 3, [1, 1, 1], baseline=baseline, eps=0.0).any()


def groups():
    score = st.floats(-100, 100, allow_nan=False)
    return st.lists(st.lists(score, min_size=2, max_size=9), min_size=1, max_size=5)


def flat(of_groups):
    ids = [index for index, members in enumerate(of_groups) for _ in members]
    return np.array([score for members in of_groups for score in members]), np.array(ids)


@given(groups(), st.sampled_from(BASELINES))
def test_advantages_add_up_to_zero_in_each_group(of_groups, baseline):
    scores, ids = flat(of_groups)
    found = group_advantages(scores, ids, baseline=baseline)
    for group in np.unique(ids):
        assert abs(found[ids == group].sum()) < 1e-6 * max(1.0, np.abs(found).max())


@given(groups())
def test_rloo_is_dr_grpo_times_n_over_n_minus_1(of_groups):
    scores, ids = flat(of_groups)
    size = np.bincount(ids)[ids]
    mean = group_advantages(scores, ids, baseline="mean")
    assert group_advantages(scores, ids, baseline="leave_one_out") == pytest.approx(mean * size / (size - 1), abs=1e-9)


def test_a_reward_five_times_as_large_changes_rloo_five_times_and_grpo_hardly():
    scores, ids = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.zeros(5, dtype=int)
    assert group_advantages(5 * scores, ids) == pytest.approx(group_advantages(scores, ids), abs=1e-5)
    assert group_advantages(5 * scores, ids, eps=0.0) == pytest.approx(
        group_advantages(scores, ids, eps=0.0), abs=1e-12
    )
    small = group_advantages(scores, ids, baseline="leave_one_out")
    assert group_advantages(5 * scores, ids, baseline="leave_one_out") == pytest.approx(5 * small)


def test_bounds_are_inclusive_and_hold_for_whole_groups():
    scores = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    ids = [0, 0, 0, 0, 1, 1, 2, 2]
    assert keep_groups(scores, ids, low=0.25, high=1.0).tolist() == [True] * 6 + [False] * 2
    assert keep_groups(scores, ids, low=0.26, high=0.99).tolist() == [False] * 8
    assert keep_groups(scores, ids, low=0.0, high=0.25).tolist() == [True] * 4 + [False] * 2 + [True] * 2


def test_bounds_of_the_literature_drop_groups_of_eight_without_both_outcomes():
    scores = np.array([[1.0] * k + [0.0] * (8 - k) for k in range(9)])
    kept = keep_groups(scores.ravel(), np.repeat(np.arange(9), 8), low=0.1, high=0.9)
    assert kept[::8].tolist() == [False] + [True] * 7 + [False]


@pytest.mark.parametrize(
    ("score", "count", "low", "high"), [(0.1, 10, 0.1, 0.9), (0.1, 3, 0.0, 0.1), (0.3, 3, 0.3, 0.3)]
)
def test_a_bound_that_a_mean_misses_by_rounding_alone_is_met(score, count, low, high):
    # Ten times 0.1 add up to 0.9999999999999999, three times 0.1 to 0.30000000000000004.
    assert keep_groups([score] * count, [0] * count, low=low, high=high).all()
    single = np.full(count, score, np.float32)  # 0.1 is 0.10000000149 there
    assert keep_groups(single, [0] * count, low=low, high=high).all()


def test_a_mean_that_misses_a_bound_by_more_than_rounding_is_out():
    assert not keep_groups([1.0, 0.0, 0.0, 0.0], [0] * 4, low=0.25 + 1e-12, high=1.0).any()
    assert not keep_groups([1.0, 0.0, 0.0, 0.0], [0] * 4, low=0.0, high=0.25 - 1e-12).any()


@pytest.mark.parametrize("size", [2, 16, 1024])
def test_a_group_in_which_all_succeed_is_out_however_large_it_is(size):
    all_succeed = np.ones(size, np.float32)
    assert not keep_groups(all_succeed, np.zeros(size, int), low=1e-6, high=1.0 - 1e-6).any()


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(("offset", "scale"), [(2.0**40, 1.0), (0.0, 2.0**600), (0.0, 2.0**-600)])
def test_large_levels_and_extreme_scales_cost_no_digits(baseline, offset, scale):
    plain = group_advantages([1.0, 0.0, 0.0, 0.0], [0] * 4, baseline=baseline, eps=0.0)
    scores = offset + scale * np.array([1.0, 0.0, 0.0, 0.0])
    found = group_advantages(scores, [0] * 4, baseline=baseline, eps=0.0)
    assert found / (1.0 if baseline == "mean_std" else scale) == pytest.approx(plain, rel=1e-12)
    assert abs(found.sum()) <= 1e-12 * np.abs(found).max()


def test_ids_of_any_kind_name_the_same_groups():
    scores, large = [1.0, 3.0, 0.0, 2.0], 2**63
    expected = [0.5, 0.5, -0.5, -0.5]
    for ids in (["b", "a"] * 2, [-7, 3] * 2, [large + 1, large + 2] * 2, [2**70, 2**70 + 1] * 2, [0.0, 1.0] * 2):
        assert group_advantages(scores, ids, baseline="mean") == pytest.approx(expected)


def test_ids_that_would_merge_as_floats_are_refused():
    # numpy has no type for these integers together but float64, in which the first two are one number
    ids = [2**63 + 1, 2**63 + 2, -1] * 2
    with pytest.raises(ValueError, match="cannot tell large ids apart"):
        group_advantages(np.arange(6.0), ids)
    with pytest.raises(ValueError, match="found nan as a float"):
        group_advantages([0.0, 1.0], [float("nan")] * 2)


@pytest.mark.parametrize("scores", [[10**400, 1], torch.ones(2, requires_grad=True), [[1], [2, 3]], ["a", "b"]])
def test_scores_that_are_no_float64_are_refused(scores):
    with pytest.raises(ValueError, match="scores: "):
        group_advantages(scores, [0, 0])


@pytest.mark.parametrize("ids", [[1, "1", 1, "1"], ["a", None, "a", None], [None] * 4, [b"a", "a"] * 2, [{}] * 4])
def test_ids_of_several_types_or_of_none_that_can_be_compared_are_refused(ids):
    """As numpy would have it, 1 and "1" were one group."""
    with pytest.raises(ValueError, match=r"group_ids: found (.*NoneType|.*str|dict).*; pass integers,"):
        group_advantages([0.0, 1.0, 2.0, 3.0], ids)
    with pytest.raises(ValueError, match=r"pass integers, or strings, but not both"):
        keep_groups([0.0, 1.0, 2.0, 3.0], ids, low=0.0, high=1.0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, str, object])
def test_ids_in_arrays_are_as_good_as_those_in_lists(kind):
    assert group_advantages([1.0, 3.0], np.array([7, 7]).astype(kind), baseline="mean").tolist() == [-1.0, 1.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_largest_and_the_smallest_scores_have_finite_advantages(baseline):
    """Half the deviation from the mean of two: 1 / sqrt(2) after division by the deviation."""
    for eps, score in ((0.0, 1e300), (1e-6, 1e300), (0.0, 5e-324)):
        low, high = group_advantages([-score, score], [0, 0], baseline=baseline, eps=eps).tolist()
        assert low == -high
        expected = {"mean": score, "leave_one_out": 2 * score, "mean_std": 0.5**0.5}[baseline]
        assert high == pytest.approx(expected, rel=1e-12, abs=0.0)
    many = group_advantages([5e-324] + [0.0] * 999, [0] * 1000, eps=0.0)  # a deviation below the smallest float
    assert many[0] == pytest.approx(0.999 / 0.001**0.5, rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_the_mean_of_the_largest_scores_is_finite_too():
    assert keep_groups([1e300] * 2000, [0] * 2000, low=0.0, high=1e300).all()


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
def test_a_negative_epsilon_is_refused(eps):
    with pytest.raises(ValueError, match="it must be 0 or more"):
        group_advantages([0.0, 1.0], [0, 0], eps=eps)


@pytest.mark.parametrize(
    ("scores", "ids", "said"),
    [
        ([1.0, 2.0], [0], "both must be"),
        ([[1.0, 2.0]], [[0, 0]], "both must be"),
        ([1.0, float("nan")], [0, 0], "1 that are not finite"),
        ([1.0, 2.0, 3.0], [0, 0, 4], "4 has one member"),
        ([1e308, -1e308], [0, 0], r"scores: found 1e\+308; at most 1e\+300 in size can be compared"),
        ([0.0, -2e300], [0, 0], r"scores: found -2e\+300; at most"),
        ([0.0, {}], [0, 0], r"scores: must be \(N,\) numbers"),
        ([0.0, "much"], [0, 0], r"scores: must be \(N,\) numbers"),
        ([0.0, 1.0], [[0], [0, 1]], r"group_ids: must be \(N,\) ids"),
    ],
)
def test_bad_input_is_refused_with_what_was_found(scores, ids, said):
    with pytest.raises(ValueError, match=said):
        group_advantages(scores, ids)
    with pytest.raises(ValueError, match=said):
        keep_groups(scores, ids, low=0.0, high=1.0)


def test_unknown_baselines_and_crossed_bounds_are_refused():
    with pytest.raises(ValueError, match="'median', allowed are mean_std, mean, leave_one_out"):
        group_advantages([0.0, 1.0], [0, 0], baseline="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low must not be larger"):
        keep_groups([0.0, 1.0], [0, 0], low=0.9, high=0.1)


def test_no_episodes_have_no_advantages():
    assert group_advantages([], []).shape == (0,)
    assert keep_groups([], [], low=0.0, high=1.0).shape == (0,)
