import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.evaluation.statistics import (
    Interval,
    improvement_interval,
    interquartile_mean,
    iqm_interval,
    mcnemar,
    probability_of_improvement,
    stratified_mean_interval,
    wilson_interval,
)

# --- Wilson ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by hand, with z = 1.959964: (0.8 + 0.19207 ± 1.959964 √(0.016 + 0.0096036)) / 1.384146 for 8 of 10
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_intervals_match_published_values(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.99]))
def test_wilson_intervals_match_scipy(counts, confidence):
    from scipy.stats import binomtest

    expected = binomtest(*counts).proportion_ci(confidence_level=confidence, method="wilson")
    interval = wilson_interval(*counts, confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_ends_exactly_at_zero_and_one():
    for trials in range(1, 300):
        assert wilson_interval(0, trials).low == 0.0
        assert wilson_interval(trials, trials).high == 1.0


def test_wilson_knows_nothing_without_trials():
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)


def test_wilson_of_five_hundred_episodes_at_the_top_is_as_wide_as_published_gaps():
    interval = wilson_interval(493, 500)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.971, 0.993)


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2)])
def test_wilson_refuses_counts_that_contradict_each_other(successes, trials):
    with pytest.raises(ValueError, match=rf"0..trials, got {successes} of {trials}"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson_interval(1, 2, confidence=confidence)


# --- stratified bootstrap over tasks ---------------------------------------------------------------------------------


def test_a_stratified_interval_has_the_width_that_theory_gives():
    # Two tasks, rates 0.5 and 0.9 of 100: the variance of the mean is (0.25 + 0.09) / 100 / 4.
    outcomes = [[1] * 50 + [0] * 50, [1] * 90 + [0] * 10]
    reach = 1.959964 * math.sqrt((0.25 + 0.09) / 100 / 4)
    interval = stratified_mean_interval(outcomes, resamples=40_000)
    assert interval.low == pytest.approx(0.7 - reach, abs=0.005)
    assert interval.high == pytest.approx(0.7 + reach, abs=0.005)


def test_a_stratified_interval_of_two_tasks_with_two_episodes_by_hand():
    # A task's redrawn mean is 0, 1/2, 1 with 1/4, 1/2, 1/4; their mean is 0 with 1/16 and at most 1/4 with 5/16.
    outcomes = [[1, 0], [1, 0]]
    assert stratified_mean_interval(outcomes, confidence=0.95) == Interval(0.0, 1.0)  # 1/16 > 2.5 %
    assert stratified_mean_interval(outcomes, confidence=0.80) == Interval(0.25, 0.75)  # 1/16 < 10 % < 5/16


def test_a_stratified_interval_matches_scipys_bootstrap_of_several_samples():
    from scipy.stats import bootstrap

    tasks: list[list[float]] = [[1.0] * 30 + [0] * 20, [1.0] * 48 + [0.0] * 2, [0.0, 1 / 3, 2 / 3, 1.0, 1.0]]

    def mean_of_means(*samples, axis):
        return sum(sample.mean(axis=axis) for sample in samples) / len(samples)

    expected = bootstrap(
        tasks, mean_of_means, n_resamples=40_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = stratified_mean_interval(tasks, resamples=40_000)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_differences_between_tasks_do_not_widen_a_stratified_interval():
    # Pooled, half of 100 episodes failed; but each task is certain.
    assert stratified_mean_interval([[1] * 50, [0] * 50]) == Interval(0.5, 0.5)


def test_tasks_weigh_the_same_however_many_episodes_they_have():
    assert stratified_mean_interval([[1] * 90, [0] * 10]) == Interval(0.5, 0.5)


def test_a_bootstrap_repeats_itself_and_depends_on_its_seed():
    outcomes = [list(np.linspace(0, 1, 20))]
    first = stratified_mean_interval(outcomes, seed=1, resamples=500)
    assert first == stratified_mean_interval(outcomes, seed=1, resamples=500)
    assert first != stratified_mean_interval(outcomes, seed=2, resamples=500)


def test_a_task_without_an_outcome_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 0\] outcomes per task"):
        stratified_mean_interval([[1.0], []])


# --- McNemar ---------------------------------------------------------------------------------------------------------


def pairs(only_first, only_second, both=3, neither=2):
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return first, second


def test_mcnemar_of_one_against_five_by_hand():
    # n = 6: P(X <= 1) = 7/64, P(X = 1) = 6/64; exact 14/64, mid 2 * 1/64 + 6/64 = 8/64.
    result = mcnemar(*pairs(1, 5))
    assert (result.only_first, result.only_second) == (1, 5)
    assert (result.p_exact, result.p_mid) == (0.21875, 0.125)


def test_mcnemar_is_symmetric_and_ignores_pairs_that_agree():
    forward, backward = mcnemar(*pairs(2, 9)), mcnemar(*pairs(9, 2, both=500, neither=0))
    assert (forward.p_exact, forward.p_mid) == (backward.p_exact, backward.p_mid)


def test_mcnemar_is_certain_of_nothing_when_the_policies_differ_equally_or_never():
    for result in (mcnemar(*pairs(4, 4)), mcnemar(*pairs(0, 0)), mcnemar([], [])):
        assert (result.p_exact, result.p_mid) == (1.0, 1.0)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_matches_the_binomial_test_of_scipy(only_first, only_second):
    from scipy.stats import binom, binomtest

    result = mcnemar(*pairs(only_first, only_second))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    expected = binomtest(fewer, differing).pvalue if differing else 1.0
    assert result.p_exact == pytest.approx(expected, rel=1e-9)
    if only_first != only_second:
        assert result.p_mid == pytest.approx(expected - binom.pmf(fewer, differing, 0.5), rel=1e-9)


def test_mcnemar_of_thousands_of_pairs_does_not_overflow():
    assert mcnemar(*pairs(1500, 1500)).p_exact == 1.0
    assert 0 <= mcnemar(*pairs(1500, 0)).p_exact < 1e-300


def test_mcnemar_of_clusters_by_hand():
    # Differences 2, 2 and -1 of three states: 8 signs give |S| = 5, 3, 1, 1 twice each; found is 3.
    first, second = [True, True, True, True, False, True], [False, False, False, False, True, True]
    result = mcnemar(first, second, clusters=["a", "a", "b", "b", "c", "c"])
    assert (result.only_first, result.only_second) == (4, 1)
    assert (result.p_exact, result.p_mid) == (4 / 8, 2 / 8 + 0.5 * 2 / 8)


def test_mcnemar_of_clusters_matches_scipys_permutation_test():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    first, second = rng.random((9, 3)) < 0.7, rng.random((9, 3)) < 0.4  # nine states, three seeds
    expected = permutation_test(
        (first.sum(axis=1), second.sum(axis=1)), lambda a, b: (a - b).sum(), permutation_type="samples"
    ).pvalue  # exact: scipy tries all 2^9 signs
    result = mcnemar(first.ravel().tolist(), second.ravel().tolist(), clusters=np.repeat(np.arange(9), 3).tolist())
    assert result.p_exact == pytest.approx(expected, rel=1e-12)


def test_playing_the_same_pairs_thrice_makes_no_difference_more_certain():
    first, second = pairs(1, 5)
    once, thrice = mcnemar(first, second), mcnemar(3 * first, 3 * second, clusters=3 * list(range(len(first))))
    assert (thrice.p_exact, thrice.p_mid) == (once.p_exact, once.p_mid)
    assert (thrice.only_first, thrice.only_second) == (3, 15)


def test_mcnemar_refuses_outcomes_without_a_partner():
    with pytest.raises(ValueError, match="2 of the first and 1 of the second"):
        mcnemar([True, False], [True])


# --- IQM and probability of improvement ------------------------------------------------------------------------------


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    scores = np.array([[100.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, -100.0]])
    assert interquartile_mean(scores) == 3.5  # of 2, 3, 4, 5


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_the_interquartile_mean_matches_scipys_trimmed_mean(seeds, tasks, seed):
    from scipy.stats import trim_mean

    scores = np.random.default_rng(seed).normal(size=(seeds, tasks))
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None), rel=1e-9, abs=1e-12)


