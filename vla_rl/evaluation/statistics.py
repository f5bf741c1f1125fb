"""Intervals and tests for success rates and scores. Pure NumPy; every random one takes a seed and is reproducible.

Shape letters: S seeds (runs), T tasks, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Two-sided interval, ends included."""

    low: float
    high: float

    @property
    def is_point(self) -> bool:
        """Return whether it has no width: for a bootstrap this means no variation when resampling, not certainty."""
        return self.low == self.high


def unless_point(interval: Interval) -> Interval | None:
    """Return a bootstrap's interval; None if it found no spread, which is not the same as certainty."""
    return None if interval.is_point else interval


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of a proportion: sensible at 0 %, at 100 % and for few trials.

        (p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)   with p = successes / n, z the normal quantile

    Source: Wilson (1927), JASA 22, 209-212, without continuity correction.

    Args:
        successes: number of trials that succeeded.
        trials: n; all of them independent.
        confidence: coverage, between 0 and 1.

    Returns:
        The interval, inside 0..1; all of 0..1 for no trials.

    Raises:
        ValueError: the counts contradict each other, or `confidence` is not a probability.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in 0..trials, got {successes} of {trials}")
    _require_probability(confidence)
    if trials == 0:
        return Interval(0.0, 1.0)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = successes / trials
    centre = share + z2 / (2 * trials)
    reach = math.sqrt(z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2))
    scale = 1 + z2 / trials
    # The ends at 0 and n successes are exactly 0 and 1; rounding must not move them.
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == trials else (centre + reach) / scale
    return Interval(low, high)