def test_an_iqm_interval_redraws_seeds_within_tasks_only():
    # Seeds agree, tasks differ wildly: redrawing seeds changes nothing, mixing tasks would.
    scores = np.tile(np.array([0.0, 5.0, 10.0, 90.0]), (5, 1))
    assert iqm_interval(scores) == Interval(7.5, 7.5)


def test_an_iqm_interval_of_whole_seeds_keeps_a_seeds_scores_together():
    """Of two seeds drawn whole, a quarter of the draws has only the seed of zeros, and another only that of ones."""
    scores = np.array([[0.0] * 16, [1.0] * 16])
    assert iqm_interval(scores, whole_seeds=True) == Interval(0.0, 1.0)
    # Task by task, an IQM of 0 needs 24 zeros in 32 throws of a coin: 0.35 %, outside of the interval.
    apart = iqm_interval(scores)
    assert apart.low > 0.0
    assert apart.high < 1.0


def test_an_iqm_interval_redraws_the_seeds_of_each_task_on_their_own():
    one_task = np.linspace(0.0, 1.0, 9)[:, None]
    narrow, wide = iqm_interval(np.tile(one_task, (1, 16)), resamples=2000), iqm_interval(one_task, resamples=2000)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


def test_an_iqm_interval_holds_the_estimate_and_shrinks_with_seeds():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(5, 4)), rng.normal(size=(80, 4))
    short, long = iqm_interval(many, resamples=2000), iqm_interval(few, resamples=2000)
    assert short.low < interquartile_mean(many) < short.high
    assert short.high - short.low < (long.high - long.low) / 2


def test_an_iqm_interval_matches_scipys_bootstrap_of_several_samples():
    from scipy.stats import bootstrap, trim_mean

    scores = np.random.default_rng(4).beta(4, 2, size=(10, 5))

    def iqm(*tasks, axis):
        return trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)

    expected = bootstrap(
        list(scores.T), iqm, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = iqm_interval(scores, resamples=20_000)
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=0.03 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.03 * width)


def test_the_probability_of_improvement_counts_pairs_and_halves_ties():
    # Task 0: 3 beats 1 and 2, 2 beats 1 and ties 2: 3.5 of 4. Task 1: 0 loses twice, 1 ties 1 and beats 0.5: 1.5.
    first = np.array([[3.0, 0.0], [2.0, 1.0]])
    second = np.array([[1.0, 1.0], [2.0, 0.5]])
    assert probability_of_improvement(first, second) == pytest.approx((3.5 / 4 + 1.5 / 4) / 2)


def test_the_probability_of_improvement_is_mann_whitneys_statistic():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 6, size=(9, 1)).astype(float), rng.integers(0, 6, size=(7, 1)).astype(float)
    expected = mannwhitneyu(first[:, 0], second[:, 0]).statistic / (9 * 7)
    assert probability_of_improvement(first, second) == pytest.approx(expected)
    assert probability_of_improvement(second, first) == pytest.approx(1 - expected)


def test_an_improvement_interval_is_certain_only_of_separated_scores():
    low, high = np.zeros((4, 3)), np.ones((6, 3))
    assert improvement_interval(high, low, resamples=200) == Interval(1.0, 1.0)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(10, 3)), rng.normal(size=(10, 3))
    interval = improvement_interval(first, second, resamples=2000)
    assert interval.low < probability_of_improvement(first, second) < interval.high
    assert 0.15 < interval.high - interval.low < 0.45


def test_an_improvement_interval_matches_scipys_bootstrap_of_both_runs_seeds():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(8)
    first, second = rng.normal(0.4, 1.0, size=(8, 2)), rng.normal(size=(6, 2))

    def improvement(a, b, c, d, *, axis):
        wins = [(ours[..., :, None] > theirs[..., None, :]).mean(axis=(-2, -1)) for ours, theirs in ((a, c), (b, d))]
        return sum(wins) / 2

    expected = bootstrap(
        [*first.T, *second.T], improvement, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = improvement_interval(first, second, resamples=20_000)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_an_improvement_interval_of_whole_seeds_redraws_both_sides_of_a_seed_together():
    """Both seeds have the first ahead by 1, at different levels: with seed 0 twice or seed 1 twice it is always higher,
    with each once in 3 of 4 pairs. Redrawn apart, seed 0 of the first against seed 1 of the second twice is 1 of 16."""
    first, second = np.array([[1.0], [11.0]]), np.array([[0.0], [10.0]])
    assert improvement_interval(first, second, whole_seeds=True) == Interval(0.75, 1.0)
    assert improvement_interval(first, second) == Interval(0.0, 1.0)


def test_an_improvement_interval_of_whole_seeds_has_the_quantiles_of_all_draws():
    rng = np.random.default_rng(5)
    level = rng.normal(size=(4, 1))  # that both have in common, by seed
    first, second = level + rng.normal(0.4, 0.5, size=(4, 3)), level + rng.normal(0.0, 0.5, size=(4, 3))
    draws = [list(rows) for rows in itertools.product(range(4), repeat=4)]
    found = [probability_of_improvement(first[rows], second[rows]) for rows in draws]
    interval = improvement_interval(first, second, whole_seeds=True, resamples=40_000)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=0.011)
    apart = improvement_interval(first, second, resamples=40_000)
    assert apart.high - apart.low > interval.high - interval.low + 0.05


def test_whole_seeds_need_the_scores_of_both():
    with pytest.raises(ValueError, match="got 3 and 2 seeds"):
        improvement_interval(np.zeros((3, 1)), np.zeros((2, 1)), whole_seeds=True)


def test_scores_of_other_tasks_cannot_be_compared():
    with pytest.raises(ValueError, match="3 tasks and 2"):
        probability_of_improvement(np.zeros((1, 3)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        interquartile_mean(np.zeros(3))