def stratified_mean_interval(
    outcomes: Sequence[Sequence[float]], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap percentiles of the mean over tasks of the tasks' means; episodes are redrawn within their task.

        θ* = 1/T Σ_t mean(x*_t),   x*_t drawn with replacement from x_t,   interval = quantiles of θ*

    The tasks of a suite are fixed, not a sample, so they are strata and never redrawn. If every episode of every task
    had the same outcome, the interval is a point: read Wilson's beside it.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    Args:
        outcomes: one sequence of outcomes per task, of any lengths.
        confidence: coverage, between 0 and 1.
        resamples: R.
        seed: of the resampling.

    Raises:
        ValueError: there is no task, or one without an outcome.
    """
    if not outcomes or any(len(task) == 0 for task in outcomes):
        raise ValueError(f"every task needs an outcome, got {[len(task) for task in outcomes]} outcomes per task")
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for task in outcomes:
        values = np.asarray(task, dtype=np.float64)
        means += rng.choice(values, size=(resamples, len(values))).mean(axis=1)
    return _percentiles(means / len(outcomes), confidence)


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar test of two policies on the same episodes: where they differ, and how unlikely that is for equal ones."""

    only_first: int  # pairs in which only the first succeeded
    only_second: int
    p_exact: float  # two-sided, conservative
    p_mid: float  # two-sided, close to its nominal level


def mcnemar(first: Sequence[bool], second: Sequence[bool], *, clusters: Sequence[Hashable] | None = None) -> McNemar:
    """Compute McNemar's exact test and its mid-p variant on paired successes, for pairs that may come in clusters.

    With d_c the difference of a cluster, successes of the first minus successes of the second, and independent fair
    signs s_c, the only randomness if both policies are equally good:

        S = Σ_c s_c |d_c|        p_exact = P(|S| ≥ |Σ_c d_c|)        p_mid = P(|S| > |Σ_c d_c|) + ½ P(|S| = |Σ_c d_c|)

    If every pair is a cluster, this is McNemar's test, with b, c the pairs in which only the first, only the second
    succeeded and X ~ Binomial(b + c, 1/2): p_exact = min(1, 2 P(X ≤ min(b, c))). Without a difference both are 1.
    Clusters that agree carry no information.
    Sources: McNemar (1947), Psychometrika 12, 153-157; mid-p: Fagerland, Lydersen and Laake (2013), BMC Medical
    Research Methodology 13:91; random signs: Fisher (1935), The Design of Experiments, section 21.

    Args:
        first: success per pair of the first policy.
        second: the same pairs, in the same order, of the second.
        clusters: per pair, a key shared by pairs that are not independent; None: all pairs are independent.

    Raises:
        ValueError: the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need both outcomes, got {len(first)} of the first and {len(second)} of the second")
    differences: Counter[Hashable] = Counter()
    for cluster, a, b in zip(range(len(first)) if clusters is None else clusters, first, second, strict=True):
        differences[cluster] += int(a) - int(b)
    ways = _signed_sums(Counter(abs(difference) for difference in differences.values() if difference))
    found = abs(sum(differences.values()))
    beyond = sum(count for total, count in ways.items() if abs(total) > found)
    equal = sum(count for total, count in ways.items() if abs(total) == found)
    everything = sum(ways.values())
    # Integers up to the division: no rounding for any number of pairs.
    return McNemar(
        only_first=sum(a and not b for a, b in zip(first, second, strict=True)),
        only_second=sum(b and not a for a, b in zip(first, second, strict=True)),
        p_exact=(beyond + equal) / everything,
        p_mid=(2 * beyond + equal) / (2 * everything) if found else 1.0,
    )


def _signed_sums(sizes: Mapping[int, int]) -> dict[int, int]:
    """Count the ways in which signs give each sum of `count` numbers of each size."""
    ways = {0: 1}
    for size, count in sizes.items():
        longer: Counter[int] = Counter()
        for positive in range(count + 1):
            shift, choices = size * (2 * positive - count), math.comb(count, positive)
            for total, known in ways.items():
                longer[total + shift] += known * choices
        ways = dict(longer)
    return ways


def interquartile_mean(scores: Float64Array) -> float:
    """Return the IQM: the mean of the middle half of all S · T scores.

    ⌊S T / 4⌋ scores are dropped at either end. Less noisy than the median, less sensitive to outliers than the mean.
    Source: Agarwal et al. (2021), Deep RL at the Edge of the Statistical Precipice, arXiv 2108.13264, section 4.3.

    Args:
        scores: (S, T) float64, one score per seed and task, on one scale.

    Raises:
        ValueError: the array is empty or not two-dimensional.
    """
    _require_table(scores, "scores")
    return float(_iqm_rows(scores.reshape(1, -1))[0])


def iqm_interval(
    scores: Float64Array,
    *,
    whole_seeds: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a percentile bootstrap of the IQM; seeds are redrawn within each task, tasks are kept.

    Redrawn within each task, the runs of one seed on several tasks count as independent. Redrawn whole, a seed keeps
    its scores on all tasks, as runs with common first weights require. With few seeds such an interval is rough.
    Sources: Agarwal et al. (2021), arXiv 2108.13264, section 4.1 (stratified bootstrap); whole seeds: Davison and
    Hinkley (1997), Bootstrap Methods and their Application, section 3.8 (hierarchical data).

    Args:
        scores: (S, T) float64.
        whole_seeds: redraw each seed with its scores on all tasks.
        confidence: coverage, between 0 and 1.
        resamples: R.
        seed: of the resampling.

    Raises:
        ValueError: the array is empty or not two-dimensional.
    """
    _require_table(scores, "scores")
    rng = np.random.default_rng(seed)
    if whole_seeds:
        drawn = scores[rng.integers(len(scores), size=(resamples, len(scores)))]
    else:
        drawn = _redraw_seeds(scores, rng, resamples)
    return _percentiles(_iqm_rows(drawn.reshape(resamples, -1)), confidence)


def probability_of_improvement(first: Float64Array, second: Float64Array) -> float:
    """Return the probability that a run of the first scores higher than one of the second, on a random task.

        P = 1/T Σ_t 1/(S₁ S₂) Σ_ij ([x_it > y_jt] + ½ [x_it = y_jt])

    Source: Agarwal et al. (2021), arXiv 2108.13264, section 4.3; per task it is the Mann-Whitney statistic.

    Args:
        first: (S₁, T) float64.
        second: (S₂, T) float64, the same tasks in the same order.

    Raises:
        ValueError: an array is empty or not two-dimensional, or the numbers of tasks differ.
    """
    _require_same_tasks(first, second)
    return float(_improvement(first[None], second[None])[0])


def improvement_interval(
    first: Float64Array,
    second: Float64Array,
    *,
    whole_seeds: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a percentile bootstrap of `probability_of_improvement`; seeds of both are redrawn within each task.

    Redrawn within each task, all runs count as independent. Redrawn whole, a seed keeps the scores of both on all
    tasks, as runs with common first weights require. With few seeds such an interval is rough.
    Sources: as `iqm_interval`.

    Args:
        first: (S₁, T) float64.
        second: (S₂, T) float64, the same tasks in the same order.
        whole_seeds: redraw each seed with the scores of both on all tasks; equal rows are of equal seeds, and S₁ = S₂.
        confidence: coverage, between 0 and 1.
        resamples: R.
        seed: of the resampling.

    Raises:
        ValueError: as `probability_of_improvement`, or whole seeds are asked for and one has more than the other.
    """
    _require_same_tasks(first, second)
    rng = np.random.default_rng(seed)
    if whole_seeds:
        if len(first) != len(second):
            raise ValueError(f"whole seeds need scores of both, got {len(first)} and {len(second)} seeds")
        rows = rng.integers(len(first), size=(resamples, len(first)))
        drawn_first, drawn_second = first[rows], second[rows]
    else:
        drawn_first, drawn_second = (_redraw_seeds(scores, rng, resamples) for scores in (first, second))
    return _percentiles(_improvement(drawn_first, drawn_second), confidence)


def _redraw_seeds(scores: Float64Array, rng: np.random.Generator, resamples: int) -> Float64Array:
    """Map (S, T) to (R, S, T): every task's column redrawn with replacement, each task on its own."""
    seeds, tasks = scores.shape
    rows = rng.integers(seeds, size=(resamples, seeds, tasks))
    drawn: Float64Array = scores[rows, np.arange(tasks)]
    return drawn


def _iqm_rows(rows: Float64Array) -> Float64Array:
    """Map (R, n) to (R,)."""
    count = rows.shape[1]
    cut = count // 4
    middle: Float64Array = np.sort(rows, axis=1)[:, cut : count - cut].mean(axis=1)
    return middle


def _improvement(first: Float64Array, second: Float64Array) -> Float64Array:
    """Map (R, S₁, T), (R, S₂, T) to (R,), task by task, to keep the table of pairs small."""
    total: Float64Array = np.zeros(len(first))
    for task in range(first.shape[2]):
        difference = first[:, :, None, task] - second[:, None, :, task]
        total += (0.5 * (1 + np.sign(difference))).mean(axis=(1, 2))
    mean: Float64Array = total / first.shape[2]
    return mean


def _percentiles(samples: Float64Array, confidence: float) -> Interval:
    _require_probability(confidence)
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _require_probability(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, both excluded, got {confidence}")


def _require_table(scores: Float64Array, name: str) -> None:
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} must be (seeds, tasks) with at least one of each, got shape {scores.shape}")


def _require_same_tasks(first: Float64Array, second: Float64Array) -> None:
    _require_table(first, "first")
    _require_table(second, "second")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both need the same tasks, got {first.shape[1]} tasks and {second.shape[1]}")
